package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/alecthomas/kong"

	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/depot/index"
	"firn/nix"
)

type pathDeleteCommand struct {
	stateFlags
	Cache         string   `default:"main" placeholder:"NAME" complete:"@cache" help:"The cache to delete them from. Others that have them keep them. By default main."`
	WithReferrers bool     `xor:"referrers" help:"Delete what refers to them as well, and what refers to that, so that nothing lacks a reference."`
	KeepReferrers bool     `xor:"referrers" help:"Leave what refers to them, though it cannot be used without them. Only where the cache allows missing references."`
	DryRun        bool     `help:"Print what would be deleted, and delete nothing."`
	Yes           bool     `help:"Do not ask before more is deleted than is named."`
	JSON          bool     `name:"json" help:"Print JSON, sizes in bytes."`
	Paths         []string `arg:"" name:"path" help:"Store paths, or their hashes."`
}

func (*pathDeleteCommand) Help() string {
	return `They are gone from the cache at once, all or none of them, also on a server that runs: clients get 404 for them, but for what
they remember themselves. Hundreds go a few at a time, so that no push waits for long. What no other path has of them is removed from disk two days later. They can be pushed again.

Nothing is deleted that another path of the cache refers to, unless that is deleted as well. Paths that the server has in its own
store are served from there all the same.

Examples:

    firn path delete /nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-hello-2.12
    firn path delete --cache team --with-referrers --dry-run 1b9p07z77phvv2hf6gm9f28syp39f1ag`
}

// shownDeletion is a deletion as it is shown.
type shownDeletion struct {
	Paths  []string `json:"paths"`
	Served int64    `json:"servedBytes"` // of NARs that no path has any more
	DryRun bool     `json:"dryRun"`
}

func (c *pathDeleteCommand) Run(k *kong.Context) error {
	open := c.changeCatalog
	if c.DryRun {
		open = c.openCatalog
	}
	return withCatalog(open, func(ctx context.Context, cat *sqlite.Catalog) error {
		r, err := record(ctx, cat, c.Cache)
		if err != nil {
			return err
		}
		d := &index.Deletion{Cache: r.ID, DryRun: c.DryRun}
		switch {
		case c.KeepReferrers && !r.AllowMissingReferences:
			return fmt.Errorf("--keep-referrers: all references in the cache %s are there, and stay so; delete what refers to them with --with-referrers, "+
				"or allow missing references with firn cache set --allow-missing-references %s", r.Name, r.Name)
		case c.KeepReferrers:
			d.Referrers = index.KeepReferrers
		case c.WithReferrers:
			d.Referrers = index.DeleteReferrers
		}
		named := make(map[nix.PathHash]string)
		for _, text := range c.Paths {
			hash, err := pathHashOf(text)
			if err != nil {
				return err
			}
			named[hash] = text
			d.Paths = append(d.Paths, hash)
		}
		if c.WithReferrers && !c.DryRun && !c.Yes {
			if err := c.ask(ctx, cat, *d, len(named)); err != nil {
				return err
			}
		}
		gone, err := index.Of(cat).Delete(ctx, d)
		if gone == nil {
			return deletionAdvice(err, r.Name)
		}
		if err != nil {
			err = fmt.Errorf("not all was deleted, and what is left lacks no reference; to go on, name what is still there: %w", err)
		}
		return errors.Join(c.print(k, gone), err)
	})
}

// ask asks whether to delete more than is named.
func (c *pathDeleteCommand) ask(ctx context.Context, cat *sqlite.Catalog, d index.Deletion, named int) error {
	d.DryRun = true
	gone, err := index.Of(cat).Delete(ctx, &d)
	if err != nil {
		return deletionAdvice(err, c.Cache)
	}
	if more := len(gone.Paths) - named; more > 0 {
		return confirm(fmt.Sprintf("Deleting %s and %s that refer to that, which --dry-run lists,", plural(int64(named), "path"), plural(int64(more), "other")), false)
	}
	return nil
}

// deletionAdvice says what a person can do about a deletion that was refused.
func deletionAdvice(err error, cache string) error {
	if referred, ok := errors.AsType[*index.ReferredError](err); ok {
		text := fmt.Sprintf("nothing was deleted, as others in the cache %s refer to %s:\n", cache, referred.Path)
		for _, by := range referred.By {
			text += fmt.Sprintf("    %s\n", by)
		}
		return errors.New(text + "name these as well, or say --with-referrers to delete all that do")
	}
	if errors.Is(err, catalog.ErrNotFound) {
		return fmt.Errorf("nothing was deleted: %w; what is named has to have been pushed to the cache %s", err, cache)
	}
	return err
}

func (c *pathDeleteCommand) print(k *kong.Context, gone *index.Deleted) error {
	if c.JSON {
		shown := shownDeletion{Paths: []string{}, Served: gone.FileBytes, DryRun: c.DryRun}
		for _, path := range gone.Paths {
			shown.Paths = append(shown.Paths, path.String())
		}
		return writeJSON(k.Stdout, shown)
	}
	verb, will := "deleted", "will be"
	if c.DryRun {
		verb, will = "would delete", "would be"
	}
	for _, path := range gone.Paths {
		fmt.Fprintln(k.Stdout, verb, path)
	}
	if gone.FileBytes == 0 {
		_, err := fmt.Fprintf(k.Stdout, "nothing %s free by that: other paths share all of it\n", will)
		return err
	}
	_, err := fmt.Fprintf(k.Stdout, "up to %s %s free two days later; what other paths share of it stays\n", size(gone.FileBytes), will)
	return err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/config"
	"firn/internal/keyfile"
	"firn/internal/localstore"
	"firn/internal/logs"
	"firn/internal/registry"
	"firn/internal/transfer"
	"firn/nix"
)

type exportCommand struct {
	stateFlags
	Cache string   `default:"main" placeholder:"NAME" complete:"@cache" help:"The cache to export. By default main."`
	Key   []string `placeholder:"FILE" complete:"file" help:"Sign what the cache main has with the secret key in FILE. May be given several times. By default as firn serve does with this configuration."`
	JSON  bool     `name:"json" help:"Print JSON."`
	Dir   string   `arg:"" complete:"dir" help:"The directory to write, which may be an older export."`
	Path  []string `arg:"" optional:"" help:"Export these store paths with all that they refer to, also of the local store. By default all that was pushed, and what that refers to."`
}

func (*exportCommand) Help() string {
	return `The directory is a binary cache like those of nix copy --to file://…: any web server serves it, and Nix reads it at file://.
It can be read while it is written. What is there already is left alone, so a second export adds what is new.
The server may go on running.

Examples:

    firn export /srv/cache
    firn export --cache team --state /var/lib/firn /srv/team
    firn export /srv/part /nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-hello-2.12`
}

func (c *exportCommand) Run(k *kong.Context) (err error) {
	ctx, cancel := untilSignal()
	defer cancel()
	cfg, err := c.load()
	if err != nil {
		return err
	}
	log := logs.NewLogger(cfg, os.Stderr)
	if c.Key != nil {
		cfg.Key = c.Key
	}
	opts := registry.Options{Priority: int(cfg.Priority), Logger: log}
	if opts.Keys, err = servingKeys(cfg, log); err != nil {
		return err
	}
	d, err := c.openDepot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	r, err := record(ctx, d.catalog, c.Cache)
	if err != nil {
		return err
	}
	leans, err := d.leansOnStore(ctx, r)
	if err != nil {
		return err
	}
	if (len(c.Path) > 0 || leans) && cfg.Store != config.StoreOff {
		store, err := existingStore(ctx, cfg, log)
		if err != nil {
			return err
		}
		if store != nil {
			defer store.Close()
			opts.Local = store
		}
	}
	from, err := d.cache(ctx, c.Cache, opts)
	if err != nil {
		return err
	}
	if len(from.PublicKeys()) == 0 {
		log.Warn("there is no key to sign with: clients will trust only what has signatures of others; name one with --key")
	}
	roots, err := parsePaths(from, c.Path)
	if err != nil {
		return err
	}
	var paths iter.Seq2[*nix.PathInfo, error]
	if len(roots) > 0 {
		paths = transfer.Closure(ctx, from, roots)
	}
	p := newProgress("exporting")
	done, err := transfer.Export(ctx, from, paths, c.Dir, transfer.ExportOptions{Progress: p.paths})
	p.end()
	return transferred(k, "exported", c.JSON, done, err)
}

// servingKeys are the keys that firn serve would sign with, which has made its own by now, if it needs one.
func servingKeys(c *config.Config, log *slog.Logger) ([]nix.SecretKey, error) {
	keys, err := loadKeys(c, log)
	if err != nil || len(keys) > 0 {
		return keys, err
	}
	key, err := keyfile.Load(filepath.Join(c.State, keyfile.SecretName), log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return []nix.SecretKey{key}, err
}

// existingStore opens the local store if there is one; nil if not.
func existingStore(ctx context.Context, c *config.Config, log *slog.Logger) (*localstore.Store, error) {
	opts, err := localOptions(c, log)
	if err != nil {
		return nil, err
	}
	store, err := localstore.Open(ctx, opts)
	if errors.Is(err, localstore.ErrNoStore) && opts.Root == "" {
		return nil, nil
	}
	return store, err
}

// leansOnStore reports whether pushed paths refer to what the depot does not have, so that the
// local store may matter for them.
func (d *openedDepot) leansOnStore(ctx context.Context, records ...*catalog.Cache) (bool, error) {
	for _, r := range records {
		for _, err := range d.catalog.DanglingReferences(ctx, r.ID) {
			return err == nil, err
		}
		for _, err := range d.catalog.WithheldPaths(ctx, r.ID) {
			return err == nil, err
		}
	}
	return false, nil
}

// cache returns a cache of the depot.
func (d *openedDepot) cache(ctx context.Context, name string, opts registry.Options) (*cache.Cache, error) {
	if _, err := record(ctx, d.catalog, name); err != nil {
		return nil, err
	}
	all, err := registry.New(ctx, d.catalog, d.Depot, opts)
	if err != nil {
		return nil, err
	}
	return all.ByName(ctx, name)
}

// parsePaths parses store paths of a cache.
func parsePaths(c *cache.Cache, texts []string) ([]nix.StorePath, error) {
	paths := make([]nix.StorePath, len(texts))
	for i, text := range texts {
		var err error
		if paths[i], err = c.Info().StoreDir.ParsePath(text); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// shownTransfer is the form for scripts.
type shownTransfer struct {
	Moved  int   `json:"moved"` // paths that were not there
	There  int   `json:"there"` // paths that were
	Failed int   `json:"failed"`
	Known  int   `json:"known"` // paths in all, as far as is known
	Files  int   `json:"otherFiles"`
	Bytes  int64 `json:"narBytes"` // that were read
}

// transferred tells what was done, unless it failed before anything was.
func transferred(k *kong.Context, verb string, asJSON bool, done transfer.Progress, err error) error {
	if err != nil && done == (transfer.Progress{}) {
		return err
	}
	there := done.Paths - done.Moved - done.Failed
	if asJSON {
		err = errors.Join(err, writeJSON(k.Stdout, shownTransfer{done.Moved, there, done.Failed, done.Known, done.Files, done.Bytes}))
	} else {
		fmt.Fprintf(k.Stdout, "%s %s of %d", verb, plural(int64(done.Moved), "path"), done.Known)
		if there > 0 {
			fmt.Fprintf(k.Stdout, ", %d were there", there)
		}
		if done.Failed > 0 {
			fmt.Fprintf(k.Stdout, ", %d failed", done.Failed)
		}
		if done.Files > 0 {
			fmt.Fprintf(k.Stdout, ", and %s", plural(int64(done.Files), "other file"))
		}
		fmt.Fprintln(k.Stdout)
	}
	if errors.Is(err, context.Canceled) {
		return errors.New("ended by a signal; started again, it goes on where it was")
	}
	return err
}

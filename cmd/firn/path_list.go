package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"firn/internal/catalog/sqlite"
	"firn/internal/depot/index"
)

type pathListCommand struct {
	stateFlags
	Cache    string `default:"main" placeholder:"NAME" complete:"@cache" help:"The cache to list. By default main."`
	Withheld bool   `help:"List instead what firn verify --repair withholds, until it is pushed again."`
	Long     bool   `short:"l" xor:"form" help:"Print a table: when each path was published, by whom, and its size."`
	Sort     string `enum:"none,time,size,name" default:"none" placeholder:"BY" help:"Sort by time (the newest first), size (the largest first) or name. By default in no order that means anything, and at once."`
	JSON     bool   `name:"json" xor:"form" help:"Print JSON, sizes in bytes."`
}

func (*pathListCommand) Help() string {
	return `The paths that were pushed to a cache are listed, one a line. Paths of the store of the machine are not.
A path is published by the token or the SSH key that pushed it first; who pushed it again is in the log of the server.

Examples:

    firn path list
    firn path list --long --sort time | head
    firn path list --cache team --sort size --json
    firn path list --withheld`
}

// listedPath is a path as it is shown.
type listedPath struct {
	Path      string    `json:"path"`
	Published time.Time `json:"published"`
	By        string    `json:"by,omitempty"` // empty: not known
	NARSize   int64     `json:"narBytes"`
	Served    int64     `json:"servedBytes"`
	name      string
}

func (c *pathListCommand) Run(k *kong.Context) (err error) {
	return withCatalog(c.openCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		r, err := record(ctx, cat, c.Cache)
		if err != nil {
			return err
		}
		list := cat.AllPaths
		if c.Withheld {
			list = cat.WithheldPaths
		}
		paths, err := sorted(listed(list(ctx, r.ID)), c.Sort)
		if err != nil {
			return err
		}
		w := bufio.NewWriter(k.Stdout)
		defer func() { err = errors.Join(err, w.Flush()) }()
		switch {
		case c.JSON:
			return writeJSONList(w, paths)
		case c.Long:
			table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "PUBLISHED\tBY\tSIZE\tSERVED\tPATH")
			for p, err := range paths {
				if err != nil {
					return err
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", p.Published.Format(time.RFC3339), nameOrQuoted(p.By), size(p.NARSize), size(p.Served), p.Path)
			}
			return table.Flush()
		}
		for p, err := range paths {
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(w, p.Path); err != nil {
				return nil // Flush says why
			}
		}
		return nil
	})
}

// nameOrQuoted is the name of a publisher, which may come from a certificate, so that it cannot
// confuse a terminal. "-" is none.
func nameOrQuoted(name string) string {
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` {
		return quoted
	}
	return cmp.Or(name, "-")
}

func listed(paths iter.Seq2[*index.Path, error]) iter.Seq2[listedPath, error] {
	return func(yield func(listedPath, error) bool) {
		for p, err := range paths {
			if err != nil {
				yield(listedPath{}, err)
				return
			}
			if !yield(listedPath{p.Info.Path.String(), p.Published, p.By, p.Info.NARSize, p.FileSize, p.Info.Path.Name()}, nil) {
				return
			}
		}
	}
}

// sorted are the paths in an order. Only where there is one they are in memory.
func sorted(paths iter.Seq2[listedPath, error], by string) (iter.Seq2[listedPath, error], error) {
	order, ok := map[string]func(a, b listedPath) int{
		"time": func(a, b listedPath) int { return b.Published.Compare(a.Published) },
		"size": func(a, b listedPath) int { return cmp.Compare(b.NARSize, a.NARSize) },
		"name": func(a, b listedPath) int { return cmp.Compare(a.name, b.name) },
	}[by]
	if !ok {
		return paths, nil
	}
	var all []listedPath
	for p, err := range paths {
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b listedPath) int { return cmp.Or(order(a, b), cmp.Compare(a.Path, b.Path)) })
	return func(yield func(listedPath, error) bool) {
		for _, p := range all {
			if !yield(p, nil) {
				return
			}
		}
	}, nil
}

// writeJSONList writes an array of any length, an element a line.
func writeJSONList[T any](w io.Writer, all iter.Seq2[T, error]) error {
	before := "[\n  "
	for one, err := range all {
		if err != nil {
			return err
		}
		text, err := json.Marshal(one)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s%s", before, text); err != nil {
			return err
		}
		before = ",\n  "
	}
	end := "\n]\n"
	if before == "[\n  " {
		end = "[]\n"
	}
	_, err := io.WriteString(w, end)
	return err
}

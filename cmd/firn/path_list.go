package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"

	"github.com/alecthomas/kong"

	"firn/nix"
)

type pathListCommand struct {
	stateFlags
	Cache    string `default:"main" placeholder:"NAME" help:"The cache to list. By default main."`
	Withheld bool   `help:"List instead what firn verify --repair withholds, until it is pushed again."`
}

func (*pathListCommand) Help() string {
	return `What was pushed is listed, a store path a line, in no order that means anything. What a cache has of the store of the machine is not.

Examples:

    firn path list
    firn path list --cache team | grep -- -hello-
    firn path list --withheld`
}

func (c *pathListCommand) Run(k *kong.Context) (err error) {
	ctx := context.Background()
	cat, err := c.openCatalog(ctx)
	if err != nil {
		return err
	}
	defer cat.Close()
	r, err := record(ctx, cat, c.Cache)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(k.Stdout)
	defer func() { err = errors.Join(err, w.Flush()) }()
	for p, err := range cat.AllPaths(ctx, r.ID, nix.PathHash{}, c.Withheld) {
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w, p.Info.Path); err != nil {
			return nil // Flush says why
		}
	}
	return nil
}

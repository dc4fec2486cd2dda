package main

import (
	"github.com/alecthomas/kong"

	"firn/internal/nixserve"
)

type nixServeCommand struct{ nixserve.Command }

func (c *nixServeCommand) Run(k *kong.Context) error {
	ctx, cancel := untilSignal()
	defer cancel()
	setCollector()
	return c.Serve(ctx, k, version())
}

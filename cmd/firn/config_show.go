package main

import "github.com/alecthomas/kong"

type configShowCommand struct {
	settings
}

func (*configShowCommand) Help() string {
	return `The output is a configuration file. It names the files of secret keys, and shows no secret.

Examples:

    firn config show
    firn config show --config /etc/firn/firn.toml --listen :8080`
}

func (c *configShowCommand) Run(k *kong.Context) error { return c.Show(k.Stdout, c.origins) }

package main

import "github.com/alecthomas/kong"

type configExampleCommand struct {
	settings
}

func (*configExampleCommand) Help() string {
	return `Every setting is there with what it is for, and commented out unless it is set.

Examples:

    firn config example > firn.toml
    firn config example --state /var/lib/firn --listen 127.0.0.1:5000`
}

func (c *configExampleCommand) Run(k *kong.Context) error { return c.Example(k.Stdout, c.origins) }

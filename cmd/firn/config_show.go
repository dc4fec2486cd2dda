package main

import "github.com/alecthomas/kong"

type configShowCommand struct {
	settings
	JSON bool `name:"json" help:"Print JSON: of each setting its value, and where that comes from."`
}

func (*configShowCommand) Help() string {
	return `The output is a configuration file. It names the files of secret keys, and shows no secret.

Examples:

    firn config show
    firn config show --config /etc/firn/firn.toml --listen :8080
    firn config show --json`
}

func (c *configShowCommand) Run(k *kong.Context) error {
	if !c.JSON {
		return c.Show(k.Stdout, c.origins)
	}
	type shown struct {
		Value any    `json:"value"`
		From  string `json:"from"`
	}
	all := map[string]shown{}
	for _, v := range c.Values() {
		all[v.Key] = shown{v.Value, c.origins[v.Key]}
	}
	return writeJSON(k.Stdout, all)
}

package main

import (
	"cmp"
	"fmt"
	"os"

	"github.com/alecthomas/kong"

	"firn/internal/config"
	"firn/internal/logs"
)

type configCheckCommand struct {
	Keys bool   `default:"true" negatable:"" help:"Read the keys that are named, too."`
	File string `arg:"" optional:"" env:"FIRN_CONFIG" complete:"file" help:"The configuration file. Without one, only the environment is checked."`
}

func (*configCheckCommand) Help() string {
	return `Every error is printed with its line. Keys are read, also the one that an earlier start made, nothing else is touched:
whether a port is free or a store can be read, a start shows.
Where the keys are not, such as where a package or a system is built, --no-keys checks all else.

Examples:

    firn config check /etc/firn/firn.toml
    firn config check --no-keys firn.toml
    FIRN_PRIORITY=50 firn config check`
}

func (c *configCheckCommand) Run(k *kong.Context) error {
	loaded, origins, err := config.Load(c.File, os.LookupEnv)
	if err == nil {
		err = loaded.AddCredentials(os.LookupEnv, origins)
	}
	if err != nil {
		return err
	}
	if err := loaded.Check(); err != nil {
		return err
	}
	if _, err := config.NixEnvironment(os.LookupEnv); err != nil {
		return err
	}
	if c.Keys {
		log := logs.NewLogger(loaded, os.Stderr)
		keys, err := loadKeys(loaded, log)
		if err != nil {
			return err
		}
		warnUnused(loaded, keys, log)
	}
	_, err = fmt.Fprintf(k.Stdout, "%s: no errors\n", cmp.Or(c.File, "environment"))
	return err
}

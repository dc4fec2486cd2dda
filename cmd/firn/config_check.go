package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/alecthomas/kong"

	"firn/internal/config"
	"firn/internal/logs"
)

type configCheckCommand struct {
	Keys       bool   `default:"true" negatable:"" help:"Read the keys that are named, too."`
	ConfigFile string `name:"config" env:"FIRN_CONFIG" placeholder:"FILE" complete:"file" help:"The configuration file. Without one, only the environment is checked."`
	File       string `arg:"" optional:"" complete:"file" help:"The same, without --config."`
}

func (*configCheckCommand) Help() string {
	return `Every error is printed with its line. Keys are read, also the one that an earlier start made, nothing else is touched:
whether a port is free or a store can be read, a start shows.
Where the keys are not, such as where a package or a system is built, --no-keys checks all else.

Examples:

    firn config check /etc/firn/firn.toml
    firn config check --config /etc/firn/firn.toml
    firn config check --no-keys firn.toml
    FIRN_PRIORITY=50 firn config check`
}

// Validate checks that no more than one file is named. FIRN_CONFIG counts where none is.
func (c *configCheckCommand) Validate() error {
	if c.File != "" && c.ConfigFile != "" && c.ConfigFile != os.Getenv("FIRN_CONFIG") {
		return errors.New("name the file once: with --config, or without")
	}
	return nil
}

func (c *configCheckCommand) Run(k *kong.Context) error {
	file := cmp.Or(c.File, c.ConfigFile)
	loaded, origins, err := config.Load(file, os.LookupEnv)
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
	_, err = fmt.Fprintf(k.Stdout, "%s: no errors\n", cmp.Or(file, "environment"))
	return err
}

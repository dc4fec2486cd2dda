package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"firn/internal/config"
)

type configImportCommand struct {
	File string `arg:"" env:"CONFIG_FILE" complete:"file" help:"The configuration file of harmonia. Without one, that of the variable CONFIG_FILE, as harmonia has it."`
}

func (*configImportCommand) Help() string {
	return `What harmonia's settings.toml says is printed as a configuration of firn, with the signing keys that the variable SIGN_KEY_PATHS names,
and a comment for all that has no counterpart. Nothing else is touched.

Examples:

    firn config import /etc/harmonia/settings.toml > firn.toml
    firn config check firn.toml
    firn serve --config firn.toml`
}

// maxHarmonia bounds what is read of a configuration file, in bytes.
const maxHarmonia = 64 << 10

func (c *configImportCommand) Run(k *kong.Context) error {
	if c.File == "" { // an empty variable
		return errors.New("name the configuration file of harmonia, or the variable CONFIG_FILE")
	}
	f, err := os.Open(c.File)
	if err != nil {
		return fmt.Errorf("read configuration of harmonia: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHarmonia+1))
	if err == nil && len(text) > maxHarmonia {
		err = errors.New("it is too long")
	}
	if err != nil {
		return fmt.Errorf("read configuration of harmonia %s: %w", c.File, err)
	}
	converted, err := config.FromHarmonia(c.File, string(text), os.LookupEnv)
	if err != nil {
		return err
	}
	_, err = io.WriteString(k.Stdout, converted)
	return err
}

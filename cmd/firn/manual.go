package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"

	"firn/internal/manual"
)

type manualCommand struct {
	Dir string `arg:"" complete:"dir" help:"The directory, which is made when it is not there."`
}

func (*manualCommand) Help() string {
	return `It is for those who make packages: a page of each command, in section 1.

Examples:

    firn manual /usr/local/share/man/man1`
}

func (c *manualCommand) Run(k *kong.Context) error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return fmt.Errorf("write manual: %w", err)
	}
	pages := manual.Pages(k.Model, version(), describe)
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(c.Dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write manual: %w", err)
		}
	}
	say("Wrote %s to %s.", plural(int64(len(pages)), "page"), c.Dir)
	return nil
}

package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"

	"firn/internal/keyfile"
	"firn/nix"
)

type keyPublicCommand struct {
	Secret string `arg:"" complete:"file" help:"The file of the secret key; - is standard input."`
}

func (*keyPublicCommand) Help() string {
	return `Examples:

    firn key public /etc/firn/secret
    pass show firn | firn key public -`
}

func (c *keyPublicCommand) Run(k *kong.Context) error {
	key, err := c.key()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(k.Stdout, key.Public())
	return err
}

func (c *keyPublicCommand) key() (nix.SecretKey, error) {
	if c.Secret != "-" {
		return keyfile.Load(c.Secret, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	key, err := keyfile.Read(os.Stdin)
	if err != nil {
		return nix.SecretKey{}, fmt.Errorf("read secret key from standard input: %w", err)
	}
	return key, nil
}

package main

import (
	"fmt"

	"github.com/alecthomas/kong"

	"firn/internal/keyfile"
)

type keyGenerateCommand struct {
	Name   string `arg:"" help:"The name of the key, which signatures carry: by custom the name of the cache and a number."`
	Secret string `arg:"" complete:"file" help:"The file to write the secret key to, readable for its owner only."`
	Public string `arg:"" complete:"file" help:"The file to write the public key to."`
}

func (*keyGenerateCommand) Help() string {
	return `The files are those of nix-store --generate-binary-cache-key, and nothing is ever overwritten.
The public key is printed as well.

Examples:

    firn key generate cache.example.org-1 /etc/firn/secret /etc/firn/public
    firn serve --key /etc/firn/secret`
}

func (c *keyGenerateCommand) Run(k *kong.Context) error {
	public, err := keyfile.Generate(c.Name, c.Secret, c.Public)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(k.Stdout, public)
	return err
}

package main

import (
	"github.com/alecthomas/kong"

	"firn/internal/cli"
)

type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

func (*completionCommand) Help() string {
	return `Examples, for the running shell:

    source <(firn completion bash)
    source <(firn completion zsh)
    firn completion fish | source

and for every shell of every user:

    firn completion bash > /usr/share/bash-completion/completions/firn
    firn completion zsh > /usr/local/share/zsh/site-functions/_firn
    firn completion fish > /usr/share/fish/vendor_completions.d/firn.fish`
}

func (c *completionCommand) Run(k *kong.Context) error {
	return cli.WriteCompletion(k.Stdout, c.Shell, k.Model)
}

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"

	"firn/internal/cli"
	"firn/internal/config"
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
	pages := cli.Pages(k.Model, version(), describe, more)
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(c.Dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write manual: %w", err)
		}
	}
	say("Wrote %s to %s.", plural(int64(len(pages)), "page"), c.Dir)
	return nil
}

// more is what the manual says of a command beside its help: how it ends, and which variables and
// files it reads.
func more(n *kong.Node) (m cli.More) {
	m.Exit = []cli.Item{
		{Term: "0", Text: "All went well."},
		{Term: fmt.Sprint(exitFailure), Text: "Something failed; what, is on standard error."},
		{Term: fmt.Sprint(exitUsage), Text: "The command line is wrong, and nothing was done."},
	}
	damaged := cli.Item{Term: fmt.Sprint(exitDamaged), Text: "Of firn verify: something that is kept is damaged or gone."}
	lost := cli.Item{Term: fmt.Sprint(exitDamaged), Text: "Of firn backup: the backup is made, but the server itself has lost some of what was pushed."}
	unknown := cli.Item{Term: fmt.Sprint(exitUnknown), Text: "Of firn doctor: nothing failed, but the main checks were skipped."}
	state := []cli.Item{
		{Term: "/etc/firn/firn.toml", Text: "The configuration file of the Debian package's service, which names it with --config. Without --config none is read."},
		{Term: "STATE/depot/catalog.db", Text: "The catalog: caches, tokens, SSH keys, and pushed paths. STATE is the directory of --state."},
		{Term: "STATE/depot/packs", Text: "The bytes of pushed paths."},
		{Term: "STATE/signing-key.secret, STATE/signing-key.public", Text: "The key that the first start made, where none was given."},
		{Term: "STATE/ssh", Text: "The host keys for SSH."},
	}
	switch n.FullPath() {
	case "firn":
		m.Exit = append(m.Exit, damaged, lost, unknown)
		m.Environment = []cli.Item{
			{Term: "FIRN_CONFIG", Text: "The configuration file, where --config is not given."},
			{Term: "FIRN_*", Text: "The settings, one each: see firn-serve(1)."},
		}
		m.Files = append(state, cli.Item{Term: "/usr/share/doc/firn", Text: "The handbook, where a package has brought it."})
		return m
	case "firn verify":
		m.Exit = append(m.Exit, damaged)
	case "firn backup":
		m.Exit = append(m.Exit, lost)
	case "firn doctor":
		m.Exit = append(m.Exit, unknown)
		m.Environment = []cli.Item{
			{Term: "NO_COLOR", Text: "If it is set, there are no colours on a terminal."},
			{Term: "NIX_CONF_DIR, NIX_USER_CONF_FILES, NIX_CONFIG", Text: "Where the configuration of Nix is, as Nix reads it."},
			{Term: "NIX_SSL_CERT_FILE", Text: "The certificate authorities that Nix trusts."},
		}
	}
	variables := map[string]string{} // of settings, by flag
	for _, s := range config.Settings() {
		variables[s.Key] = s.Variable()
	}
	keepsState := false
	for _, f := range n.Flags {
		keepsState = keepsState || f.Name == "state"
		for _, name := range append(f.Envs, variables[f.Name]) {
			if name != "" && (len(f.Envs) > 0 || f.Tag.Get("toml") != "") {
				m.Environment = append(m.Environment, cli.Item{Term: name, Text: "What --" + f.Name + " says, where that is not given."})
			}
		}
	}
	if !keepsState {
		return m
	}
	if n.FullPath() != "firn serve" && n.FullPath() != "firn config show" {
		m.Environment = append(m.Environment, cli.Item{Term: variables["state"] + " and those of the other settings", Text: "As firn serve reads them: see firn-serve(1)."})
	}
	m.Files = state
	return m
}

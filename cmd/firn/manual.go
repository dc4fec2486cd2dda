package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"

	"firn/internal/cli"
	"firn/internal/config"
)

type manualCommand struct {
	Dir string `arg:"" complete:"dir" help:"The directory that has man1 and man5. They are made if they are not there."`
}

func (*manualCommand) Help() string {
	return `It is for those who make packages: a page of each command, in section 1, and one of the
configuration file, in section 5.

Examples:

    firn manual /usr/local/share/man`
}

func (c *manualCommand) Run(k *kong.Context) error {
	pages := cli.Pages(k.Model, version(), describe, more)
	file, err := settingsPage()
	if err != nil {
		return err
	}
	path, text := file.Page(k.Model.Name, version())
	pages[path] = text
	for path, text := range pages {
		path = filepath.Join(c.Dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write manual: %w", err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write manual: %w", err)
		}
	}
	say("Wrote %s to %s.", plural(int64(len(pages)), "page"), c.Dir)
	return nil
}

// settingsFile is the name of the configuration file, and of its manual page.
const settingsFile = "firn.toml"

// packagedConfig is the configuration file, and packagedHandbook the handbook, of the Debian package.
var (
	packagedConfig = cli.Item{Term: "/etc/firn/firn.toml", Text: "The configuration file of the Debian package's service, which names it with --config. " +
		"Without --config none is read."}
	packagedHandbook = cli.Item{Term: "/usr/share/doc/firn", Text: "The handbook, where a package has brought it."}
)

// settingsPage is the manual page of the configuration file.
func settingsPage() (cli.File, error) {
	f := cli.File{
		Name:    settingsFile,
		Summary: "settings of firn",
		Description: `firn reads its settings from a file in TOML. --config FILE or FIRN_CONFIG names the file. There is no default: without a name, firn reads no file.

Each line is KEY = VALUE. A VALUE is a string in quotation marks, a list of such strings in brackets, a number, or true or false:

    listen = ["127.0.0.1:5000", "unix:/run/firn/firn.sock"]
    log-level = "debug"
    priority = 20

Flags win over variables, variables over the file, and the file over the defaults. A key that firn does not know is an error.

firn config example prints a file with every setting. firn config check FILE finds what is wrong in a file, and firn config show prints what is in effect, and where each value comes from.

SIGHUP, which systemctl reload firn sends, makes a server read keys, certificates and priority again. Everything else needs a restart.`,
		Environment: []cli.Item{
			{Term: "FIRN_CONFIG", Text: "The name of the file, if --config is not given."},
			{Term: "FIRN_*", Text: "The settings, one each: log-level is FIRN_LOG_LEVEL."},
		},
		Files:   []cli.Item{packagedConfig, packagedHandbook},
		SeeAlso: []string{"firn", "firn-serve", "firn-config-check", "firn-config-example", "firn-config-show"},
	}
	defaults, _, err := config.Load("", func(string) (string, bool) { return "", false })
	if err != nil {
		return f, err
	}
	defaults.State = "" // it depends on the user, as the help says
	for _, s := range config.Settings() {
		line, err := defaults.Line(s)
		if err != nil {
			return f, err
		}
		text := s.Help
		if s.Default != "" {
			text += " The default is " + strings.TrimSpace(line) + "."
		} else if s.List {
			text += " The value is a list."
		}
		f.Settings = append(f.Settings, cli.Item{Term: s.Key, Text: text + " As a flag: " + s.Flag() + "; as a variable: " + s.Variable() + "."})
	}
	return f, nil
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
		packagedConfig,
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
		m.Files = append(state, packagedHandbook)
		m.SeeAlso = []string{settingsFile}
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
	if n.Parent != nil && n.Parent.Name == "config" {
		m.SeeAlso = []string{settingsFile}
	}
	for _, f := range n.Flags {
		if f.Name == "config" {
			m.SeeAlso = []string{settingsFile}
		}
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

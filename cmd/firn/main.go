// Command firn is a Nix binary cache.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"firn/internal/catalog"
	"firn/internal/config"
	"firn/internal/nixserve"
)

// commandLine is what can be typed. Each command is a struct with a Run method, in a file of its own.
type commandLine struct {
	Serve serveCommand `cmd:"" help:"Serve the Nix store of this machine, and what is pushed, over HTTP."`
	Key   struct {
		Generate keyGenerateCommand `cmd:"" help:"Make a signing key."`
		Public   keyPublicCommand   `cmd:"" help:"Print the public key of a secret key."`
	} `cmd:"" help:"Make and show signing keys."`
	Cache struct {
		Create cacheCreateCommand `cmd:"" help:"Make a cache."`
		List   cacheListCommand   `cmd:"" help:"List the caches."`
		Show   cacheShowCommand   `cmd:"" help:"Show a cache and its public keys."`
		Set    cacheSetCommand    `cmd:"" help:"Change a cache."`
		Delete cacheDeleteCommand `cmd:"" help:"Delete a cache and all that was pushed to it."`
	} `cmd:"" help:"Make, show and change caches."`
	Path struct {
		List   pathListCommand   `cmd:"" help:"List the store paths that were pushed to a cache."`
		Delete pathDeleteCommand `cmd:"" help:"Delete store paths from a cache."`
	} `cmd:"" help:"List and delete store paths."`
	Token struct {
		Create tokenCreateCommand `cmd:"" help:"Make a token, with which clients push, or read what is private."`
		List   tokenListCommand   `cmd:"" help:"List the tokens."`
		Revoke tokenRevokeCommand `cmd:"" help:"Revoke a token."`
	} `cmd:"" help:"Make and revoke tokens."`
	SSHKey struct {
		Add    sshkeyAddCommand    `cmd:"" help:"Let the holder of an SSH key use caches."`
		List   sshkeyListCommand   `cmd:"" help:"List the SSH keys."`
		Revoke sshkeyRevokeCommand `cmd:"" help:"Revoke an SSH key."`
	} `cmd:"" name:"sshkey" help:"Add and revoke SSH keys."`
	Stdio  stdioCommand  `cmd:"" help:"Serve a cache on standard input and output, as Nix's ssh:// and ssh-ng:// do."`
	Daemon daemonCommand `cmd:"" help:"Serve a cache on a socket, as the Nix daemon serves a store."`
	Verify verifyCommand `cmd:"" help:"Compare what was pushed with its hashes."`
	Backup backupCommand `cmd:"" help:"Copy all that a server keeps into another directory."`
	Export exportCommand `cmd:"" help:"Write a cache as files that any web server serves."`
	Import importCommand `cmd:"" help:"Take over another binary cache."`
	Stats  statsCommand  `cmd:"" help:"Show how much is kept."`
	Doctor doctorCommand `cmd:"" help:"Find out what is wrong with a binary cache, of whatever server."`
	Config struct {
		Check   configCheckCommand   `cmd:"" help:"Check a configuration file, the environment and the keys they name."`
		Show    configShowCommand    `cmd:"" help:"Print the settings in effect and where each comes from."`
		Example configExampleCommand `cmd:"" help:"Print a configuration file with every setting, to begin with."`
		Import  configImportCommand  `cmd:"" help:"Print what a configuration file of harmonia says as one of firn."`
	} `cmd:"" help:"Check, show and begin the configuration, and take over another's."`
	NixServe   nixServeCommand   `cmd:"" help:"Take the place of nix-serve, with its flags."`
	Version    versionCommand    `cmd:"" help:"Print the version."`
	Completion completionCommand `cmd:"" help:"Print the script that completes this command line in a shell."`
	Names      namesCommand      `cmd:"" hidden:""`
	Manual     manualCommand     `cmd:"" help:"Write the manual pages."`
}

// Exit codes.
const (
	exitFailure = 1 // something went wrong
	exitUsage   = 2 // the command line is wrong
	exitDamaged = 3 // firn verify or firn backup: something that is kept is damaged or gone
	exitUnknown = 4 // firn doctor: nothing failed, but the main checks were skipped
)

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == nixserve.Name {
		args = append([]string{nixserve.Name}, args...)
	}
	os.Exit(run(args))
}

// run runs one command and returns the exit code.
func run(args []string) int {
	parser := newParser(&commandLine{})
	switch {
	case len(args) == 0:
		args = []string{"--help"}
	case slices.Equal(args, []string{"--version"}): // what most programs take for it
		args = []string{"version"}
	case args[0] == "help":
		args = append(args[1:len(args):len(args)], "--help")
	}
	command, err := parser.Parse(args)
	if err == nil {
		err = command.Run()
	}
	if err == nil {
		return 0
	}
	for line := range strings.Lines(legible(err.Error())) {
		fmt.Fprintf(os.Stderr, "firn: %s\n", strings.TrimSuffix(line, "\n"))
	}
	if errors.Is(err, catalog.ErrFull) {
		fmt.Fprintln(os.Stderr, "firn: make room on the disk of the state directory, and run this again")
	}
	if errors.Is(err, catalog.ErrCorrupt) {
		fmt.Fprintln(os.Stderr, "firn: stop the server, and bring back the catalog and the packs beside it from one backup, with the catalog's -wal if that is there; "+
			"paths that were pushed since then have to be pushed again. To forget all pushed paths, remove both")
	}
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.ExitCode() != exitFailure {
		fmt.Fprintln(os.Stderr, "firn: --help after any command says what it takes")
		return exitUsage
	}
	if errors.Is(err, errDamaged) {
		return exitDamaged
	}
	if errors.Is(err, errUnknown) {
		return exitUnknown
	}
	return exitFailure
}

// noValue matches what the parser says of a flag behind which there is nothing.
var noValue = regexp.MustCompile(`^(--[a-z-]+): expected \w+ value but got "EOL" \(<EOL>\)$`)

// legible is an error without the parser's own words for what it has read.
func legible(text string) string {
	text = noValue.ReplaceAllString(text, "$1: a value is missing")
	return strings.ReplaceAll(text, " (short flag)", "")
}

// newParser returns what reads a command line into c.
func newParser(c *commandLine) *kong.Kong {
	return kong.Must(c,
		kong.Name("firn"),
		kong.Description("firn is a Nix binary cache: it serves store paths to every machine with Nix."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.ValueFormatter(describe),
	)
}

// describe is the help of a flag or an argument. That of a setting names its default and its variable too.
func describe(v *kong.Value) string {
	for _, s := range config.Settings() {
		if v.Flag != nil && v.Tag.Get("toml") == s.Key {
			names := "$" + s.Variable()
			if s.Default != "" {
				names = "default: " + s.Default + "; " + names
			}
			return v.Help + " (" + names + ")"
		}
	}
	return kong.DefaultHelpValueFormatter(v)
}

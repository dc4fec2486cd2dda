package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"

	"firn/internal/cache"
	"firn/internal/logs"
	"firn/internal/registry"
	"firn/internal/transfer"
	"firn/nix"
)

// maxKeyFile bounds a file of public keys, in bytes: some thousand keys.
const maxKeyFile = 128 << 10

type importCommand struct {
	stateFlags
	Cache             string   `default:"main" placeholder:"NAME" complete:"@cache" help:"The cache to import into. By default main."`
	TrustedPublicKeys string   `placeholder:"FILE" complete:"file" help:"Take only what is content-addressed, or signed by a key in FILE, which has them as nix.conf does. By default everything."`
	NetrcFile         string   `placeholder:"FILE" complete:"file" help:"Find user and password for the other server in FILE, as curl and Nix do."`
	Logs              bool     `help:"Of store paths that are named, ask for the build logs too."`
	JSON              bool     `name:"json" help:"Print JSON."`
	From              string   `arg:"" help:"The other binary cache: a URL (http, https, file) or a directory."`
	Path              []string `arg:"" optional:"" help:"Import these store paths with all that they refer to. By default all, which takes a directory, as servers do not list what they have."`
}

func (*importCommand) Help() string {
	return `Everything is verified as if a client pushed it, and signatures are kept. What is there already is not fetched again,
so an import that was ended goes on where it was. The server may go on running.

Examples:

    firn import /srv/cache
    firn import --cache team --state /var/lib/firn file:///srv/cache
    firn import --trusted-public-keys keys https://cache.example.org /nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-hello-2.12`
}

func (c *importCommand) Run(k *kong.Context) (err error) {
	ctx, cancel := untilSignal()
	defer cancel()
	cfg, err := c.load()
	if err != nil {
		return err
	}
	opts := transfer.ImportOptions{Logs: c.Logs, Netrc: c.NetrcFile, UserAgent: "firn/" + version()}
	if c.TrustedPublicKeys != "" {
		if opts.TrustedKeys, err = readPublicKeys(c.TrustedPublicKeys); err != nil {
			return err
		}
	}
	if err := checkOwner(filepath.Join(cfg.State, depotDir)); err != nil {
		return err
	}
	log := logs.NewLogger(cfg, os.Stderr)
	held, err := holdBackup(cfg.State)
	if err != nil {
		return err
	}
	defer held.Close()
	d, err := c.makeDepot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	keys, err := servingKeys(cfg, log)
	if err != nil {
		return err
	}
	// Without the local store: what is there would not be kept, and a server may not serve it.
	into, err := d.cache(ctx, c.Cache, registry.Options{LocalLeftOut: true, Keys: keys, Priority: int(cfg.Priority), Logger: log})
	if err != nil {
		return err
	}
	roots, err := parsePaths(into, c.Path)
	if err != nil {
		return err
	}
	p := newProgress("importing")
	opts.Progress, opts.Retry = p.paths, p.retry
	opts.Begin = func() error { return held.remove(log) }
	done, err := transfer.Import(cache.WithPublisher(ctx, "firn import"), c.From, into, roots, opts)
	p.end()
	return transferred(k, "imported", c.JSON, done, err)
}

// readPublicKeys reads the keys in a file, separated by spaces or lines.
func readPublicKeys(path string) ([]nix.PublicKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read trusted public keys: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(text) > maxKeyFile {
		err = fmt.Errorf("longer than %d bytes", maxKeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read trusted public keys %s: %w", path, err)
	}
	keys, err := parsePublicKeys(string(text))
	if err != nil {
		return nil, fmt.Errorf("read trusted public keys %s: %w; want nothing in it but keys such as cache-1:BASE64", path, err)
	}
	if len(keys) == 0 { // which would mean: trust everything
		return nil, fmt.Errorf("read trusted public keys %s: there is none in it", path)
	}
	return keys, nil
}

// parsePublicKeys parses keys that are separated by spaces or lines.
func parsePublicKeys(text string) (keys []nix.PublicKey, err error) {
	for word := range strings.FieldsSeq(text) {
		key, err := nix.ParsePublicKey(word)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

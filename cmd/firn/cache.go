package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/alecthomas/kong"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/config"
	"firn/internal/keyfile"
	"firn/internal/logs"
	"firn/internal/registry"
	"firn/nix"
)

// cacheSettings are the flags that a cache is made with or changed by.
type cacheSettings struct {
	Private                *bool    `negatable:"" help:"Reading needs a token."`
	Source                 []string `placeholder:"SOURCE" enum:"local,depot" complete:"local,depot" help:"Where it finds store paths, in order: local is the store of this machine, depot what is pushed. May be given several times."`
	Priority               *int     `placeholder:"NUMBER" help:"What clients that know several caches order them by, the lowest first. cache.nixos.org has 40."`
	Host                   []string `placeholder:"NAME" help:"A host name under which it answers at the root. May be given several times."`
	Key                    []string `placeholder:"FILE" complete:"file" help:"Sign with the secret key in FILE, which is copied. May be given several times."`
	AllowMissingReferences *bool    `negatable:"" help:"Accept store paths whose references are not in the cache."`
}

// apply changes a record.
func (s *cacheSettings) apply(c *catalog.Cache) error {
	if s.Private != nil {
		c.Private = *s.Private
	}
	if s.AllowMissingReferences != nil {
		c.AllowMissingReferences = *s.AllowMissingReferences
	}
	if s.Priority != nil {
		c.Priority = *s.Priority
	}
	if s.Source != nil {
		c.Sources = s.Source
	}
	if s.Host != nil {
		c.Hosts = nil
		for _, host := range s.Host {
			if host != "" { // --host "" takes all away
				c.Hosts = append(c.Hosts, strings.ToLower(host))
			}
		}
	}
	if s.Key != nil {
		c.Keys = nil
		if err := addKeys(c, s.Key); err != nil {
			return err
		}
	}
	return nil
}

// addKeys adds the keys in files.
func addKeys(c *catalog.Cache, files []string) error {
	for _, file := range files {
		key, err := keyfile.Load(file, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			return err
		}
		c.Keys = append(c.Keys[:len(c.Keys):len(c.Keys)], key)
	}
	return nil
}

type cacheCreateCommand struct {
	stateFlags
	cacheSettings
	Name     string `arg:"" help:"The name: small letters, digits, '-', '_' and '.'. It is the first element of the URL."`
	StoreDir string `env:"NIX_STORE_DIR" default:"/nix/store" placeholder:"DIR" help:"The store directory of its store paths, which cannot be changed."`
	JSON     bool   `name:"json" help:"Print JSON, as firn cache show does."`
}

func (*cacheCreateCommand) Help() string {
	return `The cache answers at /NAME/ at once, also on a server that runs. Unless keys are given,
one named HOSTNAME-NAME-1 is made. The public keys are printed: clients have to trust them.

Examples:

    firn cache create team
    firn cache create secret --private --priority 50
    firn cache create ci --host ci.example.org --key /etc/firn/ci-secret`
}

func (c *cacheCreateCommand) Run(k *kong.Context) error {
	if c.Name == cache.Main {
		return fmt.Errorf("the cache %s always exists; firn cache set changes it", cache.Main)
	}
	r := registry.Record(c.Name)
	var err error
	if r.StoreDir, err = nix.ParseStoreDir(c.StoreDir); err != nil {
		return fmt.Errorf("--store-dir: %w", err)
	}
	if err := c.apply(r); err != nil {
		return err
	}
	if err := registry.Check(r); err != nil {
		return err
	}
	if len(r.Keys) == 0 {
		hostname, _ := os.Hostname() // without one, firn
		key, err := nix.GenerateKey(keyfile.NameFor(hostname, c.Name))
		if err != nil {
			return err
		}
		r.Keys = []nix.SecretKey{key}
	}
	return withCatalog(c.makeCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		if err := cat.AddCache(ctx, r); err != nil {
			return conflict(err)
		}
		if c.JSON {
			return writeJSON(k.Stdout, showCache(r))
		}
		say("Cache %s created. It answers at /%s/. Clients have to trust this key:", r.Name, r.Name)
		for _, key := range r.Keys {
			fmt.Fprintln(k.Stdout, key.Public())
		}
		return nil
	})
}

// conflict says what a person can do about a name that is taken.
func conflict(err error) error {
	if errors.Is(err, catalog.ErrConflict) {
		return fmt.Errorf("%w; choose another, or change what there is with firn cache set", err)
	}
	return err
}

type cacheListCommand struct {
	stateFlags
	JSON bool `name:"json" help:"Print JSON."`
}

func (*cacheListCommand) Help() string {
	return `Examples:

    firn cache list
    firn cache list --json --state /var/lib/firn`
}

func (c *cacheListCommand) Run(k *kong.Context) error {
	return withCatalog(c.openCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		all, err := registry.Records(ctx, cat)
		if err != nil {
			return err
		}
		if c.JSON {
			shown := make([]shownCache, len(all))
			for i, r := range all {
				if shown[i], err = c.show(r); err != nil {
					return err
				}
			}
			return writeJSON(k.Stdout, shown)
		}
		settings, err := c.load()
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(k.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tACCESS\tSOURCES\tPRIORITY\tHOSTS")
		for _, r := range all {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", r.Name, accessOf(r), strings.Join(sourcesOf(r, settings), ", "), r.Priority, strings.Join(r.Hosts, " "))
		}
		return w.Flush()
	})
}

// sourcesOf are the sources that a server with these settings gives a cache: there is no local
// store where that is off.
func sourcesOf(r *catalog.Cache, c *config.Config) []string {
	if c.Store != config.StoreOff {
		return r.Sources
	}
	return slices.DeleteFunc(slices.Clone(r.Sources), func(source string) bool { return source == catalog.SourceLocal })
}

func accessOf(r *catalog.Cache) string {
	if r.Private {
		return "private"
	}
	return "public"
}

// shownCache is what is shown of a cache; no secret is.
type shownCache struct {
	Name                   string   `json:"name"`
	Private                bool     `json:"private"`
	Sources                []string `json:"sources"`
	StoreDir               string   `json:"storeDir"`
	Priority               int      `json:"priority"`
	Hosts                  []string `json:"hosts"`
	AllowMissingReferences bool     `json:"allowMissingReferences"`
	PublicKeys             []string `json:"publicKeys"`
	Created                string   `json:"created"`
}

func showCache(r *catalog.Cache) shownCache {
	s := shownCache{
		Name: r.Name, Private: r.Private, Sources: r.Sources, StoreDir: string(r.StoreDir), Priority: r.Priority,
		Hosts: append([]string{}, r.Hosts...), AllowMissingReferences: r.AllowMissingReferences,
		PublicKeys: []string{}, Created: r.Created.Format("2006-01-02T15:04:05Z07:00"),
	}
	for _, key := range r.Keys {
		s.PublicKeys = append(s.PublicKeys, key.Public().String())
	}
	return s
}

// show is showCache as the server has it: without the local store where that is off, and for main
// with the keys that are not in the catalog, those that the server has of its settings, or has
// made.
func (f *stateFlags) show(r *catalog.Cache) (shownCache, error) {
	s := showCache(r)
	c, err := f.load()
	if err != nil {
		return s, err
	}
	s.Sources = sourcesOf(r, c)
	if r.Name != cache.Main {
		return s, nil
	}
	keys, err := servingKeys(c, logs.NewLogger(c, os.Stderr))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		// systemd's credentials are there for the server only, and while that runs.
		say("The keys that main has of the server are not shown: %v", err)
	} else if err != nil {
		return s, err
	}
	own := make([]string, len(keys))
	for i, key := range keys {
		own[i] = key.Public().String()
	}
	s.PublicKeys = append(own, s.PublicKeys...)
	return s, nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type cacheShowCommand struct {
	stateFlags
	Name string `arg:"" complete:"@cache" help:"The name of the cache."`
	JSON bool   `name:"json" help:"Print JSON."`
}

func (*cacheShowCommand) Help() string {
	return `Secret keys are not shown. Among those of main are the ones of the configuration, or the one that the server made;
of keys in flags of the server, and in systemd's credentials, this command does not know.

Examples:

    firn cache show main
    firn cache show team --json`
}

func (c *cacheShowCommand) Run(k *kong.Context) error {
	return withCatalog(c.openCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		r, err := record(ctx, cat, c.Name)
		if err != nil {
			return err
		}
		s, err := c.show(r)
		if err != nil {
			return err
		}
		if c.JSON {
			return writeJSON(k.Stdout, s)
		}
		w := tabwriter.NewWriter(k.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "name\t%s\naccess\t%s\nsources\t%s\nstore directory\t%s\npriority\t%d\n", s.Name, accessOf(r), strings.Join(s.Sources, ", "), s.StoreDir, s.Priority)
		fmt.Fprintf(w, "hosts\t%s\nmissing references\t%s\n", strings.Join(s.Hosts, " "), missingReferences(r))
		for _, key := range s.PublicKeys {
			fmt.Fprintf(w, "public key\t%s\n", key)
		}
		fmt.Fprintf(w, "created\t%s\n", s.Created)
		return w.Flush()
	})
}

type cacheSetCommand struct {
	stateFlags
	cacheSettings
	AddKey  []string `placeholder:"FILE" complete:"file" help:"Sign with the secret key in FILE too, which is copied. May be given several times."`
	DropKey []string `placeholder:"NAME" complete:"@key" help:"Sign no more with the key of this name, and forget it. May be given several times."`
	Name    string   `arg:"" complete:"@cache" help:"The name of the cache."`
}

func (*cacheSetCommand) Help() string {
	return `What is not named stays as it is. What is named, and may be there several times, is replaced as a whole.
A server that runs heeds it at once, and main can be set before the first start. --host "" takes all host names away.

To change a key, add the new one, give its public key to the clients, and drop the old one after 30 days:
so long clients remember signatures.

Examples:

    firn cache set team --private
    firn cache set team --no-private --priority 20
    firn cache set team --add-key /etc/firn/team-2
    firn cache set team --drop-key old-team-1
    firn cache set main --host cache.example.org --host cache`
}

func (c *cacheSetCommand) Run() error {
	if reflect.ValueOf(c.cacheSettings).IsZero() && len(c.AddKey) == 0 && len(c.DropKey) == 0 {
		return fmt.Errorf("there is nothing to change: say what, such as firn cache set %s --private; firn cache show %s shows how it is", c.Name, c.Name)
	}
	if c.Name == cache.Main && c.Priority != nil {
		return fmt.Errorf("the priority of the cache %s is a setting of the server: see firn serve --priority", cache.Main)
	}
	open := c.changeCatalog
	if c.Name == cache.Main {
		open = c.makeCatalog // it always exists, so it can be private before it is first served
	}
	return withCatalog(open, func(ctx context.Context, cat *sqlite.Catalog) error {
		var r, changed *catalog.Cache
		err := catalog.ErrChanged
		for errors.Is(err, catalog.ErrChanged) { // by another command
			if r, err = record(ctx, cat, c.Name); err != nil {
				return err
			}
			if changed, err = c.changed(r); err != nil {
				return err
			}
			err = cat.SetCache(ctx, r, changed)
		}
		if err != nil {
			return conflict(err)
		}
		if now := differences(r, changed); len(now) > 0 {
			say("Cache %s changed: %s.", r.Name, strings.Join(now, "; "))
		} else {
			say("Cache %s unchanged.", r.Name)
		}
		return nil
	})
}

// changed returns a record as it is to be.
func (c *cacheSetCommand) changed(r *catalog.Cache) (*catalog.Cache, error) {
	changed := *r
	if err := c.apply(&changed); err != nil {
		return nil, err
	}
	for _, name := range c.DropKey {
		rest := slices.DeleteFunc(slices.Clone(changed.Keys), func(k nix.SecretKey) bool { return k.Name() == name })
		if len(rest) == len(changed.Keys) {
			return nil, fmt.Errorf("--drop-key: the cache %s has no key named %s; firn cache show %s shows those that it has", c.Name, name, c.Name)
		}
		changed.Keys = rest
	}
	if err := addKeys(&changed, c.AddKey); err != nil {
		return nil, err
	}
	if len(changed.Keys) == 0 && c.Name != cache.Main {
		return nil, fmt.Errorf("the cache %s would have no key, and clients would trust nothing that it serves; add another one with --add-key", c.Name)
	}
	return &changed, registry.Check(&changed)
}

// differences says how a cache is now, as far as it was otherwise.
func differences(old, now *catalog.Cache) (all []string) {
	for _, d := range []struct {
		differs bool
		is      string
	}{
		{old.Private != now.Private, "it is " + accessOf(now)},
		{!slices.Equal(old.Sources, now.Sources), "its sources are " + strings.Join(now.Sources, ", ")},
		{old.Priority != now.Priority, fmt.Sprint("its priority is ", now.Priority)},
		{!slices.Equal(old.Hosts, now.Hosts), "its host names are " + cmp.Or(strings.Join(now.Hosts, ", "), "none")},
		{old.AllowMissingReferences != now.AllowMissingReferences, "missing references are " + missingReferences(now)},
		{!slices.EqualFunc(old.Keys, now.Keys, func(a, b nix.SecretKey) bool { return a.Reveal() == b.Reveal() }), "its own keys are " + cmp.Or(keyNames(now), "none")},
	} {
		if d.differs {
			all = append(all, d.is)
		}
	}
	return all
}

func missingReferences(r *catalog.Cache) string {
	if r.AllowMissingReferences {
		return "allowed"
	}
	return "refused"
}

func keyNames(r *catalog.Cache) string {
	var names []string
	for _, key := range r.Keys {
		names = append(names, key.Name())
	}
	return strings.Join(names, ", ")
}

type cacheDeleteCommand struct {
	stateFlags
	Name string `arg:"" complete:"@cache" help:"The name of the cache."`
	Yes  bool   `help:"Do not ask."`
}

func (*cacheDeleteCommand) Help() string {
	return `The cache and all that was pushed to it are gone at once. What no other cache has is removed from disk a day later.

Examples:

    firn cache delete team
    firn cache delete team --yes`
}

func (c *cacheDeleteCommand) Run() error {
	if c.Name == cache.Main {
		return fmt.Errorf("the cache %s always exists; firn cache set can make it private", cache.Main)
	}
	return withCatalog(c.changeCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		r, err := record(ctx, cat, c.Name)
		if err != nil {
			return err
		}
		counts, err := cat.CountIn(ctx, r.ID)
		if err != nil {
			return err
		}
		what := fmt.Sprintf("Deleting the cache %s and what was pushed to it, %s,", c.Name, plural(counts.Paths, "path"))
		if err := confirm(what, c.Yes); err != nil {
			return err
		}
		if err := cat.DeleteCache(ctx, r.ID); err != nil {
			return err
		}
		say("Cache %s deleted, with %s.", r.Name, plural(counts.Paths, "path"))
		return nil
	})
}

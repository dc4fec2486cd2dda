package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"firn/internal/access"
	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/registry"
)

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

type tokenCreateCommand struct {
	stateFlags
	Name string `arg:"" help:"A name for the token, to revoke it by and to find it in logs: who or what holds it."`
	rightsFlags
	Certificate string `placeholder:"FILE" complete:"file" help:"Use the certificate in FILE instead of a secret: clients that present it over TLS, to a server with --client-certs, get these rights. If it belongs to an authority, so do clients that present a certificate that it signed, followed by the authority's own."`
	JSON        bool   `name:"json" help:"Print JSON."`
}

// rightsFlags say what a token or a key allows, and for how long.
type rightsFlags struct {
	Read    []string `placeholder:"PATTERN" complete:"@cache" help:"Read the private caches whose names match, such as main, team-* or '*'. May be given several times."`
	Push    []string `placeholder:"PATTERN" complete:"@cache" help:"Push to the caches whose names match, and read them."`
	Admin   []string `placeholder:"PATTERN" complete:"@cache" help:"As --push; with main among them, also see all of /metrics from other machines. Deleting takes a command on the server, such as firn path delete."`
	Expires string   `placeholder:"TIME" help:"How long it is good for, such as 12h or 90d. By default until it is revoked."`
}

// grants returns the rights that are given, and the time at which they end, zero if they do not.
func (f *rightsFlags) grants(what string) (grants []catalog.Grant, expires time.Time, err error) {
	for _, g := range []struct {
		patterns []string
		rights   cache.Rights
	}{{f.Read, cache.Read}, {f.Push, cache.Push}, {f.Admin, cache.Admin}} {
		for _, pattern := range g.patterns {
			grants = append(grants, catalog.Grant{Pattern: pattern, Rights: uint8(g.rights)})
		}
	}
	if len(grants) == 0 {
		return nil, time.Time{}, fmt.Errorf("the %s would have no rights: say --push, --read or --admin with the name of a cache, such as --push main", what)
	}
	if f.Expires != "" {
		d, err := parsePeriod(f.Expires)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("--expires: %w", err)
		}
		expires = now().Add(d)
	}
	return grants, expires, nil
}

func (*tokenCreateCommand) Help() string {
	return `The token is printed on standard output, and never again: only a hash of it is kept.
It is good at once, also on a server that runs. Clients send it as the password of HTTP Basic, with any user name, or as Bearer.

Examples:

    firn token create --push main ci
    firn token create --read 'team-*' --expires 90d laptop-of-alice
    firn token create --push main --certificate builder.pem builder`
}

func (c *tokenCreateCommand) Run(k *kong.Context) error {
	grants, expires, err := c.grants("token")
	if err != nil {
		return err
	}
	var secret string
	var token *catalog.Token
	if c.Certificate != "" {
		var text []byte
		if text, err = readPublicKey(c.Certificate); err == nil {
			token, err = access.NewCertificate(c.Name, text, grants, expires)
		}
	} else {
		secret, token, err = access.NewToken(c.Name, grants, expires)
	}
	if err != nil {
		return err
	}
	return withCatalog(c.makeCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		if err := cat.AddToken(ctx, token); err != nil {
			if errors.Is(err, catalog.ErrConflict) && c.Certificate != "" {
				return fmt.Errorf("there is a token named %s already, or one of this very certificate; firn token list shows them, and firn token revoke removes one", c.Name)
			}
			if errors.Is(err, catalog.ErrConflict) {
				return fmt.Errorf("there is a token named %s already; choose another name, or revoke it with firn token revoke %s", c.Name, c.Name)
			}
			return err
		}
		if err := warnUnmatched(ctx, cat, grants); err != nil {
			return err
		}
		if c.JSON {
			return writeJSON(k.Stdout, struct {
				shownToken
				Secret string `json:"token,omitempty"` // empty: of a certificate
			}{show(token.Name, token.Created, token.Expires, token.Used, token.Grants), secret})
		}
		if secret == "" {
			say("Clients with the certificate in %s may, as %s: %s.", c.Certificate, c.Name, grantsText(grants))
			return nil
		}
		fmt.Fprintf(os.Stderr, "This is the only time that the token is shown. Put it into a file that only Nix can read, such as /etc/nix/netrc:\n\n"+
			"    machine HOST login %s password TOKEN\n\n%s\n\n", c.Name, useOf(grants))
		_, err = fmt.Fprintln(k.Stdout, secret)
		return err
	})
}

// useOf says what a client types who has these rights.
func useOf(grants []catalog.Grant) string {
	best, name := mostUseful(grants), exampleCache(grants)
	at := "http://HOST:5000"
	if name != cache.Main {
		at += "/" + name
	}
	if cache.Rights(best.Rights) < cache.Push {
		return "Then, in nix.conf: extra-substituters = " + at + "\nand in extra-trusted-public-keys: the public key that firn cache show " + name + " prints"
	}
	return "Then: nix copy --to " + at + " --option netrc-file /etc/nix/netrc PATH"
}

// exampleCache is a cache that the most useful of some rights is for, or NAME where that is for several.
func exampleCache(grants []catalog.Grant) string {
	if best := mostUseful(grants); !strings.ContainsAny(best.Pattern, `*?[\`) {
		return best.Pattern
	}
	return "NAME"
}

func mostUseful(grants []catalog.Grant) catalog.Grant {
	return slices.MaxFunc(grants, func(a, b catalog.Grant) int { return cmp.Compare(a.Rights, b.Rights) })
}

// warnUnmatched tells of patterns that match no cache, as a name that is typed wrong.
func warnUnmatched(ctx context.Context, cat catalog.Caches, grants []catalog.Grant) error {
	all, err := registry.Records(ctx, cat)
	if err != nil {
		return err
	}
	for _, g := range grants {
		if !slices.ContainsFunc(all, func(r *catalog.Cache) bool { ok, _ := path.Match(g.Pattern, r.Name); return ok }) {
			fmt.Fprintf(os.Stderr, "No cache matches %s yet.\n", g.Pattern)
		}
	}
	return nil
}

// parsePeriod parses a duration that may be in days.
func parsePeriod(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		const most = 36500
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n <= most {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	} else if d, err := time.ParseDuration(text); err == nil && d >= time.Second {
		return d, nil
	}
	return 0, fmt.Errorf("%q is not a time such as 12h or 90d", text)
}

type tokenListCommand struct {
	stateFlags
	JSON bool `name:"json" help:"Print JSON."`
}

func (*tokenListCommand) Help() string {
	return `When a token was used last is known to some minutes.

Examples:

    firn token list
    firn token list --json`
}

// shownToken is what is shown of a token.
type shownToken struct {
	Name    string       `json:"name"`
	Created string       `json:"created"`
	Expires string       `json:"expires,omitempty"`
	Expired bool         `json:"expired"`
	Used    string       `json:"lastUsed,omitempty"` // to some minutes; empty: never
	Grants  []shownGrant `json:"grants"`
}

type shownGrant struct {
	Right   string `json:"right"`
	Pattern string `json:"pattern"`
}

func (c *tokenListCommand) Run(k *kong.Context) error {
	return withCatalog(c.openCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		all, err := cat.AllTokens(ctx)
		if err != nil {
			return err
		}
		shown := make([]shownToken, len(all))
		for i, t := range all {
			shown[i] = show(t.Name, t.Created, t.Expires, t.Used, t.Grants)
		}
		if c.JSON {
			return writeJSON(k.Stdout, shown)
		}
		w := tabwriter.NewWriter(k.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tRIGHTS\tCREATED\tLAST USED\tEXPIRES")
		for _, s := range shown {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Name, s.rights(), s.Created, s.used(), s.end())
		}
		return w.Flush()
	})
}

func show(name string, created, expires, used time.Time, grants []catalog.Grant) shownToken {
	s := shownToken{Name: name, Created: created.Format(time.RFC3339), Grants: []shownGrant{}}
	if !expires.IsZero() {
		s.Expires, s.Expired = expires.Format(time.RFC3339), !expires.After(now())
	}
	if !used.IsZero() {
		s.Used = used.Format(time.RFC3339)
	}
	for _, g := range grants {
		s.Grants = append(s.Grants, shownGrant{rightName(cache.Rights(g.Rights)), g.Pattern})
	}
	return s
}

// rights are the grants for a table.
func (s *shownToken) rights() string {
	var rights []string
	for _, g := range s.Grants {
		rights = append(rights, g.Right+" "+g.Pattern)
	}
	return strings.Join(rights, ", ")
}

// grantsText says what grants allow.
func grantsText(grants []catalog.Grant) string {
	s := show("", time.Time{}, time.Time{}, time.Time{}, grants)
	return s.rights()
}

// used is the time of the last use for a table.
func (s *shownToken) used() string { return cmp.Or(s.Used, "never") }

// end is the time of expiry for a table.
func (s *shownToken) end() string {
	switch {
	case s.Expired:
		return s.Expires + " (expired)"
	case s.Expires == "":
		return "never"
	}
	return s.Expires
}

func rightName(r cache.Rights) string {
	switch {
	case r&cache.Admin != 0:
		return "admin"
	case r&cache.Push != 0:
		return "push"
	}
	return "read"
}

type tokenRevokeCommand struct {
	stateFlags
	Name string `arg:"" complete:"@token" help:"The name of the token."`
}

func (*tokenRevokeCommand) Help() string {
	return `A running server refuses the token from now on.

Examples:

    firn token revoke ci`
}

func (c *tokenRevokeCommand) Run() error {
	return withCatalog(c.changeCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		err := cat.RevokeToken(ctx, c.Name)
		if errors.Is(err, catalog.ErrNotFound) {
			return fmt.Errorf("there is no token named %s; firn token list shows those that there are", c.Name)
		}
		if err == nil {
			say("Token %s revoked.", c.Name)
		}
		return err
	})
}

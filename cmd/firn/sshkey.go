package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/alecthomas/kong"
	"golang.org/x/crypto/ssh"

	"firn/internal/access"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
)

type sshkeyAddCommand struct {
	stateFlags
	Name string `arg:"" help:"A name for the key, to revoke it by and to find it in logs: who or what holds it."`
	File string `arg:"" placeholder:"KEY.pub" complete:"file" help:"The public key, a file such as id_ed25519.pub; - is standard input."`
	rightsFlags
	Authority  bool     `help:"This is the key of an authority, with which ssh-keygen -s signs certificates: clients with such a certificate get these rights. Each certificate needs the name of the cache as a principal."`
	Principals []string `name:"principal" placeholder:"NAME" help:"Take certificates of the authority that have this principal, instead of the name of the cache. May be given several times."`
}

func (*sshkeyAddCommand) Help() string {
	return `The key is good at once, also on a server that runs. Clients name the cache as the user: ssh://main@HOST

Examples:

    firn sshkey add ci ci.pub --push main
    firn sshkey add alice ~/.ssh/id_ed25519.pub --read 'team-*' --expires 90d
    firn sshkey add staff ca.pub --authority --principal staff --push main`
}

func (c *sshkeyAddCommand) Run() error {
	grants, expires, err := c.grants("key")
	if err != nil {
		return err
	}
	text, err := readPublicKey(c.File)
	if err != nil {
		return err
	}
	key, err := access.NewSSHKey(c.Name, text, grants, access.SSHKeyOptions{Authority: c.Authority, Users: c.Principals, Expires: expires})
	if err != nil {
		return err
	}
	return withCatalog(c.makeCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		if err := cat.AddSSHKey(ctx, key); err != nil {
			if errors.Is(err, catalog.ErrConflict) {
				return fmt.Errorf("there is a key named %s already, or this very key under another name; firn sshkey list shows them, and firn sshkey revoke removes one", c.Name)
			}
			return err
		}
		if err := warnUnmatched(ctx, cat, grants); err != nil {
			return err
		}
		who := "SSH key"
		if c.Authority {
			who = "Certificates of authority"
		}
		say("%s %s: may %s from now on.", who, c.Name, grantsText(grants))
		say("The user name is that of the cache: NIX_SSHOPTS='-p PORT' nix copy --to ssh-ng://%s@HOST PATH", exampleCache(grants))
		return nil
	})
}

// readPublicKey reads the file of a public key.
func readPublicKey(path string) ([]byte, error) {
	in := os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read public key: %w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxKeyFile+1))
	if err == nil && len(text) > maxKeyFile {
		err = fmt.Errorf("longer than %d bytes", maxKeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read public key %s: %w", path, err)
	}
	return text, nil
}

type sshkeyListCommand struct {
	stateFlags
	JSON bool `name:"json" help:"Print JSON."`
}

func (*sshkeyListCommand) Help() string {
	return `Examples:

    firn sshkey list
    firn sshkey list --json`
}

// shownKey is what is shown of an SSH key.
type shownKey struct {
	shownToken
	Authority   bool     `json:"authority"`
	Principals  []string `json:"principals,omitempty"`
	Type        string   `json:"type"`
	Fingerprint string   `json:"fingerprint"`
}

func (c *sshkeyListCommand) Run(k *kong.Context) error {
	return withCatalog(c.openCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		all, err := cat.AllSSHKeys(ctx)
		if err != nil {
			return err
		}
		shown := make([]shownKey, len(all))
		for i, record := range all {
			key, err := ssh.ParsePublicKey(record.Key)
			if err != nil {
				return fmt.Errorf("read SSH key %s: %w", record.Name, err)
			}
			shown[i] = shownKey{
				shownToken: show(record.Name, record.Created, record.Expires, record.Used, record.Grants),
				Authority:  record.Authority, Principals: record.Users,
				Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key),
			}
		}
		if c.JSON {
			return writeJSON(k.Stdout, shown)
		}
		w := tabwriter.NewWriter(k.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tRIGHTS\tCREATED\tLAST USED\tEXPIRES\tKEY")
		for _, s := range shown {
			key := s.Fingerprint + " " + s.Type
			if s.Authority {
				key += " (authority)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.rights(), s.Created, s.used(), s.end(), key)
		}
		return w.Flush()
	})
}

type sshkeyRevokeCommand struct {
	stateFlags
	Name string `arg:"" complete:"@sshkey" help:"The name of the key."`
}

func (*sshkeyRevokeCommand) Help() string {
	return `A running server refuses the key from now on, on open connections too.
Revoking an authority revokes all of its certificates.

Examples:

    firn sshkey revoke ci`
}

func (c *sshkeyRevokeCommand) Run() error {
	return withCatalog(c.changeCatalog, func(ctx context.Context, cat *sqlite.Catalog) error {
		err := cat.RevokeSSHKey(ctx, c.Name)
		if errors.Is(err, catalog.ErrNotFound) {
			return fmt.Errorf("there is no key named %s; firn sshkey list shows those that there are", c.Name)
		}
		if err == nil {
			say("SSH key %s revoked.", c.Name)
		}
		return err
	})
}

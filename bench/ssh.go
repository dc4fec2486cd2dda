//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"firn/nix"
)

// overSSH is the title of the section about copies over SSH.
const overSSH = "Copies over SSH"

// ssh has real Nix copy a part of the closure over SSH in both directions: to and from each build
// of firn, and to and from the Nix of this machine behind OpenSSH, which writes the paths into an
// empty store of its own and registers them there.
func (b *bench) ssh(ctx context.Context, m *material) error {
	all := slices.Clone(b.programs)
	if _, err := os.Stat(daemon("sshd")); err == nil {
		all = append(all, program{column: openSSH})
	} else {
		b.progress("%s is not installed: firn is measured alone", daemon("sshd"))
	}
	for round := range b.opts.Copies {
		for _, scheme := range []string{"ssh", "ssh-ng"} {
			if err := turns(round, all, func(p program) error { return b.sshOnce(ctx, p, scheme, m.pushed) }); err != nil {
				return err
			}
		}
	}
	for _, p := range b.programs {
		if err := b.sshAtOnce(ctx, p, m); err != nil {
			return err
		}
	}
	return nil
}

// sshOnce copies paths to an empty server, once more, and back.
func (b *bench) sshOnce(ctx context.Context, p program, scheme string, of generation) error {
	end, err := b.startSSH(ctx, p)
	if err != nil {
		return err
	}
	defer end.stop()
	for _, step := range []struct {
		what     string
		from, to string
		bar      Bar
	}{
		{"push", of.Root, end.url(scheme), Bar{}},
		{"push of what is there", of.Root, end.url(scheme), atMost(1, "")},
		{"pull", end.url(scheme), filepath.Join(end.files, "pulled"), atMost(0.9, openSSH)},
	} {
		unix.Sync() // so that nothing waits for what was written before
		row := b.results.row(overSSH, step.what+", "+scheme+"://", seconds, step.bar)
		took, err := end.copy(ctx, b, step.from, step.to, of.Everything)
		if err != nil {
			return end.explain(fmt.Errorf("%s, %s: %w", p.column, row.What, err))
		}
		row.add(p.column, took.Seconds())
		b.progress("%s: %s: %.2f s", p.column, row.What, took.Seconds())
	}
	return nil
}

// sshAtOnce measures the memory of firn while several clients push two generations, by both
// protocols.
func (b *bench) sshAtOnce(ctx context.Context, p program, m *material) error {
	end, err := b.startSSH(ctx, p)
	if err != nil {
		return err
	}
	defer end.stop()
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range 8 {
		of := m.atOnce[i/2%2]
		group.Go(func() error {
			_, err := end.copy(groupCtx, b, of.Root, end.url([]string{"ssh", "ssh-ng"}[i%2]), of.Everything)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return end.explain(fmt.Errorf("8 pushes at once: %w", err))
	}
	_, peak, err := memoryOf(end.pid)
	b.results.row(takes, "resident at most, 8 pushes over SSH at once", megabytes, atMost(150e6, "")).add(p.column, peak)
	return err
}

// An sshEnd is a server that is reached over SSH.
type sshEnd struct {
	*server
	files   string // directory
	user    string
	query   string
	options string // of ssh
}

func (e *sshEnd) url(scheme string) string {
	return (&url.URL{Scheme: scheme, User: url.User(e.user), Host: "127.0.0.1", RawQuery: e.query}).String()
}

// copy has Nix copy a path with all that it refers to. The client, which is the same for all ends,
// does not wait for the disk with every path that it registers, which otherwise takes most of the
// time of a pull and differs by factors from run to run. Signatures are not asked for, because what
// is pushed to the store of another machine may have none.
func (e *sshEnd) copy(ctx context.Context, b *bench, from, to string, path nix.StorePath) (time.Duration, error) {
	return b.nix(ctx, []string{"NIX_SSHOPTS=" + e.options}, "copy", "--no-check-sigs", "--option", "fsync-metadata", "false", "--from", from, "--to", to, path.String())
}

// startSSH starts a server with nothing in it, and makes a key that it lets in.
func (b *bench) startSSH(ctx context.Context, p program) (*sshEnd, error) {
	dir, err := os.MkdirTemp(b.work, "ssh-")
	if err != nil {
		return nil, err
	}
	e := &sshEnd{files: dir, user: "main"}
	key, hostKey := filepath.Join(dir, "key"), filepath.Join(dir, "host")
	for _, file := range []string{key, hostKey} {
		if err := runIn(ctx, dir, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file); err != nil {
			return nil, err
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	if p.column == openSSH {
		e.user, e.query = "root", url.Values{"remote-store": {filepath.Join(dir, "store")}}.Encode()
		e.server, err = b.start(ctx, sshdCommand(addr, key+".pub", hostKey), func(string) error {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	} else {
		state := filepath.Join(dir, "state")
		if e.server, err = b.start(ctx, p.serve(state, "--store", "off", "--ssh", addr), nil); err != nil {
			return nil, err
		}
		if err := runIn(ctx, dir, p.path, "sshkey", "add", "--state", state, "--push", "main", "bench", key+".pub"); err != nil {
			e.stop()
			return nil, e.explain(err)
		}
		hostKey = filepath.Join(state, "ssh", "ssh_host_ed25519_key")
	}
	public, err := os.ReadFile(hostKey + ".pub")
	known := filepath.Join(dir, "known_hosts")
	_, port, _ := net.SplitHostPort(addr)
	if err == nil {
		err = os.WriteFile(known, fmt.Appendf(nil, "[127.0.0.1]:%s %s", port, public), 0o600)
	}
	if err != nil {
		e.stop()
		return nil, err
	}
	e.options = strings.Join([]string{"-F none -o IdentitiesOnly=yes -o BatchMode=yes -p", port, "-i", key, "-o UserKnownHostsFile=" + known}, " ")
	return e, nil
}

// sshdCommand is Debian's sshd with its own defaults, but for what makes it run beside another.
func sshdCommand(addr, authorized, hostKey string) command {
	return func(_, dir string) *exec.Cmd {
		text := fmt.Sprintf("ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s\nPidFile none\nStrictModes no\nPermitRootLogin prohibit-password\n", addr, hostKey, authorized)
		conf := filepath.Join(dir, "sshd_config")
		// sshd enters /run/sshd to give up its rights; Debian's start of the service makes it. If
		// one of these fails, sshd says so.
		_ = os.MkdirAll("/run/sshd", 0o755)
		_ = os.WriteFile(conf, []byte(text), 0o600)
		return exec.Command(daemon("sshd"), "-D", "-e", "-f", conf)
	}
}

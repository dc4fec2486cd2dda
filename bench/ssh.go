//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Real Nix copies a part of the closure over SSH in both directions: to and from firn, and, in turns, to and from the Nix of this machine behind OpenSSH,
// which writes the paths into an empty store of its own and registers them there. It also copies them to a store that keeps nothing (sshsink.go).

// sshPart is what --only calls this.
const sshPart = "ssh"

// What stands for a server in the samples.
const (
	sshNix  = "OpenSSH and Nix"
	sshFirn = "firn, SSH"
	sshSink = "nowhere, SSH"
)

// sshPushes is how many clients push at once when memory is measured.
const sshPushes = 8

var (
	sshServers = []string{sshNix, sshFirn, sshSink}
	sshSchemes = []string{"ssh", "ssh-ng"}
)

func metricSSH(what, scheme string) Metric {
	title := map[string]string{"push": "push", "there": "push of what is there", "pull": "pull"}[what]
	return Metric{Key: what + "_" + scheme + "_s", Title: title + ", " + scheme + "://", Unit: "s", Scale: 1, Digits: 2, Ratio: true}
}

var metricSSHMemory = Metric{Key: "resident_ssh_pushes_bytes", Title: "resident at most, 8 pushes at once", Unit: "MB", Scale: 1e-6, Digits: 1}

// sshMetrics are the rows of the table.
func sshMetrics() []Metric {
	var all []Metric
	for _, what := range []string{"push", "there", "pull"} {
		for _, scheme := range sshSchemes {
			all = append(all, metricSSH(what, scheme))
		}
	}
	return append(all, metricSSHMemory)
}

// sshBars are the bars of copies over SSH; none when nothing was copied.
func sshBars(s Samples) []Bar {
	if len(s[sshNix]) == 0 {
		return nil
	}
	ratio := func(what, scheme string, limit float64) Bar {
		m := metricSSH(what, scheme)
		to := func(server string) float64 { return medianRatio(s.of(server, m.Key), s.of(sshNix, m.Key)) }
		return atMostRatio(m.Title+", to "+sshNix, to(sshFirn), limit).near("ssh", to(sshSink))
	}
	all := []Bar{ratio("push", "ssh", 0.9), ratio("push", "ssh-ng", 0.8), ratio("pull", "ssh", 0.9), ratio("pull", "ssh-ng", 0.9)}
	for _, scheme := range sshSchemes {
		m := metricSSH("there", scheme)
		all = append(all, under(m, m.Title, median(s.of(sshFirn, m.Key)), 1).note("ssh"))
	}
	return append(all, under(metricSSHMemory, metricSSHMemory.Title, median(s.of(sshFirn, metricSSHMemory.Key)), 150e6).note("memory"))
}

// ssh measures copies of a part of the closure over SSH, and memory while several clients push some at once.
func (b *shootout) ssh(ctx context.Context, program string, from source, atOnce []source) error {
	if err := need(ctx, hasSSHD, "openssh-server", b.progress); err != nil {
		return err
	}
	free := freeSpace(b.work)
	err := b.rounds(stageSSH, func(round int) error {
		if now := freeSpace(b.work); round > 0 && now < 2*(free-now)/int64(round) {
			b.remark("Copies over SSH: a round was left out, for it would have filled the disk.")
			return nil
		}
		for i := range sshSchemes {
			scheme := sshSchemes[(round+i)%2]
			for j := range sshServers {
				if err := b.sshOnce(ctx, program, sshServers[(round+i+j)%len(sshServers)], scheme, from); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.sshAtOnce(ctx, program, atOnce)
}

// sshOnce copies paths to an empty server, and, if that has kept them, once more, and back.
func (b *shootout) sshOnce(ctx context.Context, program, name, scheme string, from source) error {
	dir, err := os.MkdirTemp(b.work, "ssh-")
	if err != nil {
		return err
	}
	end, err := b.startSSH(ctx, program, name, dir)
	if err != nil {
		return err
	}
	defer end.stop()
	pulled := filepath.Join(dir, "pulled")
	for _, step := range []struct {
		what     string
		from, to string
	}{
		{"push", from.root, end.url(scheme)},
		{"there", from.root, end.url(scheme)},
		{"pull", end.url(scheme), pulled},
	} {
		unix.Sync() // so that nobody waits for what was written before
		m := metricSSH(step.what, scheme)
		took, err := end.copy(ctx, step.from, step.to, from.what, dir)
		if err != nil {
			return fmt.Errorf("%s, %s: %w%s", name, m.Title, err, end.logTail())
		}
		b.samples.add(name, m.Key, took.Seconds())
		b.progress("%s: %s %s %s", name, m.Title, m.format(took.Seconds()), m.Unit)
		if name == sshSink {
			return nil
		}
	}
	for _, path := range from.what {
		if _, err := os.Lstat(filepath.Join(pulled, path)); err != nil {
			return fmt.Errorf("%s, %s: what was pulled is not there: %w", name, scheme, err)
		}
	}
	return nil
}

// sshAtOnce measures the memory of firn while several clients push to it.
func (b *shootout) sshAtOnce(ctx context.Context, program string, of []source) error {
	dir, err := os.MkdirTemp(b.work, "ssh-")
	if err != nil {
		return err
	}
	end, err := b.startSSH(ctx, program, sshFirn, dir)
	if err != nil {
		return err
	}
	defer end.stop()
	begin := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range sshPushes {
		from := of[i/2%len(of)]
		group.Go(func() error {
			_, err := end.copy(groupCtx, from.root, end.url(sshSchemes[i%2]), from.what, dir)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("%d pushes at once: %w%s", sshPushes, err, end.logTail())
	}
	m, err := memoryOf(end.PID)
	if err != nil {
		return err
	}
	b.samples.add(sshFirn, metricSSHMemory.Key, float64(m.Peak))
	b.progress("%s: %s %s, in %.1f s", metricSSHMemory.Title, metricSSHMemory.format(float64(m.Peak)), metricSSHMemory.Unit, time.Since(begin).Seconds())
	return nil
}

// An sshEnd is a server that is reached over SSH.
type sshEnd struct {
	*Server
	user    string
	query   string
	options string // of ssh
}

func (e *sshEnd) url(scheme string) string {
	u := url.URL{Scheme: scheme, User: url.User(e.user), Host: "127.0.0.1", RawQuery: e.query}
	return u.String()
}

// copy has Nix copy the closure of a path. The client, which is the same for both ends, does not wait for the disk with every path that it registers,
// which otherwise takes most of the time of a pull and differs by factors from run to run. Signatures are not asked for, for what is pushed to the store of another machine may have none.
func (e *sshEnd) copy(ctx context.Context, from, to string, what []string, dir string) (time.Duration, error) {
	return timeNix(ctx, dir, []string{"NIX_SSHOPTS=" + e.options}, append([]string{"copy", "--no-check-sigs", "--option", "fsync-metadata", "false", "--from", from, "--to", to}, what...)...)
}

// startSSH starts a server with nothing in it, whose files are in dir, and a key that it lets in.
func (b *shootout) startSSH(ctx context.Context, program, name, dir string) (*sshEnd, error) {
	key, hostKey := filepath.Join(dir, "key"), filepath.Join(dir, "host")
	for _, file := range []string{key, hostKey} {
		if err := output(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file); err != nil {
			return nil, err
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	e := &sshEnd{user: pushedCache}
	if name != sshFirn {
		e.user, e.query = "root", url.Values{"remote-store": {filepath.Join(dir, "store")}}.Encode()
		if name == sshSink {
			err = forceSink(key + ".pub")
		}
		if err == nil {
			e.Server, err = launch(sshdSpec(name, addr, key+".pub", hostKey), b.work)
		}
		if err == nil {
			err = e.await(ctx, func() error { return greets(addr) })
		}
	} else {
		state := filepath.Join(dir, "state")
		spec := depotSpec(name, sshNix, program, state, "--ssh", addr.String())
		if e.Server, err = start(ctx, b.client, spec, b.work); err == nil {
			err = output(ctx, program, "sshkey", "add", "--state", state, "--push", pushedCache, "bench", key+".pub")
		}
		hostKey = filepath.Join(state, "ssh", "ssh_host_ed25519_key")
	}
	var public []byte
	if err == nil {
		public, err = os.ReadFile(hostKey + ".pub")
	}
	known := filepath.Join(dir, "known_hosts")
	if err == nil {
		err = os.WriteFile(known, fmt.Appendf(nil, "[127.0.0.1]:%d %s", addr.Port(), public), 0o600)
	}
	if err != nil {
		if e.Server != nil {
			e.stop()
			err = fmt.Errorf("%w%s", err, e.logTail())
		}
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	e.options = fmt.Sprintf("-F none -p %d -i %s -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile=%s", addr.Port(), key, known)
	return e, nil
}

// sshdSpec is Debian's sshd with its own defaults, but for what makes it run beside another.
func sshdSpec(name string, addr netip.AddrPort, authorized, hostKey string) Spec {
	return Spec{Name: name, Command: func(_ netip.AddrPort, dir string) (*exec.Cmd, error) {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // which it enters to give up its rights; Debian's start of the service makes it
			return nil, err
		}
		text := fmt.Sprintf("ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s\nPidFile none\nStrictModes no\nPermitRootLogin prohibit-password\n", addr, hostKey, authorized)
		conf := filepath.Join(dir, "sshd_config")
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return nil, err
		}
		cmd := exec.Command(sshdProgram(), "-D", "-e", "-f", conf)
		cmd.Env = cleanEnvironment()
		return cmd, nil
	}}
}

// sshdProgram is sshd, which lies outside the search path of ordinary users on Debian, and wants to be called by its full path.
func sshdProgram() string {
	path, _ := exec.LookPath("sshd")
	return cmp.Or(path, "/usr/sbin/sshd")
}

func hasSSHD() bool {
	_, err := os.Stat(sshdProgram())
	return err == nil
}

// greets asks an SSH server for its first words.
func greets(addr netip.AddrPort) error {
	conn, err := net.DialTimeout("tcp", addr.String(), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	words := make([]byte, 4)
	if _, err := conn.Read(words); err != nil || string(words) != "SSH-" {
		return errors.Join(fmt.Errorf("it says %q", words), err)
	}
	return nil
}

// sshRows are the table of copies over SSH, nil where none were measured.
func (r *Report) sshRows() [][]string {
	if len(r.Samples[sshNix]) == 0 {
		return nil
	}
	return r.table([]Spec{{Name: sshNix}, {Name: sshFirn, Baseline: sshNix}, {Name: sshSink, Baseline: sshNix}}, sshMetrics())
}

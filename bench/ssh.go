//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Real Nix copies a closure over SSH in both directions: to and from firn, and, in turns, to and from the Nix of this machine behind OpenSSH,
// which writes the paths into an empty store of its own and registers them there.

// sshPart is what --only calls this.
const sshPart = "ssh"

// What stands for a server in the samples.
const (
	sshNix  = "OpenSSH and Nix"
	sshFirn = "firn, SSH"
)

const (
	// sshRuns is how often all is measured if nothing else is, and sshRunsBeside beside the other measurements, with a smaller closure.
	sshRuns, sshRunsBeside = 3, 1
	// sshPushes is how many clients push at once when memory is measured.
	sshPushes = 8
)

var (
	sshServers = []string{sshNix, sshFirn}
	sshSchemes = []string{"ssh", "ssh-ng"}
)

func metricSSH(what, scheme string) Metric {
	title := map[string]string{"push": "push of the closure", "there": "push of what is there", "pull": "pull of the closure"}[what]
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
		return atMostRatio(m.Title+", to "+sshNix, medianRatio(s.of(sshFirn, m.Key), s.of(sshNix, m.Key)), limit)
	}
	all := []Bar{ratio("push", "ssh", 0.9), ratio("push", "ssh-ng", 0.8), ratio("pull", "ssh", 0.9), ratio("pull", "ssh-ng", 0.9)}
	for _, scheme := range sshSchemes {
		m := metricSSH("there", scheme)
		all = append(all, under(m, m.Title, median(s.of(sshFirn, m.Key)), 1))
	}
	return append(all, under(metricSSHMemory, metricSSHMemory.Title, median(s.of(sshFirn, metricSSHMemory.Key)), 150e6))
}

// ssh measures copies over SSH. alone tells whether nothing else is measured: then there is time for the whole closure.
func (b *shootout) ssh(ctx context.Context, opts Options, program string, of []generation, alone bool, begin time.Time) error {
	if err := need(ctx, hasSSHD, "openssh-server", b.progress); err != nil {
		return err
	}
	// Nothing is removed until all is measured: for minutes after many files were removed, ext4 looks at each of their inodes
	// before it makes a new one, so that who comes later pays for who came before, several times over.
	var err error
	if b.sshWork, err = os.MkdirTemp(b.work, "ssh-"); err != nil {
		return err
	}
	defer removeStore(b.sshWork)
	runs := min(opts.Runs, sshRuns)
	switch {
	case opts.Quick:
		runs = 1
	case !alone:
		runs = min(runs, sshRunsBeside)
		if of, err = generations(ctx, opts.Cache, true, b.progress); err != nil {
			return err
		}
	}
	for run := range runs {
		started, before := time.Now(), freeSpace(b.sshWork)
		for i := range sshSchemes {
			scheme := sshSchemes[(run+i)%2]
			for j := range sshServers {
				if err := b.sshOnce(ctx, program, sshServers[(run+i+j)%2], scheme, of[0]); err != nil {
					return err
				}
			}
		}
		if now := time.Now(); run+1 < runs && now.Add(now.Sub(started)).After(begin.Add(opts.Limit-lastPhases)) {
			b.progress("%d of %d runs made: another would end after %v", run+1, runs, opts.Limit)
			break
		}
		if after := freeSpace(b.sshWork); run+1 < runs && after < 2*(before-after) {
			b.progress("%d of %d runs made: another would fill the disk", run+1, runs)
			break
		}
	}
	return b.sshAtOnce(ctx, program, of)
}

// sshOnce copies a closure to an empty server, once more, and back.
func (b *shootout) sshOnce(ctx context.Context, program, name, scheme string, from generation) error {
	dir, err := os.MkdirTemp(b.sshWork, "")
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
	}
	if _, err := os.Stat(filepath.Join(pulled, from.what)); err != nil {
		return fmt.Errorf("%s, %s: what was pulled is not there: %w", name, scheme, err)
	}
	return nil
}

// sshAtOnce measures the memory of firn while several clients push to it.
func (b *shootout) sshAtOnce(ctx context.Context, program string, of []generation) error {
	dir, err := os.MkdirTemp(b.sshWork, "")
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
		g := of[i/2%len(of)]
		group.Go(func() error {
			_, err := end.copy(groupCtx, g.root, end.url(sshSchemes[i%2]), g.what, dir)
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
func (e *sshEnd) copy(ctx context.Context, from, to, what, dir string) (time.Duration, error) {
	return timeNix(ctx, dir, []string{"NIX_SSHOPTS=" + e.options}, "copy", "--no-check-sigs", "--option", "fsync-metadata", "false", "--from", from, "--to", to, what)
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
	if name == sshNix {
		e.user, e.query = "root", url.Values{"remote-store": {filepath.Join(dir, "store")}}.Encode()
		if e.Server, err = launch(sshdSpec(name, addr, key+".pub", hostKey), b.work); err == nil {
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

// output runs a command; an error has what it says.
func output(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = cleanEnvironment()
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(text))
	}
	return nil
}

// freeSpace is how many bytes can be written where dir is.
func freeSpace(dir string) int64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0
	}
	return int64(fs.Bavail) * fs.Bsize
}

// removeStore removes a directory with stores in it, whose directories cannot be written.
func removeStore(dir string) {
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}

// sshRows are the table of copies over SSH, nil where none were measured.
func (r *Report) sshRows() [][]string {
	if len(r.Samples[sshNix]) == 0 {
		return nil
	}
	rows := [][]string{{"", sshNix, sshFirn}}
	for _, m := range sshMetrics() {
		rows = append(rows, []string{
			m.Title + ", " + m.Unit,
			r.cell(&Server{Spec: Spec{Name: sshNix}}, m),
			r.cell(&Server{Spec: Spec{Name: sshFirn, Baseline: sshNix}}, m),
		})
	}
	return rows
}

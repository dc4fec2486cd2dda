package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"firn/internal/testing/conversation"
	"firn/nix"
)

// An sshClient is a machine that reaches a cache with a key.
type sshClient struct {
	*machine
	options []string // of ssh
}

// startSSH starts a server that keeps what is pushed, with SSH, and returns the port of that.
func startSSH(m *machine, args ...string) (s *server, port string) {
	m.t.Helper()
	s = startDepot(m, append([]string{"--ssh", "127.0.0.1:0"}, args...)...)
	found := regexp.MustCompile(`ssh://main@127\.0\.0\.1 with NIX_SSHOPTS='-p (\d+)'`).FindStringSubmatch(s.announced)
	if found == nil {
		m.t.Fatalf("firn announced no SSH:\n%s", s.announced)
	}
	return s, found[1]
}

// sshKey makes a key on a machine and returns the path of its secret half.
func sshKey(m *machine, name string) string {
	m.t.Helper()
	file := filepath.Join(m.dir, name)
	m.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file)
	return file
}

// newSSHClient lets a machine use a server with a key, which it knows by the host key that the server wrote down.
func newSSHClient(m, host *machine, port, key string) *sshClient {
	m.t.Helper()
	public, err := os.ReadFile(filepath.Join(host.dir, "state/ssh/ssh_host_ed25519_key.pub"))
	if err != nil {
		m.t.Fatal(err)
	}
	known := m.write("known_hosts", fmt.Sprintf("[127.0.0.1]:%s %s", port, public))
	return &sshClient{m, []string{
		"-F", "none", "-p", port, "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=" + known,
	}}
}

// with is a command line that finds the options in its environment.
func (c *sshClient) with(args ...string) []string {
	return append([]string{"env", "NIX_SSHOPTS=" + strings.Join(c.options, " ")}, args...)
}

func (c *sshClient) nix(args ...string) string {
	c.t.Helper()
	return c.run(c.with(args...)...)
}

// An sshServer is a server with SSH on a machine of its own.
type sshServer struct {
	*server
	host *machine
	port string
	read string // a key that may read the cache main
}

// startPusher starts a server with SSH, and returns it with a client that may push to the cache main.
func startPusher(t *testing.T, n nixSystem) (*sshServer, *sshClient) {
	t.Helper()
	s := &sshServer{host: newMachine(t, systemNix())}
	s.server, s.port = startSSH(s.host)
	source := newMachine(t, n)
	push := sshKey(source, "push")
	s.read = sshKey(source, "read")
	admin(s.host, "sshkey add", "--push", "main", "ci", push+".pub")
	admin(s.host, "sshkey add", "--read", "main", "reader", s.read+".pub")
	return s, newSSHClient(source, s.host, s.port, push)
}

// reader is a client on a new machine that may only read.
func (s *sshServer) reader(n nixSystem) *sshClient {
	s.host.t.Helper()
	return newSSHClient(newMachine(s.host.t, n), s.host, s.port, s.read)
}

var schemes = []string{"ssh", "ssh-ng"}

// Every Nix gets back the paths that any other Nix pushed over SSH, over SSH and over HTTP.
func TestSSH(t *testing.T) {
	t.Parallel()
	origin := serveDebian(t)
	root := debianPath(t, smallClosure).String()
	want := closure(t, root)
	eachNix(t, func(t *testing.T, n nixSystem) {
		source := newMachine(t, n)
		source.run("nix", "copy", "--from", origin.url, root, "--option", "trusted-public-keys", origin.publicKey)
		file := add(source, "file", 100_000).String() // content-addressed
		for _, scheme := range schemes {
			t.Run(scheme, func(t *testing.T) {
				host := newMachine(t, systemNix())
				s, port := startSSH(host)
				key := sshKey(source, scheme)
				admin(host, "sshkey add", "--push", "main", "ci", key+".pub")
				client := newSSHClient(source, host, port, key)
				url := scheme + "://main@127.0.0.1"
				client.nix("nix", "copy", "--to", url, root, file)
				client.nix("nix", "copy", "--to", url, root, file) // there is nothing to do

				all := append(slices.Clone(want), file)
				slices.Sort(all)
				trusted := []string{"--option", "trusted-public-keys", s.publicKey}
				for how, get := range map[string]func(reader *sshClient){
					"over HTTP": func(m *sshClient) {
						m.run(append([]string{"nix", "copy", "--from", s.url, root, file}, trusted...)...)
					},
					"copied": func(m *sshClient) {
						m.nix(append([]string{"nix", "copy", "--from", url, root, file}, trusted...)...)
					},
					"substituted": func(m *sshClient) {
						m.nix(append([]string{"nix-store", "--realise", root, file, "--option", "substituters", url}, trusted...)...)
					},
				} {
					reader := newSSHClient(newMachine(t, n), host, port, key)
					get(reader)
					wantStore(reader.machine, s, all)
					for _, p := range all {
						sameTree(t, source.path(p), reader.path(p))
					}
					if t.Failed() {
						t.Fatalf("failed: %s", how)
					}
				}

				if got := lines(client.nix("nix", "path-info", "--store", url, "--recursive", root)); len(got) != len(want) {
					t.Errorf("nix path-info shows %d paths, want %d", len(got), len(want))
				}
				client.nix(append([]string{"nix", "store", "verify", "--store", url, "--recursive", root, file}, trusted...)...)
				if _, err := client.try(client.with("nix", "store", "info", "--store", url)...); err != nil {
					client.nix("nix", "store", "ping", "--store", url) // its older name
				}
			})
		}
	})
}

// The commands that Nix had first.
func TestSSHCopyClosure(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		s, client := startPusher(t, n)
		source := client.machine
		a, b := add(source, "a", 1000), add(source, "b", 1000)
		client.nix("nix-copy-closure", "--to", "main@127.0.0.1", a.String())
		client.nix("nix-copy-closure", "--to", "--use-substitutes", "main@127.0.0.1", a.String(), b.String())
		reader := s.reader(n)
		reader.nix("nix-copy-closure", "--from", "--use-substitutes", "main@127.0.0.1", a.String(), "--option", "trusted-public-keys", s.publicKey)
		reader.nix("nix-copy-closure", "--from", "main@127.0.0.1", a.String(), b.String(), "--option", "trusted-public-keys", s.publicKey)
		for _, p := range []nix.StorePath{a, b} {
			sameTree(t, source.path(p.String()), reader.path(p.String()))
			if _, err := s.narInfo(p); err != nil {
				t.Error(err)
			}
		}
	})
}

// The outputs of a derivation are copied by the name of the derivation, if that is in the cache too.
func TestSSHOutputs(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		s, client := startPusher(t, n)
		source := client.machine
		if n.isOld() { // later ones take the flag, and forget it
			output, drv := build(source, "", "echo out >$out")
			client.nix("nix-copy-closure", "--to", "main@127.0.0.1", drv, output)
			reader := s.reader(n)
			reader.nix("nix-copy-closure", "--from", "--include-outputs", "main@127.0.0.1", drv, "--option", "trusted-public-keys", s.publicKey)
			sameTree(t, source.path(output), reader.path(output))
			return
		}
		const url = "ssh-ng://main@127.0.0.1"
		trust := []string{"--option", "trusted-public-keys", s.publicKey}
		// outputs are all that a derivation was built to, in the words of the version.
		outputs := func(drv string) string {
			if strings.HasPrefix(n.version, "2.8") {
				return drv
			}
			return drv + "^*"
		}
		for name, attributes := range map[string]string{
			"known":   `outputs = [ "out" "dev" ]; input = derivation { name = "input"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo >$out" ]; };`,
			"content": `outputs = [ "out" "dev" ]; __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";`,
		} {
			_, drv := build(source, attributes, "echo out >$out; echo dev >$dev")
			paths := strings.Fields(source.run("nix", "path-info", outputs(drv)))
			if len(paths) != 2 {
				t.Fatalf("%s: it was built to %v, want two paths", name, paths)
			}
			client.nix("nix", "copy", "--to", url, outputs(drv))
			client.nix("nix", "copy", "--derivation", "--to", url, drv)

			reader := s.reader(n)
			reader.nix("nix", "copy", "--derivation", "--from", url, drv)
			reader.nix(append([]string{"nix", "copy", "--from", url, outputs(drv)}, trust...)...)
			for _, p := range paths {
				sameTree(t, source.path(p), reader.path(p))
			}
		}
	})
}

// Signatures, logs, and what content-addressed derivations were built to.
func TestSSHMore(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		s, client := startPusher(t, n)
		source := client.machine
		const url = "ssh-ng://main@127.0.0.1"

		output, drv := build(source, "", "echo the log of a build; echo hello >$out")
		client.nix("nix", "copy", "--to", url, output)
		secret := filepath.Join(source.dir, "secret")
		source.run("nix-store", "--generate-binary-cache-key", "other-1", secret, secret+".pub")
		client.nix("nix", "store", "sign", "--store", url, "--key-file", secret, output)
		p, err := nix.DefaultStoreDir.ParsePath(output)
		if err != nil {
			t.Fatal(err)
		}
		info, err := s.narInfo(p)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(info.Signatures, func(sig nix.Signature) bool { return sig.Name == "other-1" }) {
			t.Errorf("the signatures are %v", info.Signatures)
		}
		if !n.isOld() { // which cannot upload logs
			client.nix("nix", "store", "copy-log", "--to", url, drv)
			if got := newMachine(t, n).run("nix", "log", "--store", s.url, output); got != "the log of a build" {
				t.Errorf("the log is %q", got)
			}
		}

		const attributes = `__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";`
		const script = "echo content-addressed, and pushed over SSH >$out"
		want, _ := build(source, attributes, script)
		client.nix("nix", "copy", "--to", url, "--file", filepath.Join(source.dir, "test.nix"))
		m := newMachine(t, n)
		got, _ := build(m, attributes, script, append(s.trust(), "--option", "max-jobs", "0")...)
		if got != want {
			t.Errorf("substituted %s, want %s", got, want)
		}
		sameTree(t, source.path(want), m.path(got))
	})
}

// Without the right key nothing is kept, and the client sees why.
func TestSSHRefused(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	s, port := startSSH(host)
	admin(host, "cache create", "--private", "secret")
	pusher := newMachine(t, systemNix())
	there := add(pusher, "there", 100)
	key := sshKey(pusher, "key")
	admin(host, "sshkey add", "--push", "main", "ci", key+".pub")
	newSSHClient(pusher, host, port, key).nix("nix", "copy", "--to", "ssh://main@127.0.0.1", there.String())
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		p := add(m, "file-"+n.version, 100)
		name := func(what string) string { return what + "-" + n.version }
		reads, revoked, unknown := sshKey(m, "reads"), sshKey(m, "revoked"), sshKey(m, "unknown")
		admin(host, "sshkey add", "--read", "main", name("reads"), reads+".pub")
		admin(host, "sshkey add", "--push", "*", name("revoked"), revoked+".pub")
		client := newSSHClient(m, host, port, revoked)
		for _, scheme := range schemes {
			client.nix("nix", "path-info", "--store", scheme+"://main@127.0.0.1", there.String()) // it is good until a moment ago
		}
		admin(host, "sshkey revoke", name("revoked"))
		for _, scheme := range schemes {
			for _, test := range []struct{ key, user, words string }{
				{reads, "main", "this key may not push to the cache main"},
				{reads, "secret", "there is no cache named secret that this key may use"},
				{reads, "nothing", "there is no cache named nothing that this key may use"},
				{revoked, "main", "Permission denied (publickey)"},
				{unknown, "main", "Permission denied (publickey)"},
			} {
				client := newSSHClient(m, host, port, test.key)
				_, err := client.try(client.with("nix", "copy", "--to", scheme+"://"+test.user+"@127.0.0.1", p.String())...)
				if err == nil || !strings.Contains(err.Error(), test.words) {
					t.Errorf("%s with %s as %s: %v, want %q", scheme, filepath.Base(test.key), test.user, err, test.words)
				}
			}
		}
		if _, err := s.narInfo(p); err == nil {
			t.Errorf("%s was kept", p)
		}
		client = newSSHClient(m, host, port, reads)
		if _, err := client.try(client.with("nix-store", "--store", "ssh-ng://main@127.0.0.1", "--query", "--referrers", there.String())...); err == nil ||
			!strings.Contains(err.Error(), "this is a cache") {
			t.Errorf("what refers to a path: %v", err)
		}
		for _, command := range []string{"", "id", "nix-store --serve; id"} {
			args := append(append([]string{"ssh"}, client.options...), "main@127.0.0.1", command)
			_, err := m.try(args...)
			if err == nil || !strings.Contains(err.Error(), "this is a Nix cache") || strings.Contains(err.Error(), "uid=") {
				t.Errorf("%q: %v", command, err)
			}
		}
	})
}

// A path whose bytes are not what the client says is refused, and paths pushed before it stay.
func TestSSHDamaged(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	s, port := startSSH(host)
	wantAbsent := func(t *testing.T, p nix.StorePath) {
		t.Helper()
		if _, err := s.narInfo(p); err == nil {
			t.Errorf("%s was kept", p)
		}
	}
	eachNix(t, func(t *testing.T, n nixSystem) {
		for _, scheme := range schemes {
			m := newMachine(t, n)
			key := sshKey(m, "key")
			admin(host, "sshkey add", "--push", "main", scheme+"-"+n.version, key+".pub")
			client := newSSHClient(m, host, port, key)
			name := scheme + n.version
			good := add(m, "a-good-one-"+name, 200_000)
			bad := add(m, "bad-"+name, 200_000)
			file := m.path(bad.String())
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			damaged := slices.Clone(whole)
			damaged[100_000]++
			write := func(text []byte) {
				t.Helper()
				if err := errors.Join(os.Chmod(file, 0o644), os.WriteFile(file, text, 0o644), os.Chmod(file, 0o444)); err != nil {
					t.Fatal(err)
				}
			}
			url := scheme + "://main@127.0.0.1"
			write(damaged)
			client.nix("nix", "copy", "--to", url, good.String())
			_, err = client.try(client.with("nix", "copy", "--to", url, good.String(), bad.String())...)
			if err == nil || !strings.Contains(err.Error(), bad.String()+": this NAR has the hash") {
				t.Errorf("%s: what does not match its hash: %v", scheme, err)
			}
			wantAbsent(t, bad)
			if _, err := s.narInfo(good); err != nil {
				t.Error(err)
			}
			write(whole)
			client.nix("nix", "copy", "--to", url, bad.String())
			if _, err := s.narInfo(bad); err != nil {
				t.Error(err)
			}
		}
	})

	// Nix makes no NAR that is none, so its words are said again with one in which something is changed.
	files, err := filepath.Glob(filepath.Join(recordings, "*/*/01-push.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("nothing is recorded: %v", err)
	}
	m := newMachine(t, systemNix())
	key := sshKey(m, "key")
	admin(host, "sshkey add", "--push", "main", "recorded", key+".pub")
	client := newSSHClient(m, host, port, key)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		recorded, err := conversation.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		said := bytes.ReplaceAll(recorded.Said(true), []byte("nix-archive-1"), []byte("nix-archive-2"))
		cmd := m.command(t.Context(), append(append([]string{"ssh"}, client.options...), "main@127.0.0.1", recorded.Command)...)
		cmd.Stdin = bytes.NewReader(said)
		if out, _ := cmd.CombinedOutput(); !bytes.Contains(out, []byte("this is no NAR")) {
			t.Errorf("%s with what is no NAR: %q", file, out)
		}
	}
	admin(host, "verify")
	if got := lines(m.run("curl", "--silent", "--fail", s.url+"/metrics")); !slices.ContainsFunc(got, func(line string) bool {
		return strings.HasPrefix(line, `firn_ssh_operations_total{operation="receive NAR"} `)
	}) {
		t.Error("/metrics counts nothing of SSH")
	}
}

// The log says by its name which key has pushed what, as over HTTP.
func TestSSHLog(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	log := filepath.Join(host.dir, "log")
	_, port := startSSH(host, "--log-level", "debug", "--log-file", log)
	key := sshKey(host, "key")
	admin(host, "sshkey add", "--push", "main", "builder-7", key+".pub")
	c := newSSHClient(newMachine(t, newestNix()), host, port, key)
	path := c.run("nix-store", "--add", c.write("logged", "pushed, and logged"))
	c.nix("nix", "copy", "--to", "ssh-ng://main@127.0.0.1", path)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^.* msg=published remote=127\.0\.0\.1 user=main by=builder-7 path=` + regexp.QuoteMeta(path) + ` cache=main$`).Match(text) {
		t.Errorf("no line says who pushed %s:\n%s", path, text)
	}
}

// firn stdio is the same behind another SSH server, or none; firn daemon on a socket. From there Nix gets no NARs:
// it reads the files of a store that it reaches over a socket itself.
func TestStdioAndDaemon(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		source := newMachine(t, n)
		a, b := add(source, "a", 1000), add(source, "b", 1000)
		host := newMachine(t, systemNix())
		s := startDepot(host) // beside which the others work
		state := filepath.Join(host.dir, "state")

		// Nix runs the program of localhost itself, without ssh.
		program := source.write("program", "#!/bin/sh\nFIRN_STORE=off exec "+firnPath+" stdio --state "+state+"\n")
		if err := os.Chmod(program, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, scheme := range schemes {
			if n.isOld() && scheme == "ssh-ng" {
				continue // there it runs only what is called nix-daemon
			}
			source.run("nix", "copy", "--to", scheme+"://localhost?remote-program="+program, a.String())
			newMachine(t, n).run("nix", "copy", "--from", scheme+"://localhost?remote-program="+program, a.String())
		}
		if _, err := s.narInfo(a); err != nil {
			t.Error(err)
		}

		socket := filepath.Join(host.dir, "main.sock")
		ctx, cancel := context.WithCancel(t.Context())
		daemon := host.command(ctx, "env", "FIRN_STORE=off", firnPath, "daemon", "--state", state, "--socket", socket)
		logs := &lockedBuffer{}
		daemon.Stderr = logs
		if err := daemon.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			cancel()
			if daemon.Wait(); daemon.ProcessState.ExitCode() != 0 {
				t.Errorf("firn daemon did not end well: %v\n%s", daemon.ProcessState, logs)
			}
		}()
		eventually(t, "the socket is there", func() bool { _, err := os.Stat(socket); return err == nil })
		source.run("nix", "copy", "--to", "unix://"+socket, a.String(), b.String())
		if _, err := s.narInfo(b); err != nil {
			t.Error(err)
		}
		reader := newMachine(t, n)
		reader.run("nix", "path-info", "--store", "unix://"+socket, a.String())
		if got := lines(reader.run("nix", "path-info", "--all", "--store", "unix://"+socket)); len(got) != 2 {
			t.Errorf("nix path-info --all shows %q", got)
		}
		admin(host, "verify")
	})
}

// With --ssh-store what is pushed goes into the store of the server, whose daemon checks the signatures.
func TestSSHStore(t *testing.T) {
	t.Parallel()
	host, source := newMachine(t, newestNix()), newMachine(t, systemNix())
	secret := filepath.Join(source.dir, "secret")
	source.run("nix-store", "--generate-binary-cache-key", "builder-1", secret, secret+".pub")
	public, err := os.ReadFile(secret + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	host.write("conf/nix.conf", nixConf+"trusted-public-keys = "+string(public)+"\ntrusted-users =\n")
	startDaemon(host)
	add(host, "there", 100)
	s := startFirn(host, "--ssh", "127.0.0.1:0", "--ssh-store")
	port := regexp.MustCompile(`-p (\d+)`).FindStringSubmatch(s.announced)[1]
	key := sshKey(source, "key")
	admin(host, "sshkey add", "--push", "main", "ci", key+".pub")
	client := newSSHClient(source, host, port, key)
	unsigned, _ := build(source, "", "echo unsigned >$out")
	signed, _ := build(source, `outputs = [ "out" ]; x = "1";`, "echo signed >$out")
	source.run("nix", "store", "sign", "--key-file", secret, signed)
	for _, scheme := range schemes {
		url := scheme + "://main@127.0.0.1"
		if _, err := client.try(client.with("nix", "copy", "--to", url, unsigned)...); err == nil || !strings.Contains(err.Error(), "signature") {
			t.Errorf("%s: without a signature: %v", scheme, err)
		}
		client.nix("nix", "copy", "--to", url, signed)
	}
	host.run("nix", "path-info", signed)
	sameTree(t, source.path(signed), host.path(signed))
	if out, err := host.try("nix", "path-info", unsigned); err == nil {
		t.Errorf("the store has %s", out)
	}
}

// A client that is killed at any moment leaves nothing that is not whole.
func TestSSHKilledClient(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	s, port := startSSH(host)
	source := newMachine(t, newestNix())
	key := sshKey(source, "key")
	admin(host, "sshkey add", "--push", "main", "ci", key+".pub")
	client := newSSHClient(source, host, port, key)
	random := rand.New(rand.NewPCG(1, 2))
	rounds := roundsToKill(t)
	var paths []string
	for i := range rounds {
		paths = append(paths, add(source, fmt.Sprintf("noise-%d", i), 500_000+random.Int64N(2_000_000)).String())
		ctx, cancel := context.WithCancel(t.Context())
		push := source.command(ctx, client.with("nix", "copy", "--to", schemes[i%2]+"://main@127.0.0.1", paths[i])...)
		push.Cancel = func() error { return push.Process.Kill() }
		if err := push.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		cancel()
		push.Wait()
	}
	admin(host, "verify")
	client.nix(append([]string{"nix", "copy", "--to", "ssh-ng://main@127.0.0.1"}, paths...)...)
	for _, text := range paths {
		p, err := nix.DefaultStoreDir.ParsePath(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.narInfo(p); err != nil {
			t.Error(err)
		}
	}
	admin(host, "verify")
}

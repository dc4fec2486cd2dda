package sshd_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"firn/internal/access"
	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/catalog/sqlite/sqlitetest"
	"firn/internal/sshd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A tester is a running server with a catalog of keys. Its commands are those of echo.
type tester struct {
	*testing.T
	catalog *sqlite.Catalog
	address string
	log     *lockedBuffer
	door    *sshd.Server
	end     func() error // ends the server and returns what Serve does
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// hostKeys are made once: RSA takes its time.
var hostKeys = sync.OnceValues(func() ([]ssh.Signer, error) {
	dir, err := os.MkdirTemp("", "firn")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return sshd.HostKeys(filepath.Join(dir, "ssh"), slog.New(slog.DiscardHandler))
})

func start(t *testing.T, opts sshd.Options, accessOpts access.Options) *tester {
	t.Helper()
	var err error
	if opts.HostKeys, err = hostKeys(); err != nil {
		t.Fatal(err)
	}
	s := &tester{T: t, catalog: sqlitetest.Open(t, nil), log: &lockedBuffer{}}
	opts.Logger = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.door = sshd.New(access.New(s.catalog, s.catalog, accessOpts), echo, opts)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.door.Serve(ctx, l) }()
	s.end = sync.OnceValue(func() error { cancel(); return <-served })
	t.Cleanup(func() {
		if err := s.end(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// echo answers: who, echo (all that comes), a refusal, count, zeros, slow, hang up, and wait (until the server ends).
func echo(ctx context.Context, l *sshd.Login, command string, conn io.ReadWriteCloser) error {
	switch command {
	case "who":
		p, err := l.Who(ctx)
		if err != nil {
			return errors.New("nobody")
		}
		_, err = fmt.Fprintf(conn, "%s as %s from %s, may push %t", p.Name(), l.User, l.Remote, p.May(cache.Push, "main"))
		return err
	case "echo":
		_, err := io.Copy(conn, conn)
		return err
	case "wait":
		io.WriteString(conn, "waiting")
		<-ctx.Done()
		io.WriteString(conn, ", done")
		return nil
	case "count":
		n, err := io.Copy(io.Discard, conn)
		fmt.Fprint(conn, n)
		return err
	case "zeros":
		_, err := io.CopyN(conn, zeroReader{}, zeros)
		return err
	case "slow":
		io.WriteString(conn, "waiting")
		defer time.AfterFunc(100*time.Millisecond, func() {
			conn.(interface{ CloseWithError(error) error }).CloseWithError(errors.New("too slow"))
		}).Stop()
		_, err := io.Copy(io.Discard, conn)
		return err
	case "hang up":
		io.WriteString(conn, "waiting")
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		_, err := io.Copy(io.Discard, conn)
		return err
	}
	return fmt.Errorf("there is no %q", command)
}

// zeros is how many bytes the command of this name says.
const zeros = 64 << 20

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func newSigner(tb testing.TB) ssh.Signer {
	tb.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return signer
}

// key makes a key that may push to main.
func (t *tester) key(name string, opts access.SSHKeyOptions) ssh.Signer {
	t.Helper()
	signer := newSigner(t)
	grants := []catalog.Grant{{Pattern: "main", Rights: uint8(cache.Push)}}
	record, err := access.NewSSHKey(name, ssh.MarshalAuthorizedKey(signer.PublicKey()), grants, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := t.catalog.AddSSHKey(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	return signer
}

// dial logs in as main.
func (t *tester) dial(signers ...ssh.Signer) (*ssh.Client, error) {
	return t.dialWith(func(*ssh.ClientConfig) {}, signers...)
}

func (t *tester) dialWith(change func(*ssh.ClientConfig), signers ...ssh.Signer) (*ssh.Client, error) {
	config := &ssh.ClientConfig{
		User: "main", Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	}
	change(config)
	return ssh.Dial("tcp", t.address, config)
}

func (t *tester) login(signers ...ssh.Signer) *ssh.Client {
	t.Helper()
	c, err := t.dial(signers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (t *tester) session(c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs a command and returns its output; the error has what it said against it.
func run(c *ssh.Client, command, input string) (string, error) {
	s, err := c.NewSession()
	if err != nil {
		return "", err
	}
	defer s.Close()
	var stdout, stderr bytes.Buffer
	s.Stdin, s.Stdout, s.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := s.Run(command); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return stdout.String(), nil
}

func (t *tester) want(c *ssh.Client, command, input, want string) {
	t.Helper()
	if got, err := run(c, command, input); err != nil || got != want {
		t.Errorf("%s: %q, %v, want %q", command, got, err, want)
	}
}

func TestSessions(t0 *testing.T) {
	t := start(t0, sshd.Options{Version: "1.2", Sessions: 2}, access.Options{})
	c := t.login(newSigner(t), t.key("ci", access.SSHKeyOptions{})) // the second key that it offers
	if v := string(c.ServerVersion()); v != "SSH-2.0-firn_1.2" {
		t.Errorf("the server is %q", v)
	}
	t.want(c, "who", "", "ci as main from 127.0.0.1, may push true")
	long := strings.Repeat("0123456789abcdef", 1<<18) // longer than the window
	t.want(c, "echo", long, long)
	if _, err := run(c, "rm -rf /", ""); err == nil || !strings.Contains(err.Error(), `status 1: firn: there is no "rm -rf /"`) {
		t.Errorf("an unknown command: %v", err)
	}

	// Many at once wait for their turn, on one connection and on several.
	other := t.login(t.key("other", access.SSHKeyOptions{}))
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			t.want([]*ssh.Client{c, other}[i%2], "echo", long[:1<<20], long[:1<<20])
		})
	}
	group.Wait()
}

// What a shell account has is not there, and the connection goes on.
func TestNothingElse(t0 *testing.T) {
	t := start(t0, sshd.Options{}, access.Options{})
	c := t.login(t.key("ci", access.SSHKeyOptions{}))
	s := t.session(c)
	if err := s.Setenv("LANG", "C"); err == nil {
		t.Error("a variable was set")
	}
	if err := s.RequestPty("vt100", 24, 80, nil); err == nil {
		t.Error("there is a terminal")
	}
	if err := s.RequestSubsystem("sftp"); err == nil {
		t.Error("there is SFTP")
	}
	if ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); ok || err != nil {
		t.Errorf("the agent is forwarded: %t, %v", ok, err)
	}
	var stderr bytes.Buffer
	s.Stderr = &stderr
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 1 || !strings.Contains(stderr.String(), "there is no shell. Use it with nix copy --to, or --from, ssh://main@HOST") {
		t.Errorf("a shell: %v, %q", err, &stderr)
	}
	for _, kind := range []string{"direct-tcpip", "x11", "auth-agent@openssh.com", "tun@openssh.com"} {
		if _, _, err := c.OpenChannel(kind, nil); err == nil {
			t.Errorf("there is %s", kind)
		}
	}
	for _, kind := range []string{"tcpip-forward", "streamlocal-forward@openssh.com"} {
		if ok, _, err := c.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("%s: %t, %v", kind, ok, err)
		}
	}

	// A session asks for one thing, and a connection has a few of them.
	var sessions []*ssh.Session
	for range 10 {
		sessions = append(sessions, t.session(c))
	}
	if _, err := c.NewSession(); err == nil {
		t.Error("an eleventh session was opened")
	}
	// The next one can begin as soon as the client has seen one end.
	for range 100 {
		if err := sessions[0].Shell(); err != nil {
			t.Fatal(err)
		}
		if err := sessions[0].Wait(); !errors.As(err, &exit) {
			t.Fatal(err)
		}
		sessions[0] = t.session(c)
	}
	for _, s := range sessions {
		s.Close()
	}
	t.want(t.login(t.key("other", access.SSHKeyOptions{})), "echo", "hello", "hello")
}

func TestLogin(t0 *testing.T) {
	t := start(t0, sshd.Options{}, access.Options{})
	key := t.key("ci", access.SSHKeyOptions{})
	authority := t.key("ca", access.SSHKeyOptions{Authority: true})
	certified := func(change func(*ssh.Certificate)) ssh.Signer {
		holder := newSigner(t)
		cert := &ssh.Certificate{
			Key: holder.PublicKey(), CertType: ssh.UserCert, KeyId: "alice", ValidPrincipals: []string{"main"}, ValidBefore: ssh.CertTimeInfinity,
		}
		change(cert)
		if err := cert.SignCert(rand.Reader, authority); err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.NewCertSigner(cert, holder)
		if err != nil {
			t.Fatal(err)
		}
		return signer
	}
	from := func(address string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": address} }
	}
	t.want(t.login(certified(from("127.0.0.0/8"))), "who", "", "ca/alice as main from 127.0.0.1, may push true")
	password := func(c *ssh.ClientConfig) { c.Auth = append(c.Auth, ssh.Password("secret")) }
	for name, dial := range map[string]func() (*ssh.Client, error){
		"an unknown key":              func() (*ssh.Client, error) { return t.dial(newSigner(t)) },
		"no key":                      func() (*ssh.Client, error) { return t.dialWith(password) },
		"a certificate for elsewhere": func() (*ssh.Client, error) { return t.dial(certified(from("192.0.2.1"))) },
		"a certificate for others": func() (*ssh.Client, error) {
			return t.dial(certified(func(c *ssh.Certificate) { c.ValidPrincipals = nil }))
		},
		"the authority's own key":        func() (*ssh.Client, error) { return t.dial(authority) },
		"another's public key, unsigned": func() (*ssh.Client, error) { return t.dial(pretender{newSigner(t), key}) },
		"old ciphers": func() (*ssh.Client, error) {
			return t.dialWith(func(c *ssh.ClientConfig) { c.Ciphers = []string{ssh.CipherAES128CTR} }, key)
		},
		"old key exchanges": func() (*ssh.Client, error) {
			return t.dialWith(func(c *ssh.ClientConfig) { c.KeyExchanges = []string{ssh.InsecureKeyExchangeDH14SHA1} }, key)
		},
		"old host keys": func() (*ssh.Client, error) {
			return t.dialWith(func(c *ssh.ClientConfig) { c.HostKeyAlgorithms = []string{ssh.KeyAlgoRSA} }, key)
		},
	} {
		if c, err := dial(); err == nil {
			c.Close()
			t.Errorf("logged in with %s", name)
		}
	}
	for _, algorithm := range []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512} {
		c, err := t.dialWith(func(c *ssh.ClientConfig) { c.HostKeyAlgorithms = []string{algorithm} }, key)
		if err != nil {
			t.Errorf("%s: %v", algorithm, err)
			continue
		}
		c.Close()
	}

	// Who is logged in already is nobody once the key is revoked.
	c := t.login(key)
	t.want(c, "who", "", "ci as main from 127.0.0.1, may push true")
	if err := t.catalog.RevokeSSHKey(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	if _, err := run(c, "who", ""); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("after the key was revoked: %v", err)
	}
	if _, err := t.dial(key); err == nil {
		t.Error("logged in with a revoked key")
	}
}

// A pretender offers the key of somebody else, and signs with its own.
type pretender struct{ own, other ssh.Signer }

func (p pretender) PublicKey() ssh.PublicKey { return p.other.PublicKey() }
func (p pretender) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	return p.own.Sign(r, data)
}

// An address that fails again and again is counted, and the right key is good all the same.
func TestFailures(t0 *testing.T) {
	t := start(t0, sshd.Options{}, access.Options{Burst: 2, Pause: 50 * time.Millisecond})
	key := t.key("ci", access.SSHKeyOptions{})
	for range 5 {
		if c, err := t.dial(newSigner(t), newSigner(t)); err == nil {
			c.Close()
			t.Fatal("logged in")
		}
	}
	t.want(t.login(key), "echo", "hello", "hello")
	t.want(t.login(newSigner(t), key), "echo", "hello", "hello") // a wait later
}

// A connection on which nothing is said ends.
func TestIdle(t0 *testing.T) {
	t := start(t0, sshd.Options{Idle: 300 * time.Millisecond}, access.Options{})
	c := t.login(t.key("ci", access.SSHKeyOptions{}))
	t.want(c, "echo", "hello", "hello")
	c.Wait() // returns
}

// A server that ends lets what is going on find an end, and begins nothing more.
func TestEnd(t0 *testing.T) {
	t := start(t0, sshd.Options{}, access.Options{})
	key := t.key("ci", access.SSHKeyOptions{})
	c, quiet := t.login(key), t.login(key)
	type answer struct {
		text string
		err  error
	}
	begin := func(command string) <-chan answer {
		s := t.session(c)
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		s.Stderr = &stderr
		if err := s.Start(command); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len("waiting"))
		if _, err := io.ReadFull(out, first); err != nil {
			t.Fatal(err)
		}
		answers := make(chan answer, 1)
		go func() {
			rest, _ := io.ReadAll(out)
			err := s.Wait()
			answers <- answer{string(first) + string(rest) + stderr.String(), err}
		}()
		return answers
	}
	waiting, cut := begin("wait"), begin("hang up")
	if err := t.end(); err != nil {
		t.Error(err)
	}
	if a := <-waiting; a.text != "waiting, done" || a.err != nil {
		t.Errorf("an answer ended with %q, %v", a.text, a.err)
	}
	if a := <-cut; a.text != "waitingfirn: the server is ending\n" || a.err == nil {
		t.Errorf("a conversation ended with %q, %v", a.text, a.err)
	}
	quiet.Wait()
	if c, err := t.dial(key); err == nil {
		c.Close()
		t.Error("logged in")
	}
}

func TestHostKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ssh")
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	all := make([][]ssh.Signer, 2)
	var group sync.WaitGroup
	for i := range all {
		group.Go(func() {
			var err error
			if all[i], err = sshd.HostKeys(dir, logger); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(all[0]) != 3 || len(all[1]) != 3 {
		t.Fatalf("%d and %d keys", len(all[0]), len(all[1]))
	}
	for i, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		a, b := all[0][i].PublicKey(), all[1][i].PublicKey()
		if !bytes.Equal(a.Marshal(), b.Marshal()) || !strings.Contains(a.Type(), kind) {
			t.Errorf("keys %s and %s", a.Type(), b.Type())
		}
		path := filepath.Join(dir, "ssh_host_"+kind+"_key")
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
		public, err := os.ReadFile(path + ".pub")
		if err != nil || !bytes.Equal(public, ssh.MarshalAuthorizedKey(a)) {
			t.Errorf("%s.pub is %q, %v", path, public, err)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 6 {
		t.Errorf("%d files, %v", len(files), err)
	}
	if log.String() != "" {
		t.Errorf("logged %s", &log)
	}
	broken := filepath.Join(dir, "ssh_host_ecdsa_key")
	if err := os.Chmod(broken, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := sshd.HostKeys(dir, logger); err != nil || !strings.Contains(log.String(), "chmod 600") {
		t.Errorf("with a key that others can read: %v, logged %s", err, &log)
	}
	if err := os.WriteFile(broken, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sshd.HostKeys(dir, logger); err == nil || !strings.Contains(err.Error(), broken) {
		t.Errorf("with a broken key: %v", err)
	}
}

var _ sshd.Access = (*access.Access)(nil)

// What a server did can be counted.
func TestMetrics(t0 *testing.T) {
	t := start(t0, sshd.Options{}, access.Options{})
	c := t.login(t.key("ci", access.SSHKeyOptions{}))
	t.want(c, "echo", "hello", "hello")
	if _, err := run(c, "other", ""); err == nil {
		t.Error("an unknown command is answered")
	}
	if _, err := t.dial(newSigner(t)); err == nil {
		t.Error("an unknown key logs in")
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(t.door)
	gather := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				name := f.GetName()
				for _, l := range m.Label {
					name += " " + l.GetValue()
				}
				got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		return got
	}
	if n := gather()["firn_ssh_connections"]; n != 1 {
		t.Errorf("there are %v connections, want 1", n)
	}
	c.Close()
	if err := t.end(); err != nil { // until then somebody may still be counting
		t.Error(err)
	}
	got := gather()
	for _, direction := range []string{"received", "sent"} {
		name := "firn_ssh_bytes_total " + direction
		if got[name] < 1000 {
			t.Errorf("%v bytes were %s", got[name], direction)
		}
		delete(got, name)
	}
	want := map[string]float64{
		"firn_ssh_logins_total ok": 1, "firn_ssh_logins_total failed": 1, "firn_ssh_logins_total turned away": 0,
		"firn_ssh_connections": 0, "firn_ssh_sessions_in_flight": 0,
		"firn_ssh_sessions_total ok": 1, "firn_ssh_sessions_total failed": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

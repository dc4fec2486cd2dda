package sshd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"firn/internal/access"
	"firn/internal/catalog/sqlite/sqlitetest"
	"firn/internal/fairlimit"
	"firn/internal/sshd"
)

// loginFrom logs in from another address than the other clients.
func (t *tester) loginFrom(ip string, change func(net.Conn) net.Conn, signer ssh.Signer) (*ssh.Client, error) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", t.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c, channels, requests, err := ssh.NewClientConn(change(conn), t.address, &ssh.ClientConfig{
		User: "main", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}

func asItIs(c net.Conn) net.Conn { return c }

// One key cannot have all sessions, nor all connections.
func TestShares(t0 *testing.T) {
	t := start(t0, sshd.Options{Sessions: 8, Connections: 8}, access.Options{})
	greedy, modest := t.key("greedy", access.SSHKeyOptions{}), t.key("modest", access.SSHKeyOptions{})
	c := t.login(greedy)
	for range 10 {
		s := t.session(c)
		if err := s.Start("wait"); err != nil {
			t.Fatal(err)
		}
	}
	clients := 1
	for range 12 {
		c, err := t.loginFrom("127.0.0.1", asItIs, greedy)
		if err != nil {
			continue
		}
		defer c.Close()
		if _, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err == nil {
			clients++
		}
	}
	if clients != 4 {
		t.Errorf("one key has %d of 8 connections, want 4", clients)
	}
	other, err := t.loginFrom("127.0.0.2", asItIs, modest)
	if err != nil {
		t.Fatal(err)
	}
	t.want(other, "echo", "hello", "hello")
}

// blackHole is a connection whose client falls silent, and still hears.
type blackHole struct {
	net.Conn
	silent atomic.Bool
}

func (b *blackHole) Write(p []byte) (int, error) {
	if b.silent.Load() {
		return len(p), nil
	}
	return b.Conn.Write(p)
}

// A client is told why it is hung up on, and loses the connection if it does not take notice.
func TestHungUp(t0 *testing.T) {
	t := start(t0, sshd.Options{}, access.Options{})
	key := t.key("ci", access.SSHKeyOptions{})
	// begin runs the command, with a standard input that does not end, until it is answered.
	begin := func(c *ssh.Client, stderr io.Writer) *ssh.Session {
		s := t.session(c)
		s.Stderr = stderr
		_, err := s.StdinPipe()
		var out io.Reader
		if err == nil {
			out, err = s.StdoutPipe()
		}
		if err == nil {
			err = s.Start("slow")
		}
		if err == nil {
			_, err = io.ReadFull(out, make([]byte, len("waiting")))
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	c := t.login(key)
	var stderr lockedBuffer
	begin(c, &stderr).Wait()
	if got := stderr.String(); got != "firn: too slow\n" {
		t.Errorf("a client that is hung up on is told %q", got)
	}
	t.want(c, "echo", "hello", "hello") // nothing else of it ends

	var hole *blackHole
	deaf, err := t.loginFrom("127.0.0.1", func(c net.Conn) net.Conn {
		hole = &blackHole{Conn: c}
		return hole
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	begin(deaf, io.Discard)
	hole.silent.Store(true)
	if err := deaf.Wait(); err == nil {
		t.Error("the connection ended without an error")
	}
}

// pipes is a listener of connections from wherever a test says.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

type from struct {
	net.Conn
	addr *net.TCPAddr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// dialer starts a server, and returns what opens a connection to it from an address and waits until
// it is greeted.
func dialer(t *testing.T, opts sshd.Options) func(ip string) net.Conn {
	t.Helper()
	var err error
	opts.HostKeys, err = hostKeys()
	if err != nil {
		t.Fatal(err)
	}
	s := sshd.New(access.New(nil, nil, access.Options{}), echo, opts)
	ctx, cancel := context.WithCancel(t.Context())
	l := make(pipes)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		close(l)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return func(ip string) net.Conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close() })
		l <- from{theirs, &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}
		ours.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadFull(ours, make([]byte, len("SSH-2.0-firn"))); err != nil {
			t.Errorf("a connection that is new is not greeted: %v", err)
		}
		return ours
	}
}

// isOpen reports whether the server keeps a connection. What it has sent is read.
func isOpen(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := io.ReadAll(c)
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// A machine has as many addresses of an IPv6 network as it likes, and these count as one.
func TestNetworkThatDoesNotLogIn(t *testing.T) {
	dial := dialer(t, sshd.Options{Logins: 16})
	last := dial("2001:db8:0:1::1")
	var network []net.Conn
	for i := range 40 {
		network = append(network, dial(fmt.Sprintf("2001:db8::1:%x", i+1)))
	}
	// Of 16 one network has 8: those that came last. The others have made room, and not that of
	// another network.
	for i, c := range append(network, last) {
		if open, want := isOpen(c), i >= 40-8; open != want {
			t.Errorf("connection %d is open: %v, want %v", i, open, want)
		}
	}
}

// Where nothing else is said, as many connections wait for a log-in as the files of the process
// allow, half of them from one address: 128 with 4,096 files and more. Each more ends an older one.
func TestPlacesForLogins(t *testing.T) {
	places := fairlimit.OfProcess().SSHLogins
	open := func(conns []net.Conn) int {
		var n atomic.Int64
		var all sync.WaitGroup
		for _, c := range conns {
			all.Go(func() {
				if isOpen(c) {
					n.Add(1)
				}
			})
		}
		all.Wait()
		return int(n.Load())
	}
	dial := dialer(t, sshd.Options{})
	var one, many []net.Conn
	for range places {
		one = append(one, dial("192.0.2.1"))
	}
	if n := open(one); n != places/2 {
		t.Errorf("%d connections of one address are open, want %d", n, places/2)
	}
	for i := range 2 * places {
		many = append(many, dial(fmt.Sprintf("10.0.%d.%d", i>>8, i&255)))
	}
	if n := open(append(many, one...)); n != places {
		t.Errorf("%d connections are open, want %d", n, places)
	}
}

// silent opens connections that say nothing, until the test ends.
func (t *tester) silent(from string, n int) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	for range n {
		conn, err := dialer.DialContext(t.Context(), "tcp", t.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
}

// wantLogin logs in from an address, soon.
func (t *tester) wantLogin(from string, key ssh.Signer) {
	t.Helper()
	start := time.Now()
	c, err := t.loginFrom(from, asItIs, key)
	if err != nil {
		t.Errorf("a login from %s: %v", from, err)
		return
	}
	defer c.Close()
	t.want(c, "echo", "hello", "hello")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a login from %s took %s", from, took)
	}
}

// However many connections say nothing, from one address or from many, who has a key logs in, from
// the same address as well, also while more of them come.
func TestSilentConnections(t0 *testing.T) {
	t := start(t0, sshd.Options{}, access.Options{})
	key := t.key("ci", access.SSHKeyOptions{})
	for i := 2; i < 12; i++ {
		t.silent(fmt.Sprintf("127.0.0.%d", i), 60)
		t.wantLogin("127.0.0.1", key)
		t.wantLogin(fmt.Sprintf("127.0.0.%d", i), key)
	}
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer stop()
	var opened atomic.Int64
	flood.Go(func() {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		for opened.Load() < 5000 && ctx.Err() == nil {
			if conn, err := dialer.DialContext(ctx, "tcp", t.address); err == nil {
				defer conn.Close()
				opened.Add(1)
			}
			time.Sleep(time.Millisecond)
		}
	})
	for i := 0; i < 5 || opened.Load() < 500; i++ {
		t.wantLogin("127.0.0.1", key)
	}
}

// slowKey is a key that takes its time, as one does that a person has to touch.
type slowKey struct {
	ssh.Signer
	asked, touched chan struct{}
}

func (k slowKey) SignWithAlgorithm(random io.Reader, data []byte, _ string) (*ssh.Signature, error) {
	return k.Sign(random, data)
}

func (k slowKey) Sign(random io.Reader, data []byte) (*ssh.Signature, error) {
	close(k.asked)
	<-k.touched
	return k.Signer.Sign(random, data)
}

// Silent connections make room for each other, and a client that has exchanged keys with the server
// keeps its place all the time.
func TestSlowLogin(t0 *testing.T) {
	t := start(t0, sshd.Options{Logins: 8}, access.Options{})
	key := slowKey{t.key("ci", access.SSHKeyOptions{}), make(chan struct{}), make(chan struct{})}
	result := make(chan error, 1)
	go func() {
		c, err := t.loginFrom("127.0.0.1", asItIs, key)
		if err == nil {
			c.Close()
		}
		result <- err
	}()
	<-key.asked
	for i := 1; i < 12; i++ {
		t.silent(fmt.Sprintf("127.0.0.%d", i), 12)
	}
	t.wantLogin("127.0.0.1", key.Signer)
	close(key.touched)
	if err := <-result; err != nil {
		t.Errorf("the slow login: %v", err)
	}
}

// eager is a connection that takes what is written before the other end reads it.
type eager struct {
	net.Conn
	out chan []byte
}

func newEager(c net.Conn) *eager {
	e := &eager{c, make(chan []byte, 100)}
	go func() {
		for p := range e.out {
			if _, err := c.Write(p); err != nil {
				return
			}
		}
	}()
	return e
}

func (e *eager) Write(p []byte) (int, error) {
	e.out <- bytes.Clone(p)
	return len(p), nil
}

// watched is a connection that notes when the other end hung up.
type watched struct {
	net.Conn
	ended chan time.Time
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		select {
		case w.ended <- time.Now():
		default:
		}
	}
	return n, err
}

// A connection that says nothing ends soon, one that has exchanged keys has a minute, and neither
// is there for longer.
func TestLoginLimits(t *testing.T) {
	keys, err := hostKeys()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := sshd.New(access.New(sqlitetest.Open(t, nil), sqlitetest.Open(t, nil), access.Options{}), echo,
			sshd.Options{HostKeys: keys, Logger: slog.New(slog.DiscardHandler)})
		l := make(pipes)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, l) }()
		dial := func() net.Conn {
			ours, theirs := net.Pipe()
			l <- from{theirs, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
			return ours
		}
		began := time.Now()
		if _, err := io.ReadAll(dial()); err != nil || time.Since(began) != 10*time.Second {
			t.Errorf("a silent connection ended after %s, %v", time.Since(began), err)
		}
		began = time.Now()
		thinks := &watched{newEager(dial()), make(chan time.Time, 1)}
		_, _, _, err := ssh.NewClientConn(thinks, "x", &ssh.ClientConfig{User: "main", HostKeyCallback: ssh.InsecureIgnoreHostKey(),
			Auth: []ssh.AuthMethod{ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
				time.Sleep(time.Hour)
				return nil, nil
			})}})
		if took := (<-thinks.ended).Sub(began); err == nil || took != time.Minute {
			t.Errorf("a client that thinks for an hour was hung up on after %s, %v", took, err)
		}
		close(thinks.Conn.(*eager).out)
		cancel()
		close(l)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

package sshd_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"firn/internal/access"
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

// A machine has as many addresses of an IPv6 network as it likes, and these count as one.
func TestNetworkThatDoesNotLogIn(t *testing.T) {
	keys, err := hostKeys()
	if err != nil {
		t.Fatal(err)
	}
	s := sshd.New(access.New(nil, nil, access.Options{}), echo, sshd.Options{HostKeys: keys, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	l := make(pipes)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	defer func() {
		cancel()
		close(l)
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	dial := func(ip string) (greeted bool) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close() })
		l <- from{theirs, &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}
		ours.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := io.ReadFull(ours, make([]byte, len("SSH-2.0-firn")))
		return err == nil
	}
	greeted := 0
	for i := range 40 {
		if dial(fmt.Sprintf("2001:db8::1:%x", i+1)) {
			greeted++
		}
	}
	if greeted != 32 {
		t.Errorf("%d connections from one network are greeted, want 32", greeted)
	}
	if !dial("2001:db8:0:1::1") {
		t.Error("there is none left for another network")
	}
}

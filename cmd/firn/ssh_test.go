package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/protocol"
)

// One key that begins many NARs, and ends none, leaves others their places, over SSH and over HTTP.
func TestStalledPushes(t *testing.T) {
	address := "127.0.0.1:" + freePort(t)
	a := newAdmin(t, "--ssh", address)
	signers := map[string]ssh.Signer{"stalls": a.addKey("stalls", "main"), "pushes": a.addKey("pushes", "main")}
	token := a.mustRun("token", "create", "ci", "--push", "main")
	login := func(name, from string) *ssh.Client {
		c, err := dialSSH(t, address, from, "main", signers[name])
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	path := func(name string) cachetest.Path {
		return cachetest.NewPath(t, nix.DefaultStoreDir, name, strings.Repeat(name, 1<<14))
	}
	const connections, sessions = 7, 10
	for i := range connections {
		c := login("stalls", "127.0.0.1")
		for j := range sessions {
			p := path(fmt.Sprintf("stalled-%d-%d", i, j))
			half, rest := io.Pipe()
			t.Cleanup(func() { rest.Close() })
			go pushOver(c, p, half) // ends with the test
			rest.Write(p.NAR[:len(p.NAR)-8])
		}
	}
	p := path("over-ssh")
	if err := pushOver(login("pushes", "127.0.0.2"), p, bytes.NewReader(p.NAR)); err != nil {
		t.Error(err)
	}
	a.push("", token, path("over-http"), http.StatusCreated)
}

// addKey adds an SSH key that may push to the caches of a pattern.
func (a *admin) addKey(name, push string) ssh.Signer {
	a.Helper()
	signer := newSigner(a.T)
	file := filepath.Join(a.TempDir(), name+".pub")
	if err := os.WriteFile(file, ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o600); err != nil {
		a.Fatal(err)
	}
	a.mustRun("sshkey", "add", name, file, "--push", push)
	return signer
}

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// dialSSH logs in from an address of this machine.
func dialSSH(t *testing.T, address, from, user string, signer ssh.Signer) (*ssh.Client, error) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}

// pushOver pushes a path in a conversation of its own.
func pushOver(c *ssh.Client, p cachetest.Path, nar io.Reader) error {
	s, err := c.NewSession()
	if err != nil {
		return err
	}
	defer s.Close()
	in, err := s.StdinPipe()
	if err != nil {
		return err
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.Start("nix-daemon --stdio"); err != nil {
		return err
	}
	client, err := protocol.DialWorker(struct {
		io.Reader
		io.Writer
	}{out, in}, nix.DefaultStoreDir)
	if err != nil {
		return err
	}
	return client.AddNAR(p.Info, nar)
}

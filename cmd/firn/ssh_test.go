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
	signers := map[string]ssh.Signer{}
	for _, name := range []string{"stalls", "pushes"} {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		line, err := ssh.NewPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), name+".pub")
		if err := os.WriteFile(file, ssh.MarshalAuthorizedKey(line), 0o600); err != nil {
			t.Fatal(err)
		}
		a.mustRun("sshkey", "add", name, file, "--push", "main")
		if signers[name], err = ssh.NewSignerFromKey(private); err != nil {
			t.Fatal(err)
		}
	}
	token := a.mustRun("token", "create", "ci", "--push", "main")
	login := func(name, from string) *ssh.Client {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := dialer.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{
			User: "main", Auth: []ssh.AuthMethod{ssh.PublicKeys(signers[name])}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		})
		if err != nil {
			t.Fatal(err)
		}
		return ssh.NewClient(c, channels, requests)
	}
	path := func(name string) cachetest.Path {
		return cachetest.NewPath(t, nix.DefaultStoreDir, name, strings.Repeat(name, 1<<14))
	}
	push := func(c *ssh.Client, p cachetest.Path, nar io.Reader) error {
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
	const connections, sessions = 7, 10
	for i := range connections {
		c := login("stalls", "127.0.0.1")
		for j := range sessions {
			p := path(fmt.Sprintf("stalled-%d-%d", i, j))
			half, rest := io.Pipe()
			t.Cleanup(func() { rest.Close() })
			go push(c, p, half) // ends with the test
			rest.Write(p.NAR[:len(p.NAR)-8])
		}
	}
	p := path("over-ssh")
	if err := push(login("pushes", "127.0.0.2"), p, bytes.NewReader(p.NAR)); err != nil {
		t.Error(err)
	}
	a.push("", token, path("over-http"), http.StatusCreated)
}

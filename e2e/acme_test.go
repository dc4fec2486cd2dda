package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"firn/internal/catalog/sqlite"
	"firn/internal/certs"
)

// With --acme a certificate appears, and every Nix but 2.3 copies by name; either challenge will do.
func TestACME(t *testing.T) {
	t.Parallel()
	const name, alias, other = "cache.firn.example", "alias.firn.example", "team.firn.example"
	names := []string{name, alias, other}
	ca := newPebble(t, names...)
	for _, challenge := range []string{"tls-alpn-01", "http-01"} {
		t.Run(challenge, func(t *testing.T) {
			host := newMachine(t, systemNix())
			admin(host, "cache create", "team", "--host", other)
			admin(host, "cache set", "main", "--host", name, "--host", alias)
			args := []string{
				"--store", debian(t).Root, "--acme", "admin@firn.example", "--acme-directory", ca.directory, "--acme-ca", ca.ca,
				"--acme-challenge", challenge, "--listen", "127.0.0.1:" + ca.http, "--https", "127.0.0.1:" + ca.tls, "--plain-http", "redirect",
			}
			s := startFirn(host, args...)
			roots := pool(t, ca.roots)
			address := "127.0.0.1:" + ca.tls
			for _, name := range names {
				eventually(t, "there is a certificate for "+name, func() bool { return shown(t, address, name, roots) != nil })
			}
			if challenge == "http-01" {
				return
			}
			root := debianPath(t, "bash").String()
			eachLaterNix(t, func(t *testing.T, n nixSystem) {
				for _, url := range []string{"https://" + name + ":" + ca.tls, "http://" + alias + ":" + ca.http} { // the second is redirected
					client := newMachine(t, n)
					client.run(withHosts(client, "127.0.0.1", names, "env", "NIX_SSL_CERT_FILE="+ca.roots,
						"nix", "copy", "--from", url, root, "--option", "trusted-public-keys", s.publicKey)...)
				}
			})
		})
	}
}

// A certificate is renewed in time, also when the authority is away for long; nodes share what one got, and answer for each other.
func TestACMERenewal(t *testing.T) {
	t.Parallel()
	const name = "cache.firn.example"
	hosts := []string{name}
	ca := newPebble(t, name)
	cat, err := sqlite.Open(t.Context(), filepath.Join(tempDir(t), "catalog.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	var moved atomic.Int64 // the clock, in nanoseconds
	node := func() *certs.Certs {
		c, err := certs.New(certs.Options{
			ACME: &certs.ACME{Email: "a@firn.example", Directory: ca.directory, Roots: pool(t, ca.ca), ALPN: true, Notes: cat, Leases: cat},
			Now:  func() time.Time { return time.Now().Add(time.Duration(moved.Load())) },
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := node(), node()
	// Clients, and the authority, reach node b only.
	var front atomic.Pointer[certs.Certs]
	front.Store(b)
	l, err := net.Listen("tcp", "127.0.0.1:"+ca.tls)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler()}
	srv.TLSConfig = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		config := front.Load().Config()
		if own, err := config.GetConfigForClient(hello); own != nil || err != nil {
			return own, err
		}
		return config, nil
	}}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(l, "", "") }()
	defer func() {
		srv.Close()
		<-served
	}()
	roots := pool(t, ca.roots)
	current := func() *x509.Certificate {
		t.Helper()
		cert := shown(t, l.Addr().String(), name, roots)
		if cert == nil {
			t.Fatal("there is no certificate")
		}
		return cert
	}

	if shown(t, l.Addr().String(), name, roots) != nil {
		t.Fatal("there is a certificate before anybody got one")
	}
	a.Tick(t.Context(), hosts)
	b.Tick(t.Context(), hosts) // has what a got
	first := current()
	const day = 24 * time.Hour
	moved.Store(int64(59 * day))
	b.Tick(t.Context(), hosts)
	if !current().Equal(first) {
		t.Error("it was renewed after 59 of 90 days")
	}

	ca.stop()
	moved.Store(int64(61 * day))
	for range 3 {
		b.Tick(t.Context(), hosts)
	}
	if !current().Equal(first) {
		t.Error("another certificate, from nowhere")
	}
	front.Store(node()) // as after a restart
	front.Load().Tick(t.Context(), hosts)
	if !current().Equal(first) {
		t.Error("the certificate was lost while the authority was away")
	}

	// It comes back, and has forgotten the account. The first try finds that, the next makes another.
	ca.start()
	roots = pool(t, ca.roots)
	b = node()
	front.Store(b)
	for range 3 {
		b.Tick(t.Context(), hosts)
		moved.Add(int64(2 * time.Minute))
	}
	second := current()
	if second.Equal(first) {
		t.Error("it was not renewed")
	}
	b.Tick(context.Background(), hosts)
	if !current().Equal(second) {
		t.Error("where the clock is wrong, it is renewed again and again")
	}
}

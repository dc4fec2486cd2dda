package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"firn/internal/certs"
)

// write writes a certificate for the names that signs itself, and its key. serial tells it from others.
func write(t *testing.T, p certs.Pair, serial int64, names ...string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{p.Cert: {Type: "CERTIFICATE", Bytes: der}, p.Key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		// As tools do it: another file takes the place of the last.
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}

func pairIn(dir, name string) certs.Pair {
	return certs.Pair{Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}

// serial returns the number of the certificate that a client of a name is shown.
func serial(t *testing.T, c *certs.Certs, name string) int64 {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		_ = tls.Server(server, c.Config()).HandshakeContext(t.Context()) // the client says what is wrong
	}()
	conn := tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("handshake for %q: %v", name, err)
	}
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// The name that a client asks for chooses among the files.
func TestChoose(t *testing.T) {
	dir := t.TempDir()
	pairs := []certs.Pair{pairIn(dir, "first"), pairIn(dir, "wild"), pairIn(dir, "exact")}
	write(t, pairs[0], 1, "first.example")
	write(t, pairs[1], 2, "*.example.org")
	write(t, pairs[2], 3, "a.example.org", "b.example.net")
	c, err := certs.New(certs.Options{Pairs: pairs})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{
		"first.example": 1, "": 1, "other.example": 1, "x.a.example.org": 1,
		"b.example.org": 2,
		"a.example.org": 3, "A.Example.ORG": 3, "b.example.net": 3,
	} {
		if got := serial(t, c, name); got != want {
			t.Errorf("%q gets certificate %d, want %d", name, got, want)
		}
	}
}

// Files that change are read again, and what cannot be read leaves what there was.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	pair := pairIn(dir, "a")
	write(t, pair, 1, "a")
	c, err := certs.New(certs.Options{Pairs: []certs.Pair{pair}})
	if err != nil {
		t.Fatal(err)
	}
	want := func(n int64) {
		t.Helper()
		c.Reload()
		if got := serial(t, c, "a"); got != n {
			t.Errorf("certificate %d is shown, want %d", got, n)
		}
	}
	want(1)
	write(t, pair, 2, "a")
	want(2)

	// One of the two is there, and the other not yet.
	other := pairIn(dir, "b")
	write(t, other, 3, "a")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(other.Cert, pair.Cert)
	want(2)
	move(other.Key, pair.Key)
	want(3)

	if err := os.WriteFile(pair.Cert, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want(3)
	if err := os.Remove(pair.Cert); err != nil {
		t.Fatal(err)
	}
	want(3)
	write(t, pair, 4, "a")
	want(4)
}

func TestNewErrors(t *testing.T) {
	dir := t.TempDir()
	a, b := pairIn(dir, "a"), pairIn(dir, "b")
	write(t, a, 1, "a")
	write(t, b, 1, "b")
	for _, test := range []struct {
		pair certs.Pair
		want string
	}{
		{pairIn(dir, "absent"), "no such file"},
		{certs.Pair{Cert: a.Cert, Key: b.Key}, "private key does not match public key"},
		{certs.Pair{Cert: a.Key, Key: a.Cert}, "PEM"},
	} {
		if _, err := certs.New(certs.Options{Pairs: []certs.Pair{test.pair}}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.pair, err, test.want)
		}
	}
}

// Nothing older than TLS 1.2 is spoken.
func TestOldTLS(t *testing.T) {
	pair := pairIn(t.TempDir(), "a")
	write(t, pair, 1, "a")
	c, err := certs.New(certs.Options{Pairs: []certs.Pair{pair}})
	if err != nil {
		t.Fatal(err)
	}
	for version, spoken := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			_ = tls.Server(server, c.Config()).HandshakeContext(t.Context())
		}()
		err := tls.Client(client, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}).HandshakeContext(t.Context())
		if (err == nil) != spoken {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		client.Close()
	}
}

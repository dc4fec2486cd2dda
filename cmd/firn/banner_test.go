package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// newCertificate makes a certificate for names and addresses that signs itself, and returns its
// file and that of its key.
func newCertificate(t *testing.T, names ...string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, text []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: text}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", secret)
}

// The start announces URLs that clients with TLS take: their names are in the certificates.
func TestAnnouncedNames(t *testing.T) {
	t.Parallel()
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what    string
		cert    []string
		address string
		want    []string // hosts of the URLs, the first of which clients get
		missing bool
	}{
		{"hosts of the cache and other names", []string{"*.example.org", "cache.test", "team.example.org"}, "[::]:0", []string{"alias.example.org", "cache.test"}, false},
		{"this machine", []string{hostname}, "[::]:0", []string{hostname}, false},
		{"an address", []string{"127.0.0.1", "cache.test"}, "127.0.0.1:0", []string{"127.0.0.1"}, false},
		{"an address that has no certificate", []string{"cache.test"}, "127.0.0.1:0", []string{"cache.test"}, false},
		{"no name", []string{"*.example.com"}, "[::]:0", []string{hostname}, true},
	} {
		state := filepath.Join(t.TempDir(), "state")
		a := &admin{t, nil, state}
		a.mustRun("cache", "set", "main", "--host", "alias.example.org")
		a.mustRun("cache", "create", "team", "--host", "team.example.org")
		cert, key := newCertificate(t, test.cert...)
		s := startServer(t, environment(t), "--state", state, "--store", "off", "--listen", "127.0.0.1:0", "--https", test.address, "--tls-cert", cert, "--tls-key", key)
		var got []string
		for _, match := range regexp.MustCompile(`(?m)^  https://(\S+):\d+$`).FindAllStringSubmatch(s.announced, -1) {
			got = append(got, match[1])
		}
		if strings.Join(got, " ") != strings.Join(test.want, " ") || strings.Contains(s.announced, "No certificate has this name") != test.missing ||
			!strings.Contains(s.announced, "extra-substituters = https://"+test.want[0]+":") {
			t.Errorf("%s: want %q, announced\n%s", test.what, test.want, s.announced)
		}
	}
}

package access_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"firn/internal/access"
	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite/sqlitetest"
)

// issued is a certificate with its key.
type issued struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// issue makes a certificate that by signs, or it itself if by is nil.
func issue(t *testing.T, by *issued, template x509.Certificate) *issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.BasicConstraintsValid = true
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	signer := &issued{&template, key}
	if by != nil {
		signer = by
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, signer.Certificate, key.Public(), signer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{cert, key}
}

func (c *issued) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func authority(name string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
}

func client(name string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

func TestCertificate(t *testing.T) {
	cat := sqlitetest.Open(t, nil)
	now := time.Now()
	a := access.New(cat, cat, access.Options{Now: func() time.Time { return now }, Burst: 1000})
	add := func(name string, cert *issued, expires time.Time) {
		t.Helper()
		record, err := access.NewCertificate(name, cert.pem(), []catalog.Grant{{Pattern: "main", Rights: uint8(cache.Push)}}, expires)
		if err != nil {
			t.Fatal(err)
		}
		if err := cat.AddToken(t.Context(), record); err != nil {
			t.Fatal(err)
		}
	}
	alone := issue(t, nil, client("alone"))
	staff := issue(t, nil, authority("staff"))
	branch := issue(t, staff, authority("branch"))
	alice, bob := issue(t, staff, client("alice")), issue(t, branch, client("bob"))
	old := client("old")
	old.NotBefore, old.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour)
	forServers := client("server")
	forServers.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	pretender := issue(t, nil, authority("staff"))
	add("alone", alone, time.Time{})
	add("staff", staff, time.Time{})
	oldAlone := issue(t, nil, old)
	add("old", oldAlone, time.Time{})
	ended := issue(t, nil, client("ended"))
	add("ended", ended, now.Add(-time.Minute))
	renewed := issueWith(t, alone)

	for _, test := range []struct {
		name  string
		chain []*issued
		want  string // "" if it is refused
	}{
		{"itself", []*issued{alone}, "alone"},
		{"renewed with the same key", []*issued{renewed}, "alone"},
		{"of the authority", []*issued{alice, staff}, "staff/alice"},
		{"of one that it signed", []*issued{bob, branch, staff}, "staff/bob"},
		{"the authority itself", []*issued{staff}, "staff"},
		{"without the authority", []*issued{alice}, ""},
		{"without what is between", []*issued{bob, staff}, ""},
		{"of another of that name", []*issued{issue(t, pretender, client("eve")), pretender}, ""},
		{"signed by another, with the authority behind", []*issued{issue(t, pretender, client("eve")), staff}, ""},
		{"signed by one that is no authority", []*issued{issue(t, alice, client("eve")), alice, staff}, ""},
		{"signed by one that is known, and no authority", []*issued{issue(t, alone, client("eve")), alone}, ""},
		{"unknown", []*issued{pretender}, ""},
		{"past its time", []*issued{oldAlone}, ""},
		{"past its time, of the authority", []*issued{issue(t, staff, old), staff}, ""},
		{"for servers", []*issued{issue(t, staff, forServers), staff}, ""},
		{"of a record that has ended", []*issued{ended}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var chain []*x509.Certificate
			for _, c := range test.chain {
				chain = append(chain, c.Certificate)
			}
			p, err := a.Certificate(t.Context(), chain, netip.Addr{})
			if test.want == "" {
				if !errors.Is(err, cache.ErrUnauthenticated) {
					t.Errorf("it is %v, %v", p, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Name() != test.want || !p.May(cache.Push, "main") || p.May(cache.Read, "other") {
				t.Errorf("it is %s, want %s", p.Name(), test.want)
			}
		})
	}

	// What is in a certificate is public, and good for nothing as a token.
	secret := "Bearer " + string(alone.RawSubjectPublicKeyInfo)
	if p, err := a.Authenticate(t.Context(), secret, netip.Addr{}); !errors.Is(err, cache.ErrUnauthenticated) {
		t.Errorf("a public key as a token: %v, %v", p, err)
	}
	if err := cat.RevokeToken(t.Context(), "staff"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Certificate(t.Context(), []*x509.Certificate{alice.Certificate, staff.Certificate}, netip.Addr{}); !errors.Is(err, cache.ErrUnauthenticated) {
		t.Errorf("after it was revoked: %v", err)
	}
}

// issueWith makes another certificate of the same key.
func issueWith(t *testing.T, c *issued) *issued {
	t.Helper()
	template := client("renewed")
	template.SerialNumber = big.NewInt(2)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{cert, c.key}
}

func TestNewCertificate(t *testing.T) {
	cert := issue(t, nil, client("a"))
	grants := []catalog.Grant{{Pattern: "*"}}
	for _, test := range []struct {
		name, text, want string
		grants           []catalog.Grant
	}{
		{"a", "", "this is no certificate", grants},
		{"a", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "this is a private key", grants},
		{"a", string(cert.pem()) + string(cert.pem()), "more than one", grants},
		{"a b", string(cert.pem()), "name of a token", grants},
		{"a", string(cert.pem()), "it has 0 rights", nil},
	} {
		if _, err := access.NewCertificate(test.name, []byte(test.text), test.grants, time.Time{}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("NewCertificate of %q: %v, want %q", test.text, err, test.want)
		}
	}
}

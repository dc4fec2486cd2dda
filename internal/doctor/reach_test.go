package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestReach(t *testing.T) {
	to := func(url string) func(*fixture) {
		return func(f *fixture) { f.url = func(string) string { return url } }
	}
	findAll(t, map[string]fault{
		"no name":   {to("http://cache.invalid"), skips(map[string]string{"name": "fail cache.invalid"}, after("name", "substituters")...)},
		"no server": {to("http://127.0.0.1:1"), skips(map[string]string{"connect": "fail 127.0.0.1:1 does not answer: connection refused"}, after("connect", "substituters")...)},
		"by name": {func(f *fixture) {
			f.url = func(at string) string { return strings.Replace(at, "127.0.0.1", "localhost", 1) }
			f.server = func(h http.Handler) *httptest.Server { return dual(f.t, h) }
		}, map[string]string{"certificate": "skip over http"}},
	})
}

// dual serves on both addresses that localhost may have.
func dual(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	six, err := net.Listen("tcp", "[::1]:"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { six.Close() })
	go s.Config.Serve(six)
	return s
}

// One address that does not answer is not as bad as all of them.
func TestAddresses(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	good := s.Listener.Addr().String()
	for _, test := range []struct {
		addresses []string
		verdict   Verdict
		text      string
	}{
		{[]string{good}, OK, good + " answers"},
		{[]string{good, "127.0.0.1:1"}, Warn, good + " answers; but 127.0.0.1:1 does not answer: connection refused"},
		{[]string{"127.0.0.1:1", "127.0.0.2:1"}, Fail, "127.0.0.1:1 does not answer: connection refused; 127.0.0.2:1"},
	} {
		e := &examination{addresses: test.addresses}
		if f := e.checkConnect(t.Context()); f.Verdict != test.verdict || !strings.Contains(f.Seen, test.text) {
			t.Errorf("%v: %s: %s", test.addresses, f.Verdict, f.Seen)
		}
	}
}

// A proxy looks names up, and connects.
func TestProxy(t *testing.T) {
	e := &examination{proxy: "proxy:3128"}
	if f := e.checkConnect(t.Context()); f.Verdict != Skip || !strings.Contains(f.Seen, "proxy:3128") {
		t.Errorf("%s: %s", f.Verdict, f.Seen)
	}
	if reason := aConnection(e); reason != "" {
		t.Error(reason)
	}
}

// An authority makes certificates.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// sign makes a certificate of the authority; the zero authority makes one that is signed by itself.
func (a authority) sign(template x509.Certificate) authority {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.BasicConstraintsValid = true
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-24*time.Hour), time.Now().Add(90*24*time.Hour)
	}
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = &template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return authority{a.t, key, cert}
}

func TestCertificate(t *testing.T) {
	ca := x509.Certificate{Subject: pkix.Name{CommonName: "Root"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	root := authority{t: t}.sign(ca)
	ca.Subject.CommonName = "Middle"
	middle := root.sign(ca)
	local := x509.Certificate{Subject: pkix.Name{CommonName: "leaf"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"cache.example"}}
	leaf := middle.sign(local)
	roots := x509.NewCertPool()
	roots.AddCert(root.cert)

	// served serves over TLS with a certificate, and those that are sent with it.
	served := func(leaf authority, more ...authority) func(*fixture) {
		return func(f *fixture) {
			f.opts.Roots = roots
			f.server = func(h http.Handler) *httptest.Server {
				s := httptest.NewUnstartedServer(h)
				cert := tls.Certificate{Certificate: [][]byte{leaf.cert.Raw}, PrivateKey: leaf.key}
				for _, m := range more {
					cert.Certificate = append(cert.Certificate, m.cert.Raw)
				}
				s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
				s.EnableHTTP2 = true
				s.Config.ErrorLog = log.New(io.Discard, "", 0)
				s.StartTLS()
				return s
			}
		}
	}
	at := func(d time.Duration) func(*fixture) {
		return func(f *fixture) {
			served(leaf, middle)(f)
			f.opts.Now = func() time.Time { return time.Now().Add(d) }
		}
	}
	broken := func(text string) map[string]string {
		return skips(map[string]string{"certificate": "fail " + text}, after("certificate", "substituters")...)
	}
	elsewhere := local
	elsewhere.IPAddresses = nil
	nameless := elsewhere
	nameless.DNSNames = nil
	short := local
	short.NotBefore, short.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(6*24*time.Hour)
	findAll(t, map[string]fault{
		"good":           {served(leaf, middle), nil},
		"short-lived":    {served(root.sign(short)), nil},
		"not renewed":    {at(80 * 24 * time.Hour), map[string]string{"certificate": "warn only", "clock": "warn"}},
		"past":           {at(91 * 24 * time.Hour), broken("was good until")},
		"future":         {at(-48 * time.Hour), broken("is good from")},
		"other name":     {served(middle.sign(elsewhere), middle), broken(`is for "cache.example", and not for 127.0.0.1`)},
		"no name":        {served(middle.sign(nameless), middle), broken(`is for no name`)},
		"chain missing":  {served(leaf), broken(`sends one certificate, made by "Middle"`)},
		"chain too long": {served(leaf, middle, root), nil},
		"self-signed":    {served(authority{t: t}.sign(local)), broken("signed by itself")},
		"unknown": {func(f *fixture) {
			served(leaf, middle)(f)
			f.opts.Roots = x509.NewCertPool()
		}, broken(`made by "Middle", does not lead to an authority`)},
		"no TLS": {func(f *fixture) {
			f.url = func(at string) string { return strings.Replace(at, "http:", "https:", 1) }
		}, broken("does not speak TLS there")},
		"old": {func(f *fixture) {
			served(leaf, middle)(f)
			start := f.server
			f.server = func(h http.Handler) *httptest.Server {
				s := start(h)
				s.TLS.MinVersion, s.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
				return s
			}
		}, broken("TLS 1.1, which clients refuse")},
	})

	f := newFixture(t)
	served(leaf, middle)(f)
	for _, finding := range f.examine() {
		if finding.Check == "connections" && !strings.Contains(finding.Seen, "HTTP/2") {
			t.Errorf("over TLS: %s", finding.Seen)
		}
	}
}

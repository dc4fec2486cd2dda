package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"firn/internal/audit"
	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/fairlimit"
	"firn/internal/server/connlimit"
)

// certificate makes a certificate that signs itself.
func certificate(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// serveTLS has t answer with TLS, and gives it a client that speaks HTTP/2.
func (t *tester) serveTLS(config *tls.Config, client *tls.Config) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	server := t.server
	go func() { served <- server.ServeTLS(ctx, l, config) }()
	t.url = "https://" + l.Addr().String()
	t.client = &http.Client{
		Transport:     &http.Transport{DisableCompression: true, ForceAttemptHTTP2: true, TLSClientConfig: client},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(func() {
		t.client.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("ServeTLS: %v", err)
		}
	})
}

// A thousand narinfos go over one connection of HTTP/2, a hundred at once as with curl.
func TestHTTP2(t *testing.T) {
	tt := newTester(t)
	cert := certificate(t, "cache.example.org")
	tt.serveTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{InsecureSkipVerify: true})
	if resp, _ := tt.do("GET", "/nix-cache-info"); resp.Proto != "HTTP/2.0" || resp.TLS.Version != tls.VersionTLS13 {
		t.Fatalf("answered with %s and TLS %x", resp.Proto, resp.TLS.Version)
	}
	var group errgroup.Group
	group.SetLimit(100)
	var mu sync.Mutex
	connections := map[string]bool{}
	for range 1000 {
		group.Go(func() error {
			trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
				mu.Lock()
				defer mu.Unlock()
				connections[info.Conn.LocalAddr().String()] = true
			}}
			req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", tt.url+"/"+helloHash+".narinfo", nil)
			if err != nil {
				return err
			}
			resp, err := tt.client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil || !strings.HasPrefix(string(text), "StorePath: ") {
				return fmt.Errorf("%s: %q, %w", resp.Status, text, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if len(connections) != 1 {
		t.Errorf("it took %d connections", len(connections))
	}
	// What is refused with its body unread does not end the connection for the others.
	resp, err := tt.client.Post(tt.url+"/nix-cache-info", "text/plain", strings.NewReader(strings.Repeat("x", 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
	tt.get(200, "/nix-cache-info")
}

// However many requests one client begins over HTTP/2, and leaves unfinished, they are bounded, and others are answered.
func TestManyRequests(t *testing.T) {
	tt := newCaches(t, Options{Uploads: 1, Proxies: Proxies{Ranges: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}})
	tt.server.few, tt.server.streams = 2, fairlimit.New(6)
	tt.serveTLS(&tls.Config{Certificates: []tls.Certificate{certificate(t, "a")}}, &tls.Config{InsecureSkipVerify: true})
	var waiting sync.WaitGroup
	var ends []func() error
	for i := range int64(2 + 3) {
		body, end := io.Pipe()
		ends = append(ends, end.Close)
		waiting.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), "PUT", tt.url+"/"+cachetest.URL(tt.path.NAR, ""), body)
			if err != nil {
				t.Error(err)
				return
			}
			r.SetBasicAuth("", "push-main")
			resp, err := tt.client.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
		for end := time.Now().Add(time.Minute); tt.server.metrics.inFlight.Load() != i+1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d requests are being answered, want %d", tt.server.metrics.inFlight.Load(), i+1)
			}
		}
	}
	get := func(status int, headers ...string) {
		t.Helper()
		if resp, text := tt.do("GET", "/nix-cache-info", headers...); resp.StatusCode != status {
			t.Errorf("%s: %s, want %d", resp.Status, text, status)
		}
	}
	get(http.StatusServiceUnavailable)
	get(http.StatusOK, "X-Forwarded-For: 192.0.2.1")
	for _, end := range ends {
		end()
	}
	waiting.Wait()
	get(http.StatusOK)
}

func TestHTTP2Off(t *testing.T) {
	tt := newTester(t)
	tt.server = newServer(cache.Only(tt.cache), Options{NoHTTP2: true})
	tt.serveTLS(&tls.Config{Certificates: []tls.Certificate{certificate(t, "a")}}, &tls.Config{InsecureSkipVerify: true})
	if resp, _ := tt.do("GET", "/nix-cache-info"); resp.Proto != "HTTP/1.1" {
		t.Errorf("answered with %s", resp.Proto)
	}
}

// A client of HTTP/2 that takes nothing is given up on, and holds nothing open for longer.
func TestSlowStream(t *testing.T) {
	w := &deadlines{}
	s := newStream(w)
	for range 3 {
		if n, err := s.Write(make([]byte, connlimit.Slice)); n != connlimit.Slice || err != nil {
			t.Fatal(n, err)
		}
	}
	if w.set != 3 || w.n != 3*connlimit.Slice {
		t.Errorf("%d deadlines for %d bytes, want one a connlimit.Slice", w.set, w.n)
	}
	w.err = errors.New("too late")
	if _, err := s.Write(make([]byte, 10)); err != w.err {
		t.Errorf("%v", err)
	}
}

type deadlines struct {
	http.ResponseWriter
	set, n int
	err    error
}

func (d *deadlines) SetWriteDeadline(at time.Time) error {
	if left := time.Until(at); left < connlimit.Patience-time.Minute || left > connlimit.Patience {
		return fmt.Errorf("a deadline in %v", left)
	}
	d.set++
	return d.err
}

func (d *deadlines) Write(p []byte) (int, error) {
	d.n += len(p)
	return len(p), nil
}

// bearer knows one certificate.
type bearer struct {
	guard
	known *x509.Certificate
}

func (b bearer) Certificate(_ context.Context, chain []*x509.Certificate, _ netip.Addr) (cache.Principal, error) {
	if !chain[0].Equal(b.known) {
		return nil, fmt.Errorf("%w: no such certificate", cache.ErrUnauthenticated)
	}
	return holder{"known", map[string]cache.Rights{cache.Main: cache.Read}}, nil
}

func TestClientCertificate(t *testing.T) {
	tt := newTester(t)
	c, err := cache.New([]cache.Source{tt.source}, cache.Options{Private: true})
	if err != nil {
		t.Fatal(err)
	}
	known, unknown := certificate(t, "known"), certificate(t, "unknown")
	tt.server = newServer(cache.Only(c), Options{Access: bearer{known: known.Leaf}})
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t, "server")}, ClientAuth: tls.RequestClientCert}
	for _, test := range []struct {
		shown  []tls.Certificate
		status int
		text   string
	}{
		{nil, 401, "this needs a token"},
		{[]tls.Certificate{unknown}, 401, "this certificate is not known"},
		{[]tls.Certificate{known}, 200, "StoreDir"},
	} {
		tt.serveTLS(config, &tls.Config{InsecureSkipVerify: true, Certificates: test.shown})
		if text := string(tt.get(test.status, "/nix-cache-info")); !strings.Contains(text, test.text) {
			t.Errorf("said %q, want %q", text, test.text)
		}
	}
}

type answers map[string]string

func (m answers) Challenge(_ context.Context, token string) (string, error) {
	if text, ok := m[token]; ok {
		return text, nil
	}
	return "", cache.ErrNotFound
}

// Where it is wanted, what is asked for without TLS is redirected, but for what ACME authorities and monitors ask.
func TestRedirect(t *testing.T) {
	tt := newTester(t)
	for _, test := range []struct {
		port                   int
		target, host, location string
		headers                []string
	}{
		{443, "/", "cache.example.org", "https://cache.example.org/", nil},
		{443, "//a/b?c=d", "cache.example.org:5000", "https://cache.example.org//a/b?c=d", nil},
		{8443, "/x", "cache.example.org:5000", "https://cache.example.org:8443/x", nil},
		{443, "/x", "[2001:db8::1]:80", "https://[2001:db8::1]/x", nil},
		{8443, "/x", "[2001:db8::1]", "https://[2001:db8::1]:8443/x", nil},
		{443, "/nix-cache-info", "a", "", []string{"X-Forwarded-Proto: https"}},
		{443, "/health", "a", "", nil},
		{443, "/version", "a", "", nil},
		{443, "/.well-known/acme-challenge/token", "a", "", nil},
	} {
		tt.server = newServer(cache.Only(tt.cache), Options{
			Redirect: test.port, Challenger: answers{"token": "token.print"},
			Proxies: Proxies{Ranges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}},
		})
		tt.listen("127.0.0.1:0")
		resp, text := tt.do("GET", test.target, append(test.headers, "Host: "+test.host)...)
		status := http.StatusOK
		if test.location != "" {
			status = http.StatusPermanentRedirect
		}
		if resp.StatusCode != status || resp.Header.Get("Location") != test.location {
			t.Errorf("%s of %s: %s to %q, want %q\n%s", test.target, test.host, resp.Status, resp.Header.Get("Location"), test.location, text)
		}
	}
	if got := string(tt.get(200, "/.well-known/acme-challenge/token")); got != "token.print" {
		t.Errorf("the challenge is answered with %q", got)
	}
	tt.get(404, "/.well-known/acme-challenge/other")
}

// An upload is not redirected but refused, with the URL to use; and a token that came in the clear
// is told to the log, unless it came from this machine.
func TestPlainUpload(t *testing.T) {
	tt := newTester(t)
	for _, test := range []struct {
		opts                 Options
		method, target, host string
		headers              []string
		status               int
		want                 string
		logged               bool
	}{
		{Options{Redirect: 443}, "PUT", "/nar/x.nar", "cache.example.org", []string{"Authorization: Bearer x"}, 403, "push to https://cache.example.org; the token was sent in the clear", true},
		{Options{Redirect: 8443}, "PUT", "/team/x.narinfo", "cache.example.org:80", nil, 403, "push to https://cache.example.org:8443/team\n", false},
		{Options{Redirect: 443}, "GET", "/nix-cache-info", "cache.example.org", []string{"Authorization: Bearer x"}, 308, "", true},
		{Options{Redirect: 443}, "GET", "/nix-cache-info", "cache.example.org", nil, 308, "", false},
		{Options{Redirect: 443}, "GET", "/nix-cache-info", "a", []string{"Authorization: Bearer x", "X-Forwarded-For: 127.0.0.1"}, 308, "", false},
		{Options{HTTPS: true}, "GET", "/nix-cache-info", "a", []string{"Authorization: Bearer x"}, 200, "", true},
		{Options{HTTPS: true}, "GET", "/nix-cache-info", "a", []string{"Authorization: Bearer x", "X-Forwarded-Proto: https"}, 200, "", false},
		{Options{}, "GET", "/nix-cache-info", "a", []string{"Authorization: Bearer x"}, 200, "", false},
	} {
		var log strings.Builder
		test.opts.Audit = audit.New(audit.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		test.opts.Proxies.Ranges = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		tt.server = newServer(cache.Only(tt.cache), test.opts)
		tt.listen("127.0.0.1:0")
		headers := append([]string{"Host: " + test.host}, test.headers...)
		if !strings.Contains(strings.Join(headers, " "), "X-Forwarded-For") {
			headers = append(headers, "X-Forwarded-For: 192.0.2.7")
		}
		resp, text := tt.do(test.method, test.target, headers...)
		if resp.StatusCode != test.status || !strings.Contains(string(text), test.want) {
			t.Errorf("%s %s: %s, %q, want %d with %q", test.method, test.target, resp.Status, text, test.status, test.want)
		}
		if logged := strings.Contains(log.String(), "a token was sent over plain HTTP"); logged != test.logged {
			t.Errorf("%s %s with %q: logged %t\n%s", test.method, test.target, test.headers, logged, &log)
		}
	}
}

// strict is a directory that knows one host name.
type strict struct{ cache.Registry }

func (s strict) ByHost(ctx context.Context, host string) (*cache.Cache, error) {
	if host != "cache.example.org" {
		return nil, fmt.Errorf("find cache of host: %w", cache.ErrNotFound)
	}
	return s.Registry.ByHost(ctx, host)
}

func TestUnknownHost(t *testing.T) {
	tt := newTester(t)
	tt.server = newServer(strict{cache.Only(tt.cache)}, Options{Proxies: Proxies{Ranges: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}})
	tt.listen("127.0.0.1:0")
	for _, test := range []struct {
		target, host string
		status       int
		headers      []string
	}{
		{"/nix-cache-info", "cache.example.org", 200, nil},
		{"/nix-cache-info", "other.example.org", 421, nil},
		{"/main/nix-cache-info", "other.example.org", 421, nil},
		{"/main/nix-cache-info", "cache.example.org", 200, nil},
		{"/health", "other.example.org", 200, nil},
		{"/nix-cache-info", "127.0.0.1", 421, nil},
		// A proxy that asks under a name of its own says which one it was asked for.
		{"/nix-cache-info", "127.0.0.1", 200, []string{"X-Forwarded-Host: cache.example.org"}},
		{"/nix-cache-info", "cache.example.org", 200, []string{"X-Forwarded-Host: other.example.org"}},
	} {
		if resp, text := tt.do("GET", test.target, append(test.headers, "Host: "+test.host)...); resp.StatusCode != test.status {
			t.Errorf("%s of %s: %s, want %d\n%s", test.target, test.host, resp.Status, test.status, text)
		}
	}
}

// get checks the status of an answer, and returns its body.
func (t *tester) get(status int, target string) []byte {
	t.Helper()
	resp, text := t.do("GET", target)
	if resp.StatusCode != status {
		t.Errorf("GET %s: %s, want %d\n%s", target, resp.Status, status, text)
	}
	return text
}

package server

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"firn/internal/cache"
)

// Only proxies that are trusted say for whom they ask.
func TestOrigin(t *testing.T) {
	s := newServer(cache.Only(nil), Options{Proxies: Proxies{
		Ranges: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("10.0.0.0/8")},
		Unix:   true,
	}})
	for _, test := range []struct {
		remote  string
		headers [][2]string
		want    string // address scheme host prefix
	}{
		{"192.0.2.1:1234", nil, "192.0.2.1 http  "},
		{"192.0.2.1:1234", [][2]string{
			{"X-Forwarded-For", "198.51.100.1"}, {"X-Forwarded-Proto", "https"}, {"X-Forwarded-Host", "a"}, {"X-Forwarded-Prefix", "/p"},
			{"Forwarded", "for=198.51.100.1;proto=https;host=a"}}, "192.0.2.1 http  "},
		{"[2001:db8::1]:1234", nil, "2001:db8::1 http  "},
		{"[::ffff:192.0.2.1]:1234", nil, "192.0.2.1 http  "},
		{"127.0.0.1:1234", nil, "127.0.0.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-For", "203.0.113.1, 198.51.100.1"}}, "198.51.100.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-For", "203.0.113.1"}, {"X-Forwarded-For", "198.51.100.1"}}, "198.51.100.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-For", "203.0.113.1, 198.51.100.1, 10.1.1.1"}}, "198.51.100.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-For", "10.1.1.1"}}, "10.1.1.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-For", "198.51.100.1:80"}}, "198.51.100.1 http  "},
		{"[::1]:1234", [][2]string{{"X-Forwarded-For", "[2001:db8::2]:80"}}, "2001:db8::2 http  "},
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-For", "unknown"}}, "127.0.0.1 http  "},
		{"@", nil, "invalid IP   "},
		{"@", [][2]string{{"X-Forwarded-For", "198.51.100.1"}, {"X-Forwarded-Proto", "HTTPS"}}, "198.51.100.1 https  "},
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-Host", "a.example"}, {"X-Forwarded-Prefix", "/p/"}}, "127.0.0.1 http a.example /p"},

		{"127.0.0.1:1234", [][2]string{{"Forwarded", `for=203.0.113.1, for="[2001:db8::2]:99";host=x, for=10.1.1.1`}}, "2001:db8::2 http  "},
		{"127.0.0.1:1234", [][2]string{{"Forwarded", `For=198.51.100.1 ; Proto=https;by=10.0.0.1;Host="a.example:80"`}}, "198.51.100.1 https a.example:80 "},
		{"127.0.0.1:1234", [][2]string{{"Forwarded", `for="1\"98", for=198.51.100.1`}}, "198.51.100.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"Forwarded", `for="198.51.100.1`}}, "127.0.0.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"Forwarded", `for="a"b`}}, "127.0.0.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"Forwarded", `for`}}, "127.0.0.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"Forwarded", `for="\`}}, "127.0.0.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"Forwarded", "for=_hidden"}}, "127.0.0.1 http  "},
		// A client can add the header that its proxy does not know.
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-For", "198.51.100.1"}, {"Forwarded", "for=203.0.113.9;host=evil;proto=https"}}, "127.0.0.1 http  "},
		{"127.0.0.1:1234", [][2]string{{"X-Forwarded-For", "198.51.100.1"}, {"Forwarded", "for=198.51.100.1"}}, "198.51.100.1 http  "},
	} {
		r := &http.Request{RemoteAddr: test.remote, Header: http.Header{}}
		if test.remote == "@" {
			r = r.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, net.Addr(&net.UnixAddr{Name: "/run/s", Net: "unix"})))
		}
		for _, h := range test.headers {
			r.Header.Add(h[0], h[1])
		}
		o := s.originOf(r)
		if got := o.addr.String() + " " + o.scheme + " " + o.host + " " + o.prefix; got != test.want {
			t.Errorf("a client at %s that says %v comes from %q, want %q", test.remote, test.headers, got, test.want)
		}
	}
}

func FuzzForwarded(f *testing.F) {
	for _, text := range []string{`for=1.2.3.4;proto=https, for="[::1]:80"`, `for="a\"b"`, ``, `,;=`, `a="`, `a="\`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, h := range forwardedHops([]string{text}) {
			if len(h.addr)+len(h.proto)+len(h.host) > len(text) {
				t.Errorf("%q came out of %q", h, text)
			}
		}
	})
}

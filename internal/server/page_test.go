package server

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"firn/internal/cache"
)

func TestPage(t *testing.T) {
	tt := newTester(t)
	resp, text := tt.do("GET", "/", "Host: cache.example.org:5000")
	page := string(text)
	for _, want := range []string{
		`extra-substituters = <span class="url">http://cache.example.org:5000</span>` + "\n" +
			"extra-trusted-public-keys = " + tt.key.Public().String() + "\n",
		`<pre id="key-0">` + tt.key.Public().String() + `</pre>`,
		"<code>/nix/store</code>",
		`<a href="nix-cache-info">`,
		"firn 1.2.3",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s:\n%s", want, page)
		}
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control is %q: the page shows a URL of one request, and may not be kept", got)
	}
	if links := regexp.MustCompile(`(?:href|src)="(/[^"]*)"`).FindAllString(page, -1); links != nil {
		t.Errorf("links that a path prefix breaks: %q", links)
	}

	// The policy allows exactly the style and the script that are there.
	policy := resp.Header.Get("Content-Security-Policy")
	for _, element := range []string{"style", "script"} {
		inner := regexp.MustCompile(`(?s)<` + element + `>(.*)</` + element + `>`).FindStringSubmatch(page)
		if inner == nil {
			t.Fatalf("the page has no %s", element)
		}
		sum := sha256.Sum256([]byte(inner[1]))
		if want := element + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(policy, want) {
			t.Errorf("the policy has no %s: %s", want, policy)
		}
	}
}

func TestShownURL(t *testing.T) {
	s := newServer(cache.Only(nil), Options{Proxies: Proxies{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}}}) // as httptest has it
	for _, test := range []struct {
		name    string
		host    string
		headers []string
		want    string
	}{
		{"host", "cache.example.org", nil, "http://cache.example.org"},
		{"port", "cache:5000", nil, "http://cache:5000"},
		{"IPv4", "192.0.2.1:5000", nil, "http://192.0.2.1:5000"},
		{"IPv6", "[2001:db8::1]:5000", nil, "http://[2001:db8::1]:5000"},
		{"behind a proxy", "127.0.0.1:5000",
			[]string{"X-Forwarded-Proto: https", "X-Forwarded-Host: cache.example.org", "X-Forwarded-Prefix: /nix/cache/"},
			"https://cache.example.org/nix/cache"},
		{"behind two proxies", "127.0.0.1:5000",
			[]string{"X-Forwarded-Proto: https, http", "X-Forwarded-Host: outer.example.org, inner"}, "https://outer.example.org"},
		{"no host", "", nil, "http://localhost"},
		{"markup as host", `"><script>alert(1)</script>`, nil, "http://localhost"},
		{"path as host", "evil.example/x", nil, "http://localhost"},
		{"credentials as host", "good.example@evil.example", nil, "http://localhost"},
		{"space in host", "a b", nil, "http://localhost"},
		{"line feed in host", "a\nextra-substituters = http://evil.example", nil, "http://localhost"},
		{"quote in host", "a'b", nil, "http://localhost"},
		{"long host", strings.Repeat("a", 300), nil, "http://localhost"},
		{"long port", "a:123456", nil, "http://localhost"},
		{"markup as forwarded host", "good", []string{"X-Forwarded-Host: <b>"}, "http://good"},
		{"forwarded scheme", "good", []string{"X-Forwarded-Proto: javascript"}, "http://good"},
		{"markup as prefix", "good", []string{"X-Forwarded-Prefix: /<b>"}, "http://good"},
		{"another host as prefix", "good", []string{"X-Forwarded-Prefix: .evil.example"}, "http://good"},
		{"dots in prefix", "good", []string{"X-Forwarded-Prefix: /../x"}, "http://good"},
		{"slashes in prefix", "good", []string{"X-Forwarded-Prefix: //x"}, "http://good"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Host = test.host
			for _, h := range test.headers {
				name, value, _ := strings.Cut(h, ": ")
				r.Header.Set(name, value)
			}
			if got := s.shownURL(r); got != test.want {
				t.Errorf("URL is %q, want %q", got, test.want)
			}
		})
	}
}

// The page has all that pushing takes: the line of the netrc file and, where there is SSH, its
// address.
func TestPageForPushing(t *testing.T) {
	p := newPushTester(t)
	for _, test := range []struct {
		port       int
		path, host string
		headers    []string
		want, not  []string
	}{
		{0, "/", "cache.example.org:5000", nil, []string{`<pre id="netrc">machine cache.example.org login any password TOKEN</pre>`}, []string{"ssh-ng:"}},
		{2222, "/", "cache.example.org:5000", nil, []string{`<pre id="ssh">NIX_SSHOPTS='-p 2222' nix copy --to ssh-ng://main@cache.example.org PATH</pre>`}, nil},
		{22, "/team/", "cache.example.org", []string{as("read-team")},
			[]string{`<pre id="ssh">nix copy --to ssh-ng://team@cache.example.org PATH</pre>`, `<pre id="netrc">machine cache.example.org login`}, []string{"NIX_SSHOPTS"}},
		{2222, "/", "[2001:db8::1]:5000", nil, []string{"ssh-ng://main@[2001:db8::1] PATH", "machine 2001:db8::1 login"}, nil},
	} {
		p.server.sshPort = test.port
		page := string(p.wantGet(200, test.path, append(test.headers, "Host: "+test.host)...))
		for _, want := range test.want {
			if strings.Count(page, want) != 1 {
				t.Errorf("%s of %s has no %s:\n%s", test.path, test.host, want, page)
			}
		}
		for _, not := range test.not {
			if strings.Contains(page, not) {
				t.Errorf("%s of %s has %s:\n%s", test.path, test.host, not, page)
			}
		}
	}
}

// Where something is kept, the page says how to push, and elsewhere it does not.
func TestPageOfDepot(t *testing.T) {
	kept, served := newPushTester(t), newTester(t)
	want := `<pre id="push">nix copy --to <span class="url">` + kept.url + "</span> PATH</pre>"
	if page := string(kept.wantGet(200, "/")); !strings.Contains(page, want) {
		t.Errorf("the page has no %s:\n%s", want, page)
	}
	if _, page := served.do("GET", "/"); strings.Contains(string(page), "--to") {
		t.Errorf("the page says how to push to what keeps nothing:\n%s", page)
	}
}

package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestCheckTLS(t *testing.T) {
	for _, test := range []struct{ file, want string }{
		{"tls-cert = ['a']", "tls-cert: there are 1 certificates and 0 keys"},
		{"tls-cert = ['']\ntls-key = ['b']", "tls-cert: the path of a file is empty"},
		{"https = [':443']", "https: there is no certificate"},
		{"plain-http = 'redirect'", "plain-http: there is no certificate"},
		{"client-certs = true", "client-certs: clients show certificates over TLS only"},
		{"acme = 'x'", `acme: "x" is not an address`},
		{"acme = 'a@b'\nacme-directory = 'http://x'", `acme-directory: "http://x" is not a URL with https`},
		{"acme = 'a@b'\nhttps = [':443']\nplain-http = 'redirect'\nclient-certs = true", ""},
		{"tls-cert = ['a']\ntls-key = ['b']", ""},
	} {
		c, _, err := Load(write(t, test.file), env{"STATE_DIRECTORY": "/state"}.lookup)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Check(); (err == nil) != (test.want == "") || err != nil && !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", test.file, err, test.want)
		}
	}
}

func TestProxies(t *testing.T) {
	for _, test := range []struct{ said, want string }{
		{"", "[127.0.0.0/8 ::1/128] true"},
		{"none", "[] false"},
		{"unix", "[] true"},
		{"10.1.2.3/8,192.0.2.1,2001:db8::1", "[10.0.0.0/8 192.0.2.1/32 2001:db8::1/128] false"},
	} {
		c, _, err := Load("", env{"FIRN_TRUSTED_PROXY": test.said}.lookup)
		if err != nil {
			t.Fatal(err)
		}
		ranges, unix := c.Proxies()
		if got := fmt.Sprint(ranges, unix); got != test.want {
			t.Errorf("%q: %s, want %s", test.said, got, test.want)
		}
	}
}

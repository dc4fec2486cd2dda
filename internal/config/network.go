package config

import (
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// PlainHTTP is what becomes of requests without TLS where there are certificates.
type PlainHTTP string

const (
	PlainServe    PlainHTTP = "serve"
	PlainRedirect PlainHTTP = "redirect"
)

// UnmarshalText reads what becomes of them by its name.
func (p *PlainHTTP) UnmarshalText(text []byte) error {
	return oneOf(p, text, PlainServe, PlainRedirect)
}

// ACMEChallenge is a way in which an authority sees that a name is ours.
type ACMEChallenge string

const (
	ChallengeALPN ACMEChallenge = "tls-alpn-01"
	ChallengeHTTP ACMEChallenge = "http-01"
)

// UnmarshalText reads a challenge by its name.
func (c *ACMEChallenge) UnmarshalText(text []byte) error {
	return oneOf(c, text, ChallengeALPN, ChallengeHTTP)
}

// UnknownHost is what becomes of requests for a host name that no cache has.
type UnknownHost string

const (
	UnknownMain   UnknownHost = "main"
	UnknownRefuse UnknownHost = "refuse"
)

// UnmarshalText reads what becomes of them by its name.
func (u *UnknownHost) UnmarshalText(text []byte) error {
	return oneOf(u, text, UnknownMain, UnknownRefuse)
}

// SocketMode are the permissions of a Unix socket, in octal.
type SocketMode string

// UnmarshalText reads three octal digits, with or without zeros in front.
func (m *SocketMode) UnmarshalText(text []byte) error {
	if n, err := strconv.ParseUint(string(text), 8, 16); err != nil || n == 0 || n > 0o777 {
		return fmt.Errorf("%q is not a mode such as 660", text)
	}
	*m = SocketMode(text)
	return nil
}

// Mode returns the permissions.
func (m SocketMode) Mode() fs.FileMode {
	n, err := strconv.ParseUint(string(m), 8, 16)
	if err != nil {
		return 0o666 // not set
	}
	return fs.FileMode(n)
}

// A Proxy is who is believed when it says for whom it asks: an address or a range of them, or one of these words.
type Proxy string

const (
	ProxyLocal Proxy = "local" // this machine, over the network or a Unix socket
	ProxyUnix  Proxy = "unix"  // every client of a Unix socket
	ProxyNone  Proxy = "none"  // no proxy
)

// UnmarshalText reads a word, an address or a range such as 10.0.0.0/8.
func (p *Proxy) UnmarshalText(text []byte) error {
	*p = Proxy(text)
	if slices.Contains([]Proxy{ProxyLocal, ProxyUnix, ProxyNone}, *p) {
		return nil
	}
	if _, err := p.prefix(); err != nil {
		return fmt.Errorf("%q is not an address or a range such as 10.0.0.0/8, and none of local, unix and none", text)
	}
	return nil
}

func (p Proxy) prefix() (netip.Prefix, error) {
	if strings.ContainsRune(string(p), '/') {
		prefix, err := netip.ParsePrefix(string(p))
		return prefix.Masked(), err
	}
	addr, err := netip.ParseAddr(string(p))
	if err != nil {
		return netip.Prefix{}, err
	}
	return addr.Unmap().WithZone("").Prefix(addr.Unmap().BitLen())
}

// Proxies returns the ranges of addresses that are believed, and whether Unix sockets are.
func (c *Config) Proxies() (ranges []netip.Prefix, unix bool) {
	for _, p := range c.TrustedProxy {
		switch p {
		case ProxyLocal:
			unix = true
			ranges = append(ranges, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
		case ProxyUnix:
			unix = true
		case ProxyNone:
		default:
			if prefix, err := p.prefix(); err == nil { // always, of one that was read
				ranges = append(ranges, prefix)
			}
		}
	}
	return ranges, unix
}

// HasTLS reports whether there are certificates.
func (c *Config) HasTLS() bool { return c.ACME != "" || len(c.TLSCert) > 0 }

// checkTLS finds what is missing for TLS.
func (c *Config) checkTLS() error {
	switch {
	case len(c.TLSCert) != len(c.TLSKey):
		return fmt.Errorf("tls-cert: there are %d certificates and %d keys; name the key of each with --tls-key, in the same order", len(c.TLSCert), len(c.TLSKey))
	case slices.Contains(c.TLSCert, "") || slices.Contains(c.TLSKey, ""):
		return fmt.Errorf("tls-cert: the path of a file is empty")
	case len(c.HTTPS) > 0 && !c.HasTLS():
		return fmt.Errorf("https: there is no certificate; name one with --tls-cert and --tls-key, or get one with --acme EMAIL")
	case c.PlainHTTP == PlainRedirect && !c.HasTLS():
		return fmt.Errorf("plain-http: there is no certificate, so nowhere to redirect to; name one with --tls-cert and --tls-key, or get one with --acme EMAIL")
	case c.ClientCerts && !c.HasTLS():
		return fmt.Errorf("client-certs: clients show certificates over TLS only; name a certificate of this server with --tls-cert and --tls-key, or get one with --acme EMAIL")
	case c.ACME != "" && (strings.Count(c.ACME, "@") != 1 || strings.ContainsAny(c.ACME, " ,:<>")):
		return fmt.Errorf("acme: %q is not an address of e-mail", c.ACME)
	}
	if u, err := url.Parse(c.ACMEDirectory); c.ACME != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		return fmt.Errorf("acme-directory: %q is not a URL with https", c.ACMEDirectory)
	}
	return nil
}

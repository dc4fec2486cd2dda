// Package certs has the certificates of a server: those in files, and those that an ACME authority gives it.
//
//	c, err := certs.New(certs.Options{Pairs: pairs, ACME: &certs.ACME{…}, Logger: log})
//	listener = tls.NewListener(listener, c.Config())
//	c.Use(files)       // other files, which Read has read
//	c.Reload()         // now and then, or when told to: reads files that have changed
//	c.Tick(ctx, hosts) // now and then: gets and renews certificates
//
// The name that a client asks for chooses: first among the files, then among what the authority gave;
// a client that asks for another name, or none, gets the first file, or the certificate of the first host.
package certs

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
)

// errNone is what a client is told for whom there is no certificate.
var errNone = errors.New("there is no certificate for this name")

// Options of Certs.
type Options struct {
	// Pairs are files. All of them must be readable at the start.
	Pairs []Pair

	// ACME is how certificates are got from an authority. Nil: they are not.
	ACME *ACME

	// ClientCerts has clients asked for certificates. What they show is not looked at here.
	ClientCerts bool

	// Logger is told what is read, got and fails. Nil discards.
	Logger *slog.Logger

	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Certs has certificates. It is safe for concurrent use.
type Certs struct {
	opts Options
	log  *slog.Logger
	now  func() time.Time

	reload sync.Mutex // held by Reload and Use
	files  []*file    // guarded by reload
	tick   sync.Mutex // held by Tick

	mu    sync.RWMutex // guards what follows
	pairs []*tls.Certificate
	given map[string]*tls.Certificate // by the authority, by host
	first string                      // host

	authority *authority // nil: there is none
}

// New reads the files.
func New(opts Options) (*Certs, error) {
	c := &Certs{opts: opts, log: cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)), now: opts.Now, given: map[string]*tls.Certificate{}}
	if c.now == nil {
		c.now = time.Now
	}
	files, err := Read(opts.Pairs)
	if err != nil {
		return nil, err
	}
	c.Use(files)
	if opts.ACME != nil {
		c.authority = newAuthority(*opts.ACME, c.log, c.now)
	}
	return c, nil
}

// Config returns how a listener speaks TLS.
func (c *Certs) Config() *tls.Config {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetCertificate:     c.certificate,
		GetConfigForClient: c.forClient,
	}
	if c.opts.ClientCerts {
		config.ClientAuth = tls.RequestClientCert
	}
	return config
}

// Tick gets and renews the certificates of the hosts from the authority, if there is one, but for those that have one in a file.
// It takes as long as the authority takes, and is to be called every few seconds. What goes wrong is logged, and tried again later:
// until then there is what there was.
func (c *Certs) Tick(ctx context.Context, hosts []string) {
	c.tick.Lock()
	defer c.tick.Unlock()
	if c.authority == nil {
		return
	}
	given := map[string]*tls.Certificate{}
	for _, host := range hosts {
		if !mayHave(host) || c.find(host) != nil {
			continue
		}
		cert, err := c.authority.certificate(ctx, host)
		if err != nil && ctx.Err() == nil {
			c.log.Error("no new certificate", "host", host, "error", err)
		}
		if cert == nil {
			c.mu.RLock()
			cert = c.given[host]
			c.mu.RUnlock()
		}
		if cert == nil {
			continue
		}
		given[host] = cert
		c.mu.Lock()
		c.given[host] = cert // at once: the next host may take its time
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given, c.first = given, ""
	for _, host := range hosts {
		if given[host] != nil {
			c.first = host
			break
		}
	}
}

// Has reports whether clients that ask for a host get a certificate that has its name: one in a
// file, or from the authority, now or in a moment. hosts are those of the caches, as for Tick.
func (c *Certs) Has(host string, hosts []string) bool {
	if c.find(host) != nil {
		return true
	}
	return c.authority != nil && mayHave(host) && slices.Contains(hosts, host)
}

// Names returns the names and addresses in the certificates in files, but for those with a *.
func (c *Certs) Names() (names []string) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, cert := range c.pairs {
		for _, name := range cert.Leaf.DNSNames {
			if !strings.Contains(name, "*") {
				names = append(names, name)
			}
		}
		for _, ip := range cert.Leaf.IPAddresses {
			names = append(names, ip.String())
		}
	}
	return names
}

// mayHave reports whether authorities give certificates for a host: it has a domain.
func mayHave(host string) bool {
	_, domain, ok := strings.Cut(host, ".")
	return ok && domain != "" && !strings.Contains(host, "_")
}

// Challenge returns the answer to what the authority asks over HTTP. cache.ErrNotFound if a token is not known.
func (c *Certs) Challenge(ctx context.Context, token string) (string, error) {
	return c.authority.challenge(ctx, token)
}

// forClient has the authority's own handshake, with which it sees that a name is ours, answered in a way of its own.
func (c *Certs) forClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if c.authority == nil || len(hello.SupportedProtos) != 1 || hello.SupportedProtos[0] != acmez.ACMETLS1Protocol {
		return nil, nil
	}
	cert, err := c.authority.challengeCertificate(hello.Context(), hello.ServerName)
	if err != nil {
		return nil, fmt.Errorf("answer challenge: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{acmez.ACMETLS1Protocol}, Certificates: []tls.Certificate{*cert}}, nil
}

// certificate chooses the certificate for a client.
func (c *Certs) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if name != "" {
		if cert := c.find(name); cert != nil {
			return cert, nil
		}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if cert := c.given[name]; cert != nil {
		return cert, nil
	}
	if len(c.pairs) > 0 {
		return c.pairs[0], nil
	}
	if cert := c.given[c.first]; cert != nil && name == "" {
		return cert, nil
	}
	return nil, errNone
}

// find returns the certificate in a file that has the name, nil if there is none: rather one that has it as it is than with a *.
func (c *Certs) find(name string) *tls.Certificate {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var wild *tls.Certificate
	for _, cert := range c.pairs {
		if cert.Leaf.VerifyHostname(name) != nil {
			continue
		}
		for _, have := range cert.Leaf.DNSNames {
			if strings.EqualFold(have, name) {
				return cert
			}
		}
		if wild == nil {
			wild = cert
		}
	}
	return wild
}

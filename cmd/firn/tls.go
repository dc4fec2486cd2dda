package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/certs"
	"firn/internal/config"
	"firn/internal/listen"
	"firn/internal/registry"
	"firn/internal/server"
)

const (
	// certificateInterval is the time between two looks at which certificates are to be got and renewed.
	certificateInterval = 5 * time.Second

	// maxRoots bounds the file of --acme-ca, in bytes.
	maxRoots = 4 << 20
)

// defaultHTTPS is the address for HTTPS where there are certificates and no --https.
const defaultHTTPS = ":443"

// openHTTPS opens the addresses for HTTPS: none without certificates.
func (c *serveCommand) openHTTPS(ctx context.Context, sockets listen.Sockets) ([]net.Listener, error) {
	if !c.HasTLS() {
		if len(sockets[listen.HTTPS]) > 0 {
			return nil, errors.New("the service manager has opened a socket for https, and there is no certificate; name one with --tls-cert and --tls-key, or get one with --acme EMAIL")
		}
		return nil, nil
	}
	addresses := c.HTTPS
	if len(addresses) == 0 {
		address, err := listen.ParseAddress(defaultHTTPS)
		if err != nil {
			return nil, err
		}
		addresses = []listen.Address{address}
	}
	listeners, err := open(ctx, sockets, listen.HTTPS, addresses, listen.Options{Mode: c.SocketMode.Mode()})
	if err != nil {
		return nil, fmt.Errorf("https: %w", err)
	}
	return listeners, nil
}

// certificates returns the certificate store, nil if TLS is not configured.
func (c *serveCommand) certificates(db *sqlite.Catalog, plain []net.Listener, log *slog.Logger) (*certs.Certs, error) {
	if !c.HasTLS() {
		return nil, nil
	}
	opts := certs.Options{Pairs: pairs(&c.Config), ClientCerts: c.ClientCerts, Logger: log}
	if c.ACME != "" {
		roots, err := readRoots(c.ACMECA)
		if err != nil {
			return nil, err
		}
		opts.ACME = &certs.ACME{
			Email: c.ACME, Directory: c.ACMEDirectory, Roots: roots, Version: version(), Notes: db, Leases: db,
			ALPN: slices.Contains(c.ACMEChallenge, config.ChallengeALPN),
			HTTP: slices.Contains(c.ACMEChallenge, config.ChallengeHTTP),
		}
		if len(c.ACMEChallenge) == 0 {
			opts.ACME.ALPN = true
			opts.ACME.HTTP = slices.ContainsFunc(plain, func(l net.Listener) bool { return portOf(l) == 80 })
		}
	}
	return certs.New(opts)
}

// pairs returns the files of the certificates of the settings.
func pairs(c *config.Config) (pairs []certs.Pair) {
	for i, cert := range c.TLSCert {
		pairs = append(pairs, certs.Pair{Cert: cert, Key: c.TLSKey[i]})
	}
	return pairs
}

// readRoots reads the certificates of authorities. No path means those of this machine, which are nil.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read acme-ca: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRoots))
	if err != nil {
		return nil, fmt.Errorf("read acme-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read acme-ca %s: there is no certificate in it", path)
	}
	return pool, nil
}

// networkOptions adds to opts what the settings say of the network.
func (c *serveCommand) networkOptions(opts *server.Options, tls *certs.Certs, https []net.Listener) {
	opts.Proxies.Ranges, opts.Proxies.Unix = c.Proxies()
	opts.NoHTTP2 = !c.HTTP2
	if tls == nil {
		return
	}
	opts.Challenger, opts.HTTPS = tls, true
	if c.PlainHTTP == config.PlainRedirect {
		opts.Redirect = portOf(https[0])
	}
}

// certifiedNames are the names for the cache main that certificates have, those first that it was
// given: all names that are not of other caches.
func certifiedNames(records []*catalog.Cache, covered func(string) bool, others []string) (names []string) {
	var foreign []string
	var wanted []string
	for _, r := range records {
		if r.Name == cache.Main {
			wanted = r.Hosts
		} else {
			foreign = append(foreign, r.Hosts...)
		}
	}
	for _, name := range slices.Concat(wanted, others) {
		if name != "" && covered(name) && !slices.Contains(names, name) && !slices.Contains(foreign, name) {
			names = append(names, name)
		}
	}
	return names
}

func portOf(l net.Listener) int {
	if addr, ok := l.Addr().(*net.TCPAddr); ok {
		return addr.Port
	}
	return 0
}

// serveHTTP has the group serve HTTP through all listeners, those of https with certificates, which are followed where they are in files.
// Certificates are nil where there are none.
func serveHTTP(ctx context.Context, group *errgroup.Group, srv *server.Server, plain, https []net.Listener, c *certs.Certs) {
	for _, l := range plain {
		group.Go(func() error { return srv.Serve(ctx, l) })
	}
	for _, l := range https {
		group.Go(func() error { return srv.ServeTLS(ctx, l, c.Config()) })
	}
	if c != nil {
		group.Go(func() error { c.Follow(ctx); return nil })
	}
}

// certify gets certificates for the host names of all caches, and renews them, until ctx ends.
func certify(ctx context.Context, c *certs.Certs, all *registry.Registry) error {
	ticker := time.NewTicker(certificateInterval)
	defer ticker.Stop()
	for {
		c.Tick(ctx, all.Hosts(ctx))
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

package certs

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"firn/internal/cache"
	"firn/internal/catalog"
)

const (
	// orderLimit is how long getting one certificate may take. An authority asks at the server within seconds, as a rule.
	orderLimit = 2 * time.Minute

	// leaseTime is how long one node keeps others from getting the same certificate: longer than it can take it.
	leaseTime = orderLimit + time.Minute

	// minPause and maxPause are how long a host waits after a failure, twice as long after each.
	// Authorities take a few failures an hour of a host.
	minPause, maxPause = time.Minute, time.Hour

	// renewAt is when a certificate is renewed: when less than one part in renewAt of its time is left,
	// so after 60 days of 90, and 4 of 6.
	renewAt = 3

	// maxToken bounds the token of a challenge, in bytes. Authorities have 43.
	maxToken = 128
)

// ACME says how to get certificates from an authority.
type ACME struct {
	Email     string
	Directory string         // URL
	Roots     *x509.CertPool // of the server of the authority itself; nil for those of this machine
	Version   string         // of this program, for the authority

	// HTTP and ALPN are the challenges that this server can answer: http-01 and tls-alpn-01.
	HTTP, ALPN bool

	// Notes and Leases are shared by all nodes.
	Notes  catalog.Notes
	Leases catalog.Leases
}

// authority gets certificates from an ACME authority.
//
// Everything is kept in notes: the account, the certificates, and what is answered to challenges,
// so that any node can answer what another was asked. A lease has one node at a time get a certificate.
type authority struct {
	ACME
	client  acmez.Client
	log     *slog.Logger
	now     func() time.Time
	account string               // note
	pauses  map[string]pause     // by host
	loaded  map[string]loadedOne // by host
}

type pause struct {
	until time.Time
	last  time.Duration
}

// loadedOne is a certificate with the note that it was read from.
type loadedOne struct {
	note []byte
	cert *tls.Certificate
}

func newAuthority(opts ACME, log *slog.Logger, now func() time.Time) *authority {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       &tls.Config{RootCAs: opts.Roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   30 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		IdleConnTimeout:       30 * time.Second,
	}
	id := sha256.Sum256([]byte(opts.Directory + "\n" + opts.Email))
	a := &authority{
		ACME: opts, log: log, now: now,
		account: "acme/account/" + base64.RawURLEncoding.EncodeToString(id[:]),
		pauses:  map[string]pause{}, loaded: map[string]loadedOne{},
	}
	a.client = acmez.Client{
		Client: &acme.Client{
			Directory:   opts.Directory,
			HTTPClient:  &http.Client{Transport: transport, Timeout: time.Minute},
			UserAgent:   "firn/" + opts.Version,
			PollTimeout: orderLimit,
		},
		ChallengeSolvers: map[string]acmez.Solver{},
	}
	if opts.HTTP {
		a.client.ChallengeSolvers[acme.ChallengeTypeHTTP01] = answer{a, func(c acme.Challenge) string { return httpNote(c.Token) }}
	}
	if opts.ALPN {
		a.client.ChallengeSolvers[acme.ChallengeTypeTLSALPN01] = answer{a, func(c acme.Challenge) string { return alpnNote(c.Identifier.Value) }}
	}
	return a
}

func httpNote(token string) string { return "acme/http/" + token }
func alpnNote(host string) string  { return "acme/alpn/" + strings.ToLower(host) }
func certNote(host string) string  { return "acme/certificate/" + host }
func leaseName(host string) string { return "acme/" + host }

// answer is a solver that keeps the answers to challenges in notes.
type answer struct {
	a    *authority
	note func(acme.Challenge) string
}

func (s answer) Present(ctx context.Context, c acme.Challenge) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.a.Notes.PutNote(ctx, &catalog.Note{Key: s.note(c), Value: text, Expires: s.a.now().Add(leaseTime)})
}

func (s answer) CleanUp(ctx context.Context, c acme.Challenge) error {
	return s.a.Notes.DeleteNote(context.WithoutCancel(ctx), s.note(c))
}

// challenge returns the answer to http-01.
func (a *authority) challenge(ctx context.Context, token string) (string, error) {
	if a == nil || !a.HTTP || token == "" || len(token) > maxToken {
		return "", fmt.Errorf("find challenge: %w", cache.ErrNotFound)
	}
	c, err := a.asked(ctx, httpNote(token))
	return c.KeyAuthorization, err
}

// challengeCertificate returns the answer to tls-alpn-01.
func (a *authority) challengeCertificate(ctx context.Context, host string) (*tls.Certificate, error) {
	if host == "" {
		return nil, errNone
	}
	c, err := a.asked(ctx, alpnNote(host))
	if err != nil {
		return nil, err
	}
	return acmez.TLSALPN01ChallengeCert(c)
}

func (a *authority) asked(ctx context.Context, note string) (c acme.Challenge, err error) {
	n, err := a.Notes.Note(ctx, note)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return c, fmt.Errorf("find challenge: %w", cache.ErrNotFound)
	case err != nil:
		return c, fmt.Errorf("find challenge: %w: %w", cache.ErrUnavailable, err)
	}
	return c, json.Unmarshal(n.Value, &c)
}

// kept is a certificate as it stands in a note.
type kept struct {
	Chain []byte `json:"chain"` // PEM
	Key   []byte `json:"key"`   // PEM
}

// certificate returns the certificate of a host, which is a new one where there was none, or its time is near.
// With an error it may return the one that there was.
func (a *authority) certificate(ctx context.Context, host string) (*tls.Certificate, error) {
	cert, err := a.load(ctx, host)
	if err != nil || cert != nil && !a.due(cert) || a.now().Before(a.pauses[host].until) {
		return cert, err
	}
	ctx, cancel := context.WithTimeout(ctx, orderLimit)
	defer cancel()
	lease, err := a.Leases.TakeLease(ctx, leaseName(host), leaseTime)
	if errors.Is(err, catalog.ErrConflict) {
		return cert, nil // another node is at it
	} else if err != nil {
		return cert, fmt.Errorf("get certificate: %w", err)
	}
	defer func() {
		if err := a.Leases.ReleaseLease(context.WithoutCancel(ctx), lease); err != nil {
			a.log.Warn("others wait for a certificate for longer than they have to", "host", host, "error", err)
		}
	}()
	if again, err := a.load(ctx, host); err != nil || again != nil && !a.due(again) {
		return again, err // another node was faster
	}
	fresh, err := a.order(ctx, host)
	if err != nil {
		wait := min(max(minPause, 2*a.pauses[host].last), maxPause)
		a.pauses[host] = pause{a.now().Add(wait), wait}
		return cmp.Or(fresh, cert), fmt.Errorf("get certificate, again in %s: %w", wait, err)
	}
	// Where a clock is wrong, a new certificate may be due at once. The next one is not got at once.
	a.pauses[host] = pause{until: a.now().Add(min(maxPause, fresh.Leaf.NotAfter.Sub(fresh.Leaf.NotBefore)/(2*renewAt)))}
	a.log.Info("got a certificate", "host", host, "until", fresh.Leaf.NotAfter)
	return fresh, nil
}

// due reports whether it is time to renew a certificate.
func (a *authority) due(cert *tls.Certificate) bool {
	left, whole := cert.Leaf.NotAfter.Sub(a.now()), cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	return left < whole/renewAt
}

// load returns the certificate that is kept of a host, nil if there is none.
func (a *authority) load(ctx context.Context, host string) (*tls.Certificate, error) {
	n, err := a.Notes.Note(ctx, certNote(host))
	if errors.Is(err, catalog.ErrNotFound) {
		delete(a.loaded, host)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	if last := a.loaded[host]; bytes.Equal(last.note, n.Value) {
		return last.cert, nil
	}
	var k kept
	if err := json.Unmarshal(n.Value, &k); err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	cert, err := tls.X509KeyPair(k.Chain, k.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	a.loaded[host] = loadedOne{n.Value, &cert}
	return &cert, nil
}

// order gets a certificate, and keeps it. With an error it returns one that could not be kept, if it got one.
func (a *authority) order(ctx context.Context, host string) (*tls.Certificate, error) {
	account, err := a.login(ctx)
	if err != nil {
		return nil, err
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	chains, err := a.client.ObtainCertificateForSANs(ctx, account, key, []string{host})
	var problem acme.Problem
	if errors.As(err, &problem) && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		// It was deleted there. The next try makes another.
		err = errors.Join(err, a.Notes.DeleteNote(ctx, a.account))
	}
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the authority gave no certificate")
	}
	value, err := json.Marshal(kept{chains[0].ChainPEM, keyPEM})
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(chains[0].ChainPEM, keyPEM)
	if err == nil {
		err = cert.Leaf.VerifyHostname(host)
	}
	if err != nil {
		return nil, err
	}
	// Kept first: one that was lost would have been got for nothing, and authorities count.
	return &cert, a.Notes.PutNote(context.WithoutCancel(ctx), &catalog.Note{Key: certNote(host), Value: value})
}

// login returns the account, which it makes if there is none.
func (a *authority) login(ctx context.Context) (acme.Account, error) {
	type record struct {
		Key     []byte       `json:"key"` // PEM
		Account acme.Account `json:"account"`
	}
	n, err := a.Notes.Note(ctx, a.account)
	if err == nil {
		var r record
		if err := json.Unmarshal(n.Value, &r); err != nil {
			return acme.Account{}, fmt.Errorf("read account: %w", err)
		}
		r.Account.PrivateKey, err = parseKey(r.Key)
		return r.Account, err
	}
	if !errors.Is(err, catalog.ErrNotFound) {
		return acme.Account{}, fmt.Errorf("read account: %w", err)
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return acme.Account{}, err
	}
	account, err := a.client.NewAccount(ctx, acme.Account{Contact: []string{"mailto:" + a.Email}, TermsOfServiceAgreed: true, PrivateKey: key})
	if err != nil {
		return acme.Account{}, fmt.Errorf("make account: %w", err)
	}
	value, err := json.Marshal(record{keyPEM, account})
	if err != nil {
		return acme.Account{}, err
	}
	err = a.Notes.AddNote(ctx, &catalog.Note{Key: a.account, Value: value})
	if errors.Is(err, catalog.ErrConflict) {
		return a.login(ctx) // another node, with a certificate of another host, was faster: all use one account
	}
	if err != nil {
		return acme.Account{}, fmt.Errorf("keep account: %w", err)
	}
	return account, nil
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("read key: this is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read key: a %T cannot sign", key)
	}
	return signer, nil
}

// Package access finds out who a request comes from: tokens become principals.
//
//	secret, record, err := access.NewToken("ci", grants, expires) // the secret is shown once, the record kept
//	a := access.New(catalog, catalog.Version, access.Options{})
//	who, err := a.Authenticate(ctx, header.Get("Authorization"), remote)
//
// A token is 256 random bits, of which only the SHA-256 is kept. So whoever reads the catalog cannot use it,
// and no comparison tells by its time how near a guess was: what is looked up is the hash of the guess.
//
// Addresses that fail are slowed down, which keeps logs and the catalog from a client with an old token that asks a thousand times.
// A token that is right is never slowed down, whatever others behind the same address do.
package access

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"firn/internal/cache"
	"firn/internal/depot/catalog"
)

const (
	// defaultBurst is how many times an address may fail at once: as many as a Nix client has connections, twice.
	defaultBurst = 50

	// defaultPause is the time between failures of an address that has failed too often. A person who has mended the netrc waits no longer.
	defaultPause = 5 * time.Second

	// maxKnown bounds the tokens that are remembered, of some kilobytes each at the most.
	maxKnown = 4096

	// maxHeader bounds what is looked at of an Authorization header, in bytes: a token has 48, and user names are short.
	maxHeader = 1 << 10
)

// Options of an Access. The zero Options will do.
type Options struct {
	// Burst is how many times an address may fail at once, 50 if zero.
	Burst int
	// Pause is the time after which it may fail once more, 5 seconds if zero.
	Pause time.Duration
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Access knows tokens. It is safe for concurrent use.
type Access struct {
	tokens  catalog.Tokens
	version func() (uint64, bool)
	now     func() time.Time
	slow    *slowdown

	mu    sync.RWMutex
	known map[catalog.Sum]*principal // tokens that were right
}

// New returns an Access that finds tokens in a catalog, and remembers them as long as version stays the same: see [catalog.Catalog].
func New(tokens catalog.Tokens, version func() (uint64, bool), opts Options) *Access {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Access{
		tokens:  tokens,
		version: version,
		now:     opts.Now,
		slow:    newSlowdown(cmp.Or(opts.Burst, defaultBurst), cmp.Or(opts.Pause, defaultPause)),
		known:   map[catalog.Sum]*principal{},
	}
}

// Authenticate tells who sends the value of an Authorization header from an address, which is the zero Addr if there is none.
// Basic with the token as the password of any user, and Bearer, are understood.
// No value is [cache.Anybody]. An error is cache.ErrUnauthenticated if no valid token was given,
// a *cache.TooOftenError if none was and that address has to wait, and cache.ErrUnavailable if it could not be told.
func (a *Access) Authenticate(ctx context.Context, authorization string, remote netip.Addr) (cache.Principal, error) {
	if authorization == "" {
		return cache.Anybody, nil
	}
	p, err := a.find(ctx, secretOf(authorization))
	if err == nil {
		return p, nil
	}
	if errors.Is(err, cache.ErrUnauthenticated) {
		if wait := a.slow.failed(remote, a.now()); wait > 0 {
			return nil, &cache.TooOftenError{Wait: wait}
		}
	}
	return nil, fmt.Errorf("authenticate: %w", err)
}

// find finds the principal of a secret, which may be anything.
func (a *Access) find(ctx context.Context, secret string) (*principal, error) {
	hash := sha256.Sum256([]byte(secret))
	version, vouched := a.version() // before the question: a token that is revoked after it is forgotten then
	a.mu.RLock()
	p := a.known[hash]
	a.mu.RUnlock()
	if p == nil || !vouched || p.version != version {
		t, err := a.tokens.TokenByHash(ctx, hash)
		if err != nil {
			a.forget(hash)
			if errors.Is(err, catalog.ErrNotFound) {
				return nil, fmt.Errorf("%w: no such token", cache.ErrUnauthenticated)
			}
			return nil, fmt.Errorf("look up token: %w: %w", cache.ErrUnavailable, err)
		}
		p = &principal{token: t, version: version}
		if vouched {
			a.remember(hash, p)
		}
	}
	if e := p.token.Expires; !e.IsZero() && !a.now().Before(e) {
		return nil, fmt.Errorf("%w: the token %s expired on %s", cache.ErrUnauthenticated, p.token.Name, e.Format(time.DateOnly))
	}
	return p, nil
}

func (a *Access) remember(hash catalog.Sum, p *principal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxKnown {
		clear(a.known) // those in use are back with their next request
	}
	a.known[hash] = p
}

func (a *Access) forget(hash catalog.Sum) {
	a.mu.RLock()
	_, there := a.known[hash]
	a.mu.RUnlock()
	if there { // rarely: what fails is mostly unknown
		a.mu.Lock()
		delete(a.known, hash)
		a.mu.Unlock()
	}
}

// secretOf returns the secret in the value of an Authorization header, "" if there is none.
func secretOf(authorization string) string {
	if len(authorization) > maxHeader {
		return ""
	}
	scheme, value, _ := strings.Cut(authorization, " ")
	value = strings.Trim(value, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return value
	case strings.EqualFold(scheme, "Basic"):
		text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
		if err != nil {
			return ""
		}
		_, password, _ := strings.Cut(string(text), ":")
		return password
	}
	return ""
}

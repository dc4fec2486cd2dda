// Package access finds out who a request comes from: tokens, SSH keys and certificates become principals.
//
//	secret, record, err := access.NewToken("ci", grants, expires) // the secret is shown once, the record kept
//	a := access.New(catalog, catalog, access.Options{})
//	who, err := a.Authenticate(ctx, header.Get("Authorization"), remote)
//	who, err := a.SSHKey(ctx, key, user)
//	who, err := a.Certificate(ctx, chain, remote)
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
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/memo"
)

const (
	// defaultBurst is how many times an address may fail at once: as many as a Nix client has connections, twice.
	defaultBurst = 50

	// defaultPause is the time between failures of an address that has failed too often. A person who has mended the netrc waits no longer.
	defaultPause = 5 * time.Second

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

// Records are what a catalog has of those who may do something.
type Records interface {
	// TokenByHash is that of [catalog.Tokens], SSHKey that of [catalog.SSHKeys], and NoteUses that
	// of [catalog.Uses].
	TokenByHash(ctx context.Context, hash catalog.Sum) (*catalog.Token, error)
	SSHKey(ctx context.Context, key []byte) (*catalog.SSHKey, error)
	NoteUses(ctx context.Context, uses []catalog.Use) error
}

// Access knows tokens and SSH keys. It is safe for concurrent use.
type Access struct {
	records Records
	now     func() time.Time
	slow    *slowdown
	// Apart, so that no secret can be the bytes of a public key.
	tokens, keys, certificates *memory
	uses                       uses
}

// New returns an Access that finds tokens and keys in a catalog, and remembers them as long as that says that nothing has changed.
func New(records Records, changes memo.Changes, opts Options) *Access {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Access{
		records: records,
		now:     opts.Now,
		slow:    newSlowdown(cmp.Or(opts.Burst, defaultBurst), cmp.Or(opts.Pause, defaultPause)),
		tokens:  newMemory(changes, opts.Now),
		keys:    newMemory(changes, opts.Now),

		certificates: newMemory(changes, opts.Now),
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
	if err != nil {
		return nil, a.refused(err, remote)
	}
	a.Used(p)
	return p, nil
}

// refused counts that an address could not say who it is, and returns what it is told.
func (a *Access) refused(err error, remote netip.Addr) error {
	if errors.Is(err, cache.ErrUnauthenticated) {
		if wait := a.slow.failed(remote, a.now()); wait > 0 {
			return &cache.TooOftenError{Wait: wait}
		}
	}
	return fmt.Errorf("authenticate: %w", err)
}

// Failed counts a failure of an address to say who it is, other than one that Authenticate has seen.
func (a *Access) Failed(remote netip.Addr) { a.slow.failed(remote, a.now()) }

// Wait returns how long an address has to wait before it may fail once more; zero if it need not.
func (a *Access) Wait(remote netip.Addr) time.Duration { return a.slow.wait(remote, a.now()) }

// find finds the principal of a secret, which may be anything.
func (a *Access) find(ctx context.Context, secret string) (*principal, error) {
	hash := sha256.Sum256([]byte(secret))
	return a.tokens.find(ctx, hash, func() (*principal, error) {
		t, err := a.records.TokenByHash(ctx, hash)
		if err != nil {
			return nil, missing("token", err)
		}
		return ofToken(t), nil
	})
}

// missing says of an error of the catalog whether the credential is wrong, or that could not be told.
func missing(what string, err error) error {
	if errors.Is(err, catalog.ErrNotFound) {
		return fmt.Errorf("%w: no such %s", cache.ErrUnauthenticated, what)
	}
	return fmt.Errorf("look up %s: %w: %w", what, cache.ErrUnavailable, err)
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

// Package catalog has the ports of the records that say who may do what: caches, credentials, notes and leases.
// What the depot knows of its bytes has ports of its own, in package index. One database has both.
//
//	cache ── hosts     a cache has its record, and what is published in it has its ID
//	token              rights in caches, for who has the secret
//	SSH key            likewise, for who has the private key
//	note               something small that all processes share, such as a certificate
//	lease              the right of one process to do something, with an end
//
// All methods are safe for concurrent use, by several processes at once and, where the database is
// reached over a network, several machines.
//
// What has returned nil is durable. A method that fails has changed nothing, unless its connection
// broke: then it may have, and doing it again does no harm. Slices that are given and returned are
// not changed by either side from then on.
package catalog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"firn/internal/memo"
	"firn/nix"
)

// Errors of a Catalog, wrapped with what they are about. Match them with errors.Is.
var (
	// ErrNotFound: it is surely not there.
	ErrNotFound = errors.New("not in the catalog")
	// ErrConflict: there is another of this name.
	ErrConflict = errors.New("already in the catalog")
	// ErrGone: a sweep has removed something that a new record refers to. The caller can do all of it again.
	ErrGone = errors.New("removed by a sweep just now; try again")
	// ErrChanged: what was looked at before has changed since, see [Basis]. It has to be looked at
	// again.
	ErrChanged = errors.New("changed since it was looked at")
	// ErrUnavailable: the catalog cannot be asked now, such as for a lock that is held or a disk that is full.
	ErrUnavailable = errors.New("catalog unavailable")
	// ErrFull: there is no room on the disk for it. It is ErrUnavailable as well.
	ErrFull = fmt.Errorf("%w: the disk is full", ErrUnavailable)
	// ErrCorrupt: the database is damaged, and only a backup brings it back. It is ErrUnavailable
	// as well.
	ErrCorrupt = fmt.Errorf("%w: the database is damaged", ErrUnavailable)
	// ErrTooLarge: a note, or all of them, are larger than they may be.
	ErrTooLarge = errors.New("too large for the catalog")
)

// Sum is a SHA-256.
type Sum = [sha256.Size]byte

// IDs are drawn by the catalog and never used again.
type (
	CacheID int64
)

// A Database is asked about as a whole.
type Database interface {
	// It changes with every commit, of whatever process.
	memo.Changes
	// Check returns an error if the database does not answer.
	Check(ctx context.Context) error
}

// Sources that a cache may have, in the order in which it asks them.
const (
	SourceLocal = "local" // the store of this machine
	SourceDepot = "depot"
)

// A Cache is the record of a cache.
type Cache struct {
	ID       CacheID
	Name     string // unique; see CheckName of internal/cache
	StoreDir nix.StoreDir
	Sources  []string // of the Source constants, each once
	Priority int
	Private  bool     // reading needs a token
	Hosts    []string // host names under which it answers at the root; lower case, no port; each belongs to one cache
	// AllowMissingReferences accepts narinfos whose references are not in the cache.
	AllowMissingReferences bool
	// Keys sign what is served. Those of the cache main that the operator gives on the command line are not here.
	Keys    []nix.SecretKey
	Created time.Time // to the second, UTC
}

// Equal reports whether two records say the same, but for when they were made.
func (c *Cache) Equal(o *Cache) bool {
	return c.ID == o.ID && c.Name == o.Name && c.StoreDir == o.StoreDir && slices.Equal(c.Sources, o.Sources) &&
		c.Priority == o.Priority && c.Private == o.Private && slices.Equal(c.Hosts, o.Hosts) &&
		c.AllowMissingReferences == o.AllowMissingReferences &&
		slices.EqualFunc(c.Keys, o.Keys, func(k, l nix.SecretKey) bool { return k.Reveal() == l.Reveal() })
}

// Caches keeps the records of caches: few, so they are read as a whole.
type Caches interface {
	// AddCache adds a cache and sets its ID. ErrConflict if there is one of this name, or one of its hosts is another's.
	AddCache(ctx context.Context, c *Cache) error
	// AllCaches returns all caches by name.
	AllCaches(ctx context.Context) ([]*Cache, error)
	// SetCache replaces a record that was read with another of the same ID; Created stays.
	// ErrNotFound if there is none, ErrChanged if the record is not old any more: else one of two
	// changes would undo the other. ErrConflict as above.
	SetCache(ctx context.Context, old, c *Cache) error
	// DeleteCache removes a cache with its paths, uploads and files. ErrNotFound if there is none.
	// If the deletion is interrupted, the cache is gone and sweeps remove the rest.
	DeleteCache(ctx context.Context, id CacheID) error
}

// A Token is the record of a token. Its secret is not in it.
type Token struct {
	Name    string // unique among those that are not revoked
	Hash    Sum    // of the secret; unique
	Created time.Time
	Expires time.Time // zero: never
	Used    time.Time // when it was last used, to some minutes; zero: never. AddToken does not read it.
	Grants  []Grant
}

// A Grant is what a token allows: rights in the caches that a pattern matches.
type Grant struct {
	Pattern string // of path.Match, on the name of the cache
	Rights  uint8  // bits as internal/cache defines them
}

// Tokens keeps the records of tokens.
type Tokens interface {
	// AddToken adds a token. ErrConflict if there is one of this name or hash.
	AddToken(ctx context.Context, t *Token) error
	// AllTokens returns all tokens by name, expired ones too.
	AllTokens(ctx context.Context) ([]*Token, error)
	// TokenByHash returns the token of a secret, also if it has expired. ErrNotFound if there is none.
	TokenByHash(ctx context.Context, hash Sum) (*Token, error)
	// RevokeToken removes a token. ErrNotFound if there is none.
	RevokeToken(ctx context.Context, name string) error
}

// A Use says when a credential was used: a token, or the SSH key that is not nil.
type Use struct {
	Token  Sum    // the hash of its secret
	SSHKey []byte // as it goes over the wire
	At     time.Time
}

// Uses keeps when credentials were used.
type Uses interface {
	// NoteUses notes when tokens and SSH keys were used, all in one transaction. An earlier time
	// than the one that is there changes nothing, and neither does a credential that is not there
	// any more.
	NoteUses(ctx context.Context, uses []Use) error
}

// An SSHKey is the record of a public key whose holder may use caches, or of an authority whose certificates say who may.
type SSHKey struct {
	Name      string // unique among those that are not revoked
	Key       []byte // as it goes over the wire; unique
	Authority bool   // it signs certificates, and is no login key itself
	// Users are the principals of which a certificate has to have one. None: it has to have the name of the cache.
	Users   []string
	Created time.Time
	Expires time.Time // zero: never
	Used    time.Time // as of a Token
	Grants  []Grant
}

// SSHKeys keeps the records of SSH keys.
type SSHKeys interface {
	// AddSSHKey adds a key. ErrConflict if there is one of this name, or the key itself is there.
	AddSSHKey(ctx context.Context, k *SSHKey) error
	// AllSSHKeys returns all keys by name, expired ones too.
	AllSSHKeys(ctx context.Context) ([]*SSHKey, error)
	// SSHKey returns the record of a key, also if it has expired. ErrNotFound if there is none.
	SSHKey(ctx context.Context, key []byte) (*SSHKey, error)
	// RevokeSSHKey removes a key. ErrNotFound if there is none.
	RevokeSSHKey(ctx context.Context, name string) error
}

// Bounds of notes: of the key and the value of one, in bytes, and of how many there are.
const (
	MaxNoteKey = 512
	MaxNote    = 64 << 10
	MaxNotes   = 16 << 10
)

// A Note is something small that the nodes of a server share, such as a certificate.
type Note struct {
	Key     string // such as acme/certificate/<host>
	Value   []byte
	Expires time.Time // zero: never; then it is not there any more. To the second.
}

// Notes keeps notes.
type Notes interface {
	// PutNote keeps a note, in place of the one under its key. ErrTooLarge if it is, or there are too many.
	PutNote(ctx context.Context, n *Note) error
	// AddNote keeps a note. ErrConflict if there is one under its key; ErrTooLarge as above.
	AddNote(ctx context.Context, n *Note) error
	// Note returns a note. ErrNotFound if there is none, or it has expired.
	Note(ctx context.Context, key string) (*Note, error)
	// DeleteNote removes a note. It is no error if there is none.
	DeleteNote(ctx context.Context, key string) error
}

// A Lease is the right to do one thing, which one process has at a time.
type Lease struct {
	Name   string // what may be done: up to MaxNoteKey bytes
	Holder string // drawn at random for each lease that is taken
}

// Leases keeps leases. What comes to their end ends by the clock of the database.
type Leases interface {
	// TakeLease takes a lease for a time. ErrConflict while another process has it; ErrTooLarge if
	// there are too many. What is to be done once in a time takes a lease for that long, and does
	// not give it back.
	TakeLease(ctx context.Context, name string, d time.Duration) (*Lease, error)
	// ReleaseLease gives back a lease before its end. It is no error if it has ended.
	ReleaseLease(ctx context.Context, l *Lease) error
}

// Package catalog is what a depot knows: which caches there are, what is published in them, and where its bytes lie.
//
// A NAR is kept once, however many caches it is published in. What leads to it is per cache:
// an [Upload], the name under which a client sent it, and a published store path.
// Nothing that one cache has can be found through another.
//
//	chunk ── pack        where the bytes lie; a chunk may be in NARs of any number
//	NAR ── packs         the packs that its recipe refers to, in the order of their indices there
//	upload ── NAR        in one cache
//	path ── NAR          in one cache: published
//	file                 in one cache: logs, realisations, build traces
//
// A NAR goes when no upload and no path leads to it, and a pack when no NAR does.
// A pack that NARs have left is thin: what of it is still needed may be moved to a new one.
// Nobody counts: a sweep finds them, and leaves alone what is younger than its grace,
// so a client may take that long between the first byte of a NAR and its narinfo.
package catalog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
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
	// ErrGone: something that a new record refers to was swept meanwhile. The whole can be done again.
	ErrGone = errors.New("swept meanwhile")
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
	NARID   int64
)

// A Catalog keeps records. All methods are safe for concurrent use, by several processes at once
// and, where the database is reached over a network, several machines.
//
// Whatever has returned nil is durable. A method that fails has changed nothing, unless its connection broke:
// then it may have, and doing it again does no harm.
// Slices that are given and returned are not changed by either side from then on.
type Catalog interface {
	Caches
	Tokens
	SSHKeys
	Notes
	NARs
	Packs
	Paths
	Deletions
	Files

	// Changes with every commit, of whatever process.
	memo.Changes

	// Check asks the database something.
	Check(ctx context.Context) error

	// Close ends all use.
	Close() error
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
	// Caches returns all caches by name.
	Caches(ctx context.Context) ([]*Cache, error)
	// SetCache replaces a record that was read with another of the same ID; Created stays.
	// ErrNotFound if there is none, ErrChanged if the record is not old any more: else one of two
	// changes would undo the other. ErrConflict as above.
	SetCache(ctx context.Context, old, c *Cache) error
	// DeleteCache removes a cache with its paths, uploads and files. ErrNotFound if there is none.
	// These may go after the cache, by and by, should it be cut off: sweeps go on with them.
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
	// Tokens returns all tokens by name, expired ones too.
	Tokens(ctx context.Context) ([]*Token, error)
	// TokenByHash returns the token of a secret, also if it has expired. ErrNotFound if there is none.
	TokenByHash(ctx context.Context, hash Sum) (*Token, error)
	// RevokeToken removes a token. ErrNotFound if there is none.
	RevokeToken(ctx context.Context, name string) error
	// NoteUses notes when tokens and SSH keys were used, all in one transaction. An earlier time
	// than the one that is there changes nothing, and neither does a credential that is not there
	// any more.
	NoteUses(ctx context.Context, uses []Use) error
}

// A Use says when a credential was used: a token, or the SSH key that is not nil.
type Use struct {
	Token  Sum    // the hash of its secret
	SSHKey []byte // as it goes over the wire
	At     time.Time
}

// An SSHKey is the record of a public key whose holder may use caches, or of an authority whose certificates say who may.
type SSHKey struct {
	Name      string // unique among those that are not revoked
	Key       []byte // as it goes over the wire; unique
	Authority bool   // it signs certificates, and logs nobody in by itself
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
	// SSHKeys returns all keys by name, expired ones too.
	SSHKeys(ctx context.Context) ([]*SSHKey, error)
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

// A Chunk says where a piece of NARs lies.
type Chunk struct {
	Hash   Sum // of its bytes
	Pack   string
	Offset int64 // of its frame in the pack
	Length int64 // of its frame
	Size   int64 // of its bytes
	// Led says that a NAR of the cache that asks consists of it, as far as Upload.Uses has told: only then may that cache
	// be told, by how long something takes too, that it is there.
	Led bool
}

// A NAR is what is kept of one.
type NAR struct {
	ID       NARID
	Hash     Sum   // NAR hash
	Size     int64 // NAR size
	FileSize int64 // of its frames in all
	// Recipe says of which frames it consists, in a form that is the depot's own. It refers to packs by their index in Packs.
	Recipe []byte
	Packs  []string
	// Tag is another one if the bytes of the frames are others, in a form that is the depot's own. Empty where an older firn added the NAR.
	Tag string
	// Fault is why it is withheld, if it is; see Withhold.
	Fault Fault
}

// A Fault is what is wrong with a NAR. Its numbers are in the database.
type Fault uint8

const (
	Whole   Fault = iota // nothing
	Damaged              // its bytes are not those that were kept
	Missing              // a pack that it needs is missing, or too short; what is in it may be whole
)

// A Pack is a new blob of frames.
type Pack struct {
	Name string
	Size int64
}

// NewNAR is a NAR whose bytes are durable.
type NewNAR struct {
	NAR             // without ID; Packs may have that of Pack
	Pack    *Pack   // the new one, which other NARs may bring too; nil if all its frames were there
	Chunks  []Chunk // the new ones that may be shared, all in Pack
	Built   []Chunk // those that were there, and that its recipe refers to where they lay
	Listing []byte  // its listing, in a form that is the depot's own
	// Upload under which it came in, nil if under none. Its NAR field is not read.
	Upload *Upload
}

// An Upload is a name under which a client of one cache sent a NAR, or knows it from another server.
type Upload struct {
	Cache    CacheID
	Name     string // such as nar/<file hash>.nar.xz
	NAR      NARID
	NARHash  Sum
	NARSize  int64
	FileHash Sum   // of what was sent
	FileSize int64 // of what was sent
	// Compression of what was sent, as narinfos name it, "" if that is not known.
	Compression string
	// Published says that a path of the cache has the NAR. It is not read.
	Published bool
	// Uses are chunks of the NAR to which this upload is the first of its cache to lead. Those that are not there are passed over.
	// They are not returned.
	Uses []Sum
}

// NARs keeps what is known of bytes.
type NARs interface {
	// Chunks returns those of the given chunks that there are, in any order, with Led for a cache, which may be none.
	// Those in a pack that others were moved out of are left out, see MoveFrames, and those in one that is soon to be swept, see Sweep.
	// At most 256 are asked for at once.
	Chunks(ctx context.Context, cache CacheID, hashes []Sum) ([]Chunk, error)

	// AddNAR adds a NAR with its pack, its chunks and its upload, all or nothing, and returns its ID.
	// If there is one with this hash already, only the upload is added, added is false, and the new pack is nobody's.
	// One that is withheld gets everything again, under its old ID, is whole then, and counts as
	// added. Chunks that are there already stay where they are, unless Chunks leaves them out.
	// ErrGone if one of Packs is neither known nor the new one, one of Built is not there any more
	// or lies elsewhere, or the cache of the upload is not there any more. An upload that there is
	// already is replaced.
	AddNAR(ctx context.Context, n *NewNAR) (id NARID, added bool, err error)

	// NAR returns what is kept under a NAR hash. ErrNotFound if nothing is.
	NAR(ctx context.Context, hash Sum) (*NAR, error)

	// Leads reports whether an upload or a path of a cache leads to a NAR.
	Leads(ctx context.Context, cache CacheID, nar NARID) (bool, error)

	// ForgetChunks forgets the chunks of a pack that lie at the given offsets, all of them if offsets is nil:
	// nothing new may refer to them. NARs keep what they refer to.
	ForgetChunks(ctx context.Context, pack string, offsets []int64) error

	// Listing returns the listing of a NAR. ErrNotFound if there is no such NAR.
	Listing(ctx context.Context, hash Sum) ([]byte, error)

	// AddUpload adds a name for a NAR that is known. ErrGone if it is not, or no more, or the cache is not.
	AddUpload(ctx context.Context, u *Upload) error

	// Upload returns what a client of a cache sent under a name. ErrNotFound if nothing.
	Upload(ctx context.Context, cache CacheID, name string) (*Upload, error)

	// AllNARs iterates over all NARs in the order of their IDs, after the given one, without
	// Recipe, Packs and Tag; over those only that are withheld, if withheld is true. It holds no
	// transaction open between two items.
	AllNARs(ctx context.Context, after NARID, withheld bool) iter.Seq2[*NAR, error]

	// Sweep forgets uploads whose NAR is not published in their cache, and which were made, or last published there, before the given time, then NARs that nothing leads to
	// and that were added before that time, and packs, with their chunks, that no NAR has referred to since then.
	// When half of that time has passed for a pack, Chunks does not find what is in it any more, so who has found something has the other half to refer to it.
	// At most limit of each in one call; it returns the names of the packs, whose blobs are to be deleted now,
	// and whether there may be more.
	Sweep(ctx context.Context, before time.Time, limit int) (packs []string, more bool, err error)

	// KnownPacks returns those of the given names that are packs. At most 256 are asked for at once.
	KnownPacks(ctx context.Context, names []string) ([]string, error)
}

// A Path is a store path that is published in a cache.
type Path struct {
	Info nix.PathInfo // NARHash and NARSize are those of the NAR
	NAR  NARID
	// Elsewhere are those of its references that another source of the cache has. Publish keeps
	// them; they are not returned.
	Elsewhere []nix.StorePath
	// By is who published it: the name of a token or an SSH key, empty where that is not known.
	By string
	// Published is when it was published, to the second. It is not read.
	Published time.Time
	// FileSize and Tag are those of the NAR. They are not read.
	FileSize int64
	Tag      string
}

// A DanglingReference is a reference to a path that is not published in the cache, as another
// source has, or had, it.
type DanglingReference struct {
	Path nix.StorePath // that is referred to
	By   nix.StorePath // one of those that refer to it
}

// DebugInfo is where the debug information of a build ID is.
type DebugInfo struct {
	BuildID string // 40 lower-case hexadecimal digits
	Path    nix.PathHash
	Member  string // path in the NAR
}

// A Basis is what was looked at before a path is published, or before a file is kept that says that
// the path was built. Both are refused with ErrChanged where that has changed.
//
// The caller gets it from [Paths].Basis first, then looks, and says what it has looked at.
type Basis struct {
	// Paths and Deletions say how much had been published in all caches, and deleted from this one.
	// Basis sets them.
	Paths, Deletions int64
	// Dangling says that the path may be referred to already, so that it may close a cycle: a
	// published path of the cache had this reference when nothing was published under it, or what
	// was is there, is withheld or was deleted. It may be true of a path that nothing refers to any
	// more. Basis sets it.
	Dangling bool
	// Visited are the paths whose references were looked for, there or not, to find a cycle; nil if
	// none were. A path with Dangling is published only with this, and if none of these paths was
	// published since.
	Visited map[nix.PathHash]bool
	// Partial says that references may be missing. Else nothing is published with a reference that
	// is not in the catalog if a path of the cache was deleted since, for it may have been that
	// one.
	Partial bool
}

// A Referrer is a published path with what it refers to.
type Referrer struct {
	Path       nix.StorePath
	References []nix.StorePath
	Withheld   bool
}

// Paths keeps what is published.
type Paths interface {
	// Publish makes a path visible in a cache, with its debug info.
	// If the path is there already, it stays; with the same NAR, the signatures that are new are added to it.
	// One that is withheld makes way for another NAR, with its debug info.
	// It returns what is there then, and whether this call added it.
	// ErrGone if the NAR or the cache is not there any more, or the NAR is withheld; ErrChanged as
	// Basis says, if the path is added. Signatures past 64 are refused with ErrConflict.
	Publish(ctx context.Context, cache CacheID, p *Path, debug []DebugInfo, b Basis) (there *Path, added bool, err error)

	// Basis returns what Publish, or UpdateFile, of this path will compare, as it is now.
	Basis(ctx context.Context, cache CacheID, hash nix.PathHash) (Basis, error)

	// DanglingReferences iterates, in the order of their path hashes, over what is Elsewhere of
	// published paths of the cache and is not published there now, withheld or not. It holds no
	// transaction open between two items.
	DanglingReferences(ctx context.Context, cache CacheID) iter.Seq2[*DanglingReference, error]

	// WithheldPaths iterates over the paths of the cache that are published and have a NAR that is
	// withheld, in any order. It holds no transaction open between two items.
	WithheldPaths(ctx context.Context, cache CacheID) iter.Seq2[nix.StorePath, error]

	// References iterates over those of the given paths that are published, withheld ones too, with
	// what they refer to, in any order. At most 256 are asked for at once. One is in memory at a
	// time: each may have many references.
	References(ctx context.Context, cache CacheID, hashes []nix.PathHash) iter.Seq2[Referrer, error]

	// Endorse keeps signatures of a path that is not published in the cache, as another source has
	// it: they are added to those that were kept of the same NAR, and replace those of another one.
	// ErrGone if the cache is not there, ErrConflict past 64 signatures.
	Endorse(ctx context.Context, cache CacheID, hash nix.PathHash, nar Sum, sigs []nix.Signature) error

	// Endorsements returns what was pushed of a path with this NAR: its signatures and unknown
	// fields where it is published, and the signatures that Endorse has kept. Nothing is no error.
	Endorsements(ctx context.Context, cache CacheID, hash nix.PathHash, nar Sum) ([]nix.Signature, []nix.Field, error)

	// Path returns a published path. ErrNotFound if there is none.
	Path(ctx context.Context, cache CacheID, hash nix.PathHash) (*Path, error)

	// Withhold gives those of the NARs that have the fault from the fault to, and returns how many
	// these are. At most 256 may be given at once. Paths that have a NAR with a fault other than
	// Whole are withheld: they are not there for Path and AllPaths.
	Withhold(ctx context.Context, nars []NARID, from, to Fault) (changed int64, err error)

	// AllPaths iterates over the paths of a cache in the order of their path hashes, after the given one.
	// It holds no transaction open between two items. withheld asks for those that are withheld
	// instead.
	AllPaths(ctx context.Context, cache CacheID, after nix.PathHash, withheld bool) iter.Seq2[*Path, error]

	// DeletePath removes a path from a cache. ErrNotFound if it is not there.
	DeletePath(ctx context.Context, cache CacheID, hash nix.PathHash) error

	// DebugInfo returns the debug info of a build ID, of any path that has it and is not withheld. ErrNotFound if there is none.
	DebugInfo(ctx context.Context, cache CacheID, buildID string) (*DebugInfo, error)

	// Count returns what is kept. With a cache, its paths and the NARs of these; else everything.
	Count(ctx context.Context, cache *CacheID) (Counts, error)
}

// Counts says how much there is.
type Counts struct {
	Caches, Paths, NARs, Chunks, Packs int64
	NARBytes                           int64 // NAR sizes, of each path for a cache, of each NAR for everything
	FileBytes                          int64 // as served, likewise
	PackBytes                          int64 // kept; 0 for one cache
	Reclaimable                        int64 // of PackBytes, what is known to go with a later sweep
	Unpublished                        int64 // as served, of NARs that no path has: deleted, or not published yet; 0 for one cache
	Withheld                           int64 // NARs that are
	Missing                            int64 // of these, those with the fault Missing
}

// A File is something small that a cache has.
type File struct {
	Key     string // such as realisations/<id>.doi, or what LogKey returns
	Content []byte
	// Path is what it says was built, zero if it says nothing of the kind: it goes when that is deleted.
	Path nix.StorePath
}

// LogKey is the key of the build log of a derivation. It goes when the last path is deleted that the derivation has built.
func LogKey(drv nix.StorePath) string { return "log/" + drv.Base() }

// Files keeps the small things of a cache.
type Files interface {
	// PutFile adds a file, in place of the one under its key. ErrGone if the cache is not there any
	// more.
	PutFile(ctx context.Context, cache CacheID, f *File) error
	// UpdateFile replaces the content of the file with the key and path of f by what update makes
	// of it. update gets nil if there is no such file. If it returns nil or the same, nothing
	// changes. Its error is returned as it is. It runs in the transaction, so that nothing else
	// changes the file in between: it must be quick, must not ask the catalog, and may be called
	// again. ErrGone if the cache is not there any more; ErrChanged where Basis says so of a
	// reference, of the path of f.
	UpdateFile(ctx context.Context, cache CacheID, f *File, b Basis, update func(old []byte) ([]byte, error)) error
	// File returns the content of a file. ErrNotFound if there is none.
	File(ctx context.Context, cache CacheID, key string) ([]byte, error)
	// AllFiles iterates over the keys of the files of a cache that begin with prefix, in their order.
	AllFiles(ctx context.Context, cache CacheID, prefix string) iter.Seq2[string, error]
}

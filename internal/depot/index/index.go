// Package index has the ports of what the depot knows of its bytes: where they lie, and which store paths lead to them.
//
// A NAR is kept once, however many caches it is published in. What leads to it is per cache:
// an [Upload], the name under which a client sent it, and a published store path.
// Nothing that one cache has can be found through another.
//
//	chunk ── pack        where the bytes lie; a chunk may be in any number of NARs
//	NAR ── packs         the packs that its recipe refers to, in the order of their numbers there
//	upload ── NAR        in one cache
//	path ── NAR          in one cache: published
//	path ── references   in one cache; each is found from either end
//	file                 in one cache: logs, realisations, build traces
//
// A NAR goes when no upload and no path leads to it, and a pack when no NAR refers to it.
// A pack that NARs have left is thin: what NARs still need of it may be moved to a new one.
// Nothing is counted: a sweep finds what may go, and leaves alone what is younger than its grace,
// so a client may take that long between the first byte of a NAR and its narinfo.
//
// What goes with a deletion, and in which order, is decided above the ports, by [Delete].
//
// The errors are those of package catalog, and so is what holds for all methods. Where many things
// may be asked for at once, that is one round trip to the database, and at most [MaxAsked] may be.
package index

import (
	"context"
	"iter"
	"time"

	"firn/internal/catalog"
	"firn/nix"
)

// MaxAsked is how many things may be asked for at once.
const MaxAsked = 256

// A NARID is drawn by the database and never used again.
type NARID int64

// An Index is all ports of this package.
type Index struct {
	NARs
	Uploads
	Chunks
	Packs
	Paths
	References
	Endorsements
	Deletions
	Files
	Upkeep
}

// Of returns the ports of a database that has them all.
func Of(db interface {
	NARs
	Uploads
	Chunks
	Packs
	Paths
	References
	Endorsements
	Deletions
	Files
	Upkeep
}) Index {
	return Index{db, db, db, db, db, db, db, db, db, db}
}

// A Chunk says where a piece of NARs lies.
type Chunk struct {
	Hash   catalog.Sum // of its bytes
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
	Hash     catalog.Sum // NAR hash
	Size     int64       // NAR size
	FileSize int64       // of its frames in all
	// Recipe says of which frames it consists, in a form that is the depot's own. It refers to packs by their index in Packs.
	Recipe []byte
	Packs  []string
	// Tag is another one if the bytes of the frames are others, in a form that is the depot's own.
	Tag string
	// Fault is why it is withheld, if it is; see [NARs].SetFaults.
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
	Cache    catalog.CacheID
	Name     string // such as nar/<file hash>.nar.xz
	NAR      NARID
	NARHash  catalog.Sum
	NARSize  int64
	FileHash catalog.Sum // of what was sent
	FileSize int64       // of what was sent
	// Compression of what was sent, as narinfos name it, "" if that is not known.
	Compression string
	// Published says that a path of the cache has the NAR. It is not read.
	Published bool
	// Uses are chunks of the NAR to which this upload is the first of its cache to lead. Those that are not there are passed over.
	// They are not returned.
	Uses []catalog.Sum
}

// NARs keeps what is known of NARs.
type NARs interface {
	// AddNAR adds a NAR with its pack, its chunks and its upload, all or nothing, and returns its ID.
	// If there is one with this hash already, only the upload is added, added is false, and nothing
	// refers to the new pack. One that is withheld gets everything again, under its old ID, is whole
	// then, and counts as added. Chunks that are there already stay where they are, unless
	// FindChunks leaves them out.
	// ErrGone if one of Packs is neither known nor the new one, one of Built is not there any more
	// or lies elsewhere, or the cache of the upload is not there any more. An upload that there is
	// already is replaced.
	AddNAR(ctx context.Context, n *NewNAR) (id NARID, added bool, err error)

	// NAR returns what is kept under a NAR hash. ErrNotFound if nothing is.
	NAR(ctx context.Context, hash catalog.Sum) (*NAR, error)

	// Listing returns the listing of a NAR. ErrNotFound if there is no such NAR.
	Listing(ctx context.Context, hash catalog.Sum) ([]byte, error)

	// AllNARs iterates over all NARs in the order of their IDs, without Recipe, Packs and Tag. It
	// holds no transaction open between two items.
	AllNARs(ctx context.Context) iter.Seq2[*NAR, error]

	// WithheldNARs is AllNARs of those that are withheld. It reads no others.
	WithheldNARs(ctx context.Context) iter.Seq2[*NAR, error]

	// SetFaults gives those of the NARs that have the fault from the fault to, and returns how many
	// these are. At most MaxAsked may be given. Paths that have a NAR with a fault other than Whole
	// are withheld: they are not there for Path and AllPaths.
	SetFaults(ctx context.Context, nars []NARID, from, to Fault) (changed int64, err error)
}

// Uploads keeps under which names the clients of a cache sent NARs.
type Uploads interface {
	// AddUpload adds a name for a NAR that is known. ErrGone if it is not, or no more, or the cache is not.
	AddUpload(ctx context.Context, u *Upload) error

	// Upload returns what a client of a cache sent under a name. ErrNotFound if nothing.
	Upload(ctx context.Context, cache catalog.CacheID, name string) (*Upload, error)

	// Reaches reports whether an upload or a path of a cache leads to a NAR.
	Reaches(ctx context.Context, cache catalog.CacheID, nar NARID) (bool, error)
}

// Chunks keeps where chunks lie.
type Chunks interface {
	// FindChunks returns those of the given chunks that there are, in any order, with Led for a cache,
	// which may be none. Those in a pack that others were moved out of are left out, see
	// MoveFrames, and those in one that is soon to be swept, see Sweep. At most MaxAsked may be
	// asked for.
	FindChunks(ctx context.Context, cache catalog.CacheID, hashes []catalog.Sum) ([]Chunk, error)

	// ForgetChunks forgets the chunks of a pack that lie at the given offsets: nothing new may refer
	// to them. NARs keep what they refer to.
	ForgetChunks(ctx context.Context, pack string, offsets []int64) error

	// ForgetPack is ForgetChunks of all chunks of a pack.
	ForgetPack(ctx context.Context, pack string) error
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

// DebugInfo is where the debug information of a build ID is.
type DebugInfo struct {
	BuildID string // 40 lower-case hexadecimal digits
	Path    nix.PathHash
	Member  string // path in the NAR
}

// A Basis is what was looked at before a path is published, or before a file is kept that says that
// the path was built. Both are refused with ErrChanged where that has changed. So no transaction
// follows references: who publishes does that before, and does it again after ErrChanged.
//
// The caller gets it from [Paths].Basis first, then looks, and says what it has looked at.
type Basis struct {
	// Paths and Deletions say how much had been published in all caches, and deleted from this one.
	// Basis sets them, Paths never to 0: on the zero Basis signatures are added to a path that is
	// there, and one that is not is refused with ErrChanged, for it was deleted since.
	Paths, Deletions int64
	// Referred says that a published path of the cache, withheld or not, refers to this one, which
	// may close a cycle then. Basis sets it.
	Referred bool
	// Visited are the paths whose references were looked for, there or not, to find a cycle; nil if
	// none were. A path that is referred to is published only with this, and if none of these paths
	// was published since.
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

// A Reference is one of a published path to another path, published or not.
type Reference struct {
	From nix.StorePath
	To   nix.StorePath
}

// Paths keeps what is published.
type Paths interface {
	// Publish makes a path visible in a cache, with its debug info. Its references are kept as a
	// set, in the order of their names.
	// If the path is there already, it stays; with the same NAR, the signatures that are new are added to it.
	// One that is withheld makes way for another NAR, with its debug info.
	// It returns what is there then, and whether this call added it.
	// ErrGone if the NAR or the cache is not there any more, or the NAR is withheld; ErrChanged as
	// Basis says, if the path is added. Signatures past 64 are refused with ErrConflict.
	Publish(ctx context.Context, cache catalog.CacheID, p *Path, debug []DebugInfo, b Basis) (there *Path, added bool, err error)

	// Basis returns what Publish, or UpdateFile, of this path will compare, as it is now.
	Basis(ctx context.Context, cache catalog.CacheID, hash nix.PathHash) (Basis, error)

	// Path returns a published path. ErrNotFound if there is none.
	Path(ctx context.Context, cache catalog.CacheID, hash nix.PathHash) (*Path, error)

	// AllPaths iterates over the paths of a cache in the order of their path hashes. It holds no
	// transaction open between two items.
	AllPaths(ctx context.Context, cache catalog.CacheID) iter.Seq2[*Path, error]

	// WithheldPaths iterates over the paths of a cache that have a NAR that is withheld, in any
	// order. It reads no others, and holds no transaction open between two items.
	WithheldPaths(ctx context.Context, cache catalog.CacheID) iter.Seq2[*Path, error]

	// DebugInfo returns the debug info of a build ID, of any path that has it and is not withheld. ErrNotFound if there is none.
	DebugInfo(ctx context.Context, cache catalog.CacheID, buildID string) (*DebugInfo, error)
}

// References keeps which published paths refer to which paths.
type References interface {
	// ReferencesOf iterates over those of the given paths that are published, withheld ones too, with
	// what they refer to, in any order. At most MaxAsked may be asked for. One is in memory at a
	// time: each may have many references.
	ReferencesOf(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash) iter.Seq2[Referrer, error]

	// Referrers iterates over the references of published paths, withheld ones too, to the given
	// ones, published or not. A reference of a path to itself is none. At most MaxAsked may be asked
	// for. It costs what it returns, and holds no transaction open between two items.
	Referrers(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash) iter.Seq2[Reference, error]

	// DanglingReferences iterates, in the order of their path hashes, over what was Elsewhere of
	// published paths of the cache and is not published there now, withheld or not, each with one
	// of the paths that refer to it. It holds no transaction open between two items.
	DanglingReferences(ctx context.Context, cache catalog.CacheID) iter.Seq2[Reference, error]
}

// Endorsements keeps what was pushed of paths that another source has.
type Endorsements interface {
	// Endorse keeps signatures of a path that is not published in the cache, as another source has
	// it: they are added to those that were kept of the same NAR, and replace those of another one.
	// ErrGone if the cache is not there, ErrConflict past 64 signatures.
	Endorse(ctx context.Context, cache catalog.CacheID, hash nix.PathHash, nar catalog.Sum, sigs []nix.Signature) error

	// EndorsementsOf returns what was pushed of a path with this NAR: its signatures and unknown
	// fields where it is published, and the signatures that Endorse has kept. Nothing is no error.
	EndorsementsOf(ctx context.Context, cache catalog.CacheID, hash nix.PathHash, nar catalog.Sum) ([]nix.Signature, []nix.Field, error)
}

// A Leaving is a published path as a deletion sees it.
type Leaving struct {
	Path    nix.StorePath
	Deriver nix.StorePath // zero if there is none
	NAR     NARID
	// FileSize is that of its NAR, as served, and Paths how many paths have this NAR, in all caches.
	FileSize int64
	Paths    int64
}

// Deletions removes what is published.
type Deletions interface {
	// Leaving returns those of the given paths that are published, withheld ones too, in any order.
	// At most MaxAsked may be asked for.
	Leaving(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash) ([]Leaving, error)

	// DeletePaths removes those of the given paths that are published, withheld ones too, in one
	// transaction, with their debug info and the files that say that they were built. It returns
	// what was removed, with Paths as they are then. At most MaxAsked may be given.
	// ErrChanged, and nothing is removed, if a path refers to one of them that may not: may is
	// asked in the transaction, must be quick, and must not ask the database.
	DeletePaths(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash, may func(Reference) bool) ([]Leaving, error)

	// DeleteLogs removes the logs of those of the derivations that are the deriver of no published
	// path of the cache. At most MaxAsked may be given.
	DeleteLogs(ctx context.Context, cache catalog.CacheID, drvs []nix.StorePath) error
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

// Upkeep is what is done with everything, again and again.
type Upkeep interface {
	// Sweep forgets uploads whose NAR is not published in their cache and that were made, or last
	// published there, before the given time, then NARs that nothing leads to and that were added
	// before that time, and packs, with their chunks, that no NAR has referred to since then.
	// When half of that time has passed for a pack, FindChunks does not find what is in it any more, so
	// who has found something has the other half to refer to it.
	// At most limit of each go in one call; it returns the names of the packs, whose blobs are to be
	// deleted now, and whether there may be more.
	Sweep(ctx context.Context, before time.Time, limit int) (packs []string, more bool, err error)

	// Count returns how much is kept in all.
	Count(ctx context.Context) (Counts, error)

	// CountIn returns how much is published in a cache.
	CountIn(ctx context.Context, cache catalog.CacheID) (Counts, error)
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
	PutFile(ctx context.Context, cache catalog.CacheID, f *File) error
	// UpdateFile replaces the content of the file with the key and path of f by what update makes
	// of it. update gets nil if there is no such file. If it returns nil or the same, nothing
	// changes. Its error is returned as it is. It runs in the transaction, so that nothing else
	// changes the file in between: it must be quick, must not ask the catalog, and may be called
	// again. ErrGone if the cache is not there any more; ErrChanged where Basis says so of a
	// reference, of the path of f.
	UpdateFile(ctx context.Context, cache catalog.CacheID, f *File, b Basis, update func(old []byte) ([]byte, error)) error
	// File returns the content of a file. ErrNotFound if there is none.
	File(ctx context.Context, cache catalog.CacheID, key string) ([]byte, error)
	// AllFiles iterates over the keys of the files of a cache that begin with prefix, in their order.
	AllFiles(ctx context.Context, cache catalog.CacheID, prefix string) iter.Seq2[string, error]
}

package cache

import (
	"context"
	"fmt"
	"io"
	"iter"

	"firn/nix"
)

// A Sink keeps what is pushed to a cache: a source, usually the part of the depot that one cache
// sees, by its ports. The zero Sink keeps nothing. [SinkOf] makes one.
//
// Nothing is published before all its bytes are verified and durable. What a method has acknowledged
// with nil stays, whatever happens then. All methods may be called at once, and again with the same
// arguments: nothing is kept twice. A method that fails keeps nothing that can be seen. Besides the
// errors of a Source, ErrInvalid says in its text, for the client, what is wrong with what was sent,
// and ErrTooLarge that it exceeds a limit.
type Sink struct {
	Source Source
	Receiver
	Publisher
	Endorser
	Recorder
}

// SinkOf returns the sink whose ports are all one value.
func SinkOf(s interface {
	Source
	Receiver
	Publisher
	Endorser
	Recorder
}) Sink {
	return Sink{s, s, s, s, s}
}

// A Receiver keeps NARs that no path leads to yet.
type Receiver interface {
	// Receive reads a NAR to its end and keeps it, unpublished.
	// Receive reads u.NAR from one goroutine, which is not reading any more when it returns.
	Receive(ctx context.Context, u Upload) (Received, error)

	// Received returns what was kept from an upload under this URL, or ErrNotFound.
	Received(ctx context.Context, url string) (Received, error)

	// Renew keeps an upload that Received knows, and that came once more, for as long as a new one.
	// ErrNotFound if it is gone.
	Renew(ctx context.Context, url string) error

	// OpenReceived opens what Received returns, uncompressed.
	OpenReceived(ctx context.Context, r Received) (NAR, error)

	// Room returns how many bytes can be kept still, and how many there could be in all, including
	// those that others keep; 0 in all if that cannot be told.
	Room(ctx context.Context) (free, all int64, err error)
}

// A Publisher makes store paths visible, and knows what they refer to.
type Publisher interface {
	// Publish makes a store path visible: info with the NAR that was received with its NARHash and
	// NARSize. The cache has checked info by then. ErrNotFound if that NAR was not received by this
	// cache. If the path is there already, with the same NAR, new signatures are added to it; with
	// another NAR, it stays as it is. If it is not there, and what it was checked for has changed
	// since, it is ErrChanged: see [Basis]. The result is what is there then.
	//
	// elsewhere are those of its references that another source of the cache has, and the sink
	// has not, see DanglingReferences.
	Publish(ctx context.Context, info *nix.PathInfo, b Basis, elsewhere ...nix.StorePath) (*nix.PathInfo, error)

	// Basis returns what Publish, PutRealisation and PutBuildTrace of this path, or output,
	// compare, as it is now.
	Basis(ctx context.Context, hash nix.PathHash) (Basis, error)

	// References iterates over those of the given paths that are published, withheld ones too, with
	// what they refer to, in any order. At most 256 are asked for at once. One is in memory at a
	// time: each may have many references.
	References(ctx context.Context, hashes []nix.PathHash) iter.Seq2[Referrer, error]

	// DanglingReferences iterates over the paths that were elsewhere when paths were published
	// which refer to them, and are not published now, each once.
	DanglingReferences(ctx context.Context) iter.Seq2[Reference, error]

	// WithheldPaths iterates over the paths that are published and cannot be had, as their bytes
	// are damaged.
	WithheldPaths(ctx context.Context) iter.Seq2[nix.StorePath, error]
}

// An Endorser keeps what was pushed of paths that another source has.
type Endorser interface {
	// Endorse keeps signatures of a path with this NAR that another source has. They are added to
	// those that were kept of that NAR.
	Endorse(ctx context.Context, info *nix.PathInfo, sigs []nix.Signature) error

	// Endorsements returns what was pushed of a path with the NAR of info, which another source
	// has: signatures that Endorse has kept, and those and the unknown fields that came with the
	// path itself. Nothing is no error.
	Endorsements(ctx context.Context, info *nix.PathInfo) ([]nix.Signature, []nix.Field, error)
}

// A Recorder keeps build logs, and what derivations were built to.
type Recorder interface {
	// PutLog keeps a build log, in the place of an older one.
	PutLog(ctx context.Context, drv nix.StorePath, log io.Reader) error

	// PutRealisation and PutBuildTrace keep what a derivation output was built to. An older one stays,
	// and gets new signatures if it says the same. ErrChanged if the output may have been deleted
	// since it was looked for: see [Basis].
	PutRealisation(ctx context.Context, r *nix.Realisation, b Basis) error
	PutBuildTrace(ctx context.Context, t *nix.BuildTrace, b Basis) error
}

// ErrChanged says that others have published or deleted something since the caller looked at it.
// It is ErrUnavailable as well.
var ErrChanged = fmt.Errorf("%w: others have just changed what this depends on", ErrUnavailable)

// A Basis says what a cache has looked at before its sink keeps something. The cache gets it from
// the sink first, looks at references, and notes which. Other processes may publish and delete in
// between: then keeping fails with ErrChanged.
type Basis struct {
	// Paths and Deletions say how much had been published and deleted. The sink sets them.
	Paths, Deletions int64
	// Dangling says that others may refer to the path before it is published, so that it may close a
	// cycle. The sink sets it. It may be true of a path that nothing refers to any more.
	Dangling bool
	// Visited are the paths whose references were looked for, there or not, to find a cycle; nil if
	// none were. A path with Dangling is published only with this, and if none of these paths was
	// published since.
	Visited map[nix.PathHash]bool
	// Partial says that references and outputs may be missing. Else nothing is kept that refers to
	// what the sink does not have if a path was deleted since, for it may have been that one.
	Partial bool
}

// An Upload is a NAR that is being received.
type Upload struct {
	// URL is the name that the client gives it, relative to the cache, such as nar/<file hash>.nar.xz; "" if it gives none.
	URL string
	// NAR gives the uncompressed bytes. What it fails with, Receive fails with; the NAR ends with io.EOF.
	NAR io.Reader
	// File is called once, after NAR has ended and before anything is kept. It returns the hash and size in bytes of what the client sent,
	// and fails when that is not what it should be. Nil if NAR is what was sent.
	File func() (hash nix.Hash, size int64, err error)
	// Compression of what the client sent, as narinfos name it; "" if that is not known.
	Compression nix.Compression
	// NARHash and NARSize are what it must be, where that is known beforehand; zero where not.
	NARHash nix.Hash
	NARSize int64
}

// Received is what is known of a NAR that was received. Hashes are SHA-256, sizes in bytes.
type Received struct {
	NARHash  nix.Hash
	NARSize  int64
	FileHash nix.Hash // of what the client sent
	FileSize int64
	// Compression of what the client sent, "" if that is not known.
	Compression nix.Compression
	// Published says that a path of the cache has this NAR. Until then, only clients that may push may know of it.
	// Receive does not tell.
	Published bool
}

// Compressed is a Source that keeps NARs in a compressed form, which its narinfos point to.
// OpenNAR of it decompresses.
type Compressed interface {
	Source

	// Compression is what narinfos say of what OpenCompressed gives. It never changes.
	Compression() nix.Compression

	// StatCompressed returns the size in bytes of what OpenCompressed would open, and what it depends on besides the NAR,
	// of letters, digits and '-': as long as that is the same, the bytes are.
	StatCompressed(ctx context.Context, info *nix.PathInfo) (size int64, tag string, err error)

	// OpenCompressed opens the compressed NAR of a path info that this source gave, and returns the
	// tag of its bytes, which is that of StatCompressed. It is like OpenNAR.
	OpenCompressed(ctx context.Context, info *nix.PathInfo) (n NAR, tag string, err error)
}

// A CompressedReceiver is a Receiver that keeps NARs in a compressed form.
type CompressedReceiver interface {
	Compressed

	// OpenReceivedCompressed opens what Received returns, compressed, and returns its tag, which is that of StatCompressed.
	OpenReceivedCompressed(ctx context.Context, r Received) (n NAR, tag string, err error)
}

// DebugInformer is a Source that knows where debug information is.
type DebugInformer interface {
	Source

	// DebugInfo returns in which NAR, and where in it, the debug information of a build ID lies,
	// given as 40 lower-case hexadecimal digits. ErrNotFound if unknown.
	DebugInfo(ctx context.Context, buildID string) (path nix.PathHash, member string, err error)
}

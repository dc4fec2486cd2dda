package cache

import (
	"context"
	"errors"
	"io"

	"firn/nix"
)

// The errors that a source and a Cache answer with,
// wrapped as `verb object: cause` and recognised by errors.Is.
var (
	// ErrNotFound: it is surely not there.
	ErrNotFound = errors.New("not found")
	// ErrInvalid: what was given is malformed, or contradicts itself.
	ErrInvalid = errors.New("invalid")
	// ErrConflict: it would replace something else that is there.
	ErrConflict = errors.New("conflict")
	// ErrDenied: the principal may not do this.
	ErrDenied = errors.New("denied")
	// ErrUnauthenticated: the client has to say who it is, or what it said is wrong.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrTooLarge: it exceeds a limit.
	ErrTooLarge = errors.New("too large")
	// ErrFull: there is no space to keep it. An operator has to make some.
	ErrFull = errors.New("no room")
	// ErrUnavailable: it could not be told now; asking again later may succeed.
	ErrUnavailable = errors.New("unavailable")
)

// A Source is where a cache finds store paths: the local store, the depot, an upstream.
//
// All methods are safe for concurrent use and return soon after their context ends.
// There, not there and could-not-tell are three answers: a value, ErrNotFound, and any other error
// (ErrUnavailable where asking again may help).
// What only some sources can do is an optional interface below, or [firn/internal/memo.Changes], which
// is about PathInfo.
type Source interface {
	// Name is a short constant name for logs and metrics, such as "local store".
	Name() string

	// StoreDir is the store directory of every store path of the source. It never changes.
	StoreDir() nix.StoreDir

	// PathInfo returns what is known of the store path with the given path hash.
	// Its NARHash is a SHA-256 and its NARSize is more than zero:
	// a path of which the source knows either not cannot be served and is ErrNotFound,
	// and so is a path that was withheld because its bytes did not verify.
	// The result may be shared: neither the caller nor the source changes it from then on.
	PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error)

	// OpenNAR opens the NAR of a path info that this source gave.
	// ErrNotFound if the path has gone since.
	// The context bounds the opening only, not the life of the NAR. The caller closes the NAR.
	OpenNAR(ctx context.Context, info *nix.PathInfo) (NAR, error)
}

// A NAR is the archive of one store path as it is sent.
// It knows its size before the first byte and can write any range of itself.
// One goroutine uses a NAR at a time; different NARs of one path are independent.
type NAR interface {
	// Size is the length in bytes of what WriteRange writes in all. It is -1 of one that is [Unfinished].
	Size() int64

	// WriteRange writes the n bytes from off on to w; 0 ≤ off, 0 ≤ n, off+n ≤ Size.
	// It may be called several times. When w is an io.ReaderFrom, long runs of a file are handed to that.
	// An error means that not all bytes were written; those that were are the right ones,
	// unless the error is nar.ErrMismatch, which says that something before the last bytes is wrong.
	WriteRange(ctx context.Context, w io.Writer, off, n int64) error

	// Close releases what keeps the path from being collected as garbage. Call it once.
	Close() error
}

// Lister is a Source that can list the files of a NAR.
type Lister interface {
	Source

	// WriteListing writes the listing, with narOffset, of a path info that this source gave, as
	// nar.WriteListing does. ErrNotFound if the path has gone; it writes nothing then.
	WriteListing(ctx context.Context, info *nix.PathInfo, w io.Writer) error
}

// Logger is a Source that keeps build logs.
type Logger interface {
	Source

	// OpenLog opens the build log of a derivation; ErrNotFound if there is none. The caller closes it.
	OpenLog(ctx context.Context, drv nix.StorePath) (Log, error)
}

// Log is a build log: plain text, read once from its beginning by one goroutine.
type Log interface {
	io.ReadCloser

	// Size is the number of bytes that reading will give.
	// ok is false if that is not known before the end, as with a log that is kept compressed.
	Size() (n int64, ok bool)
}

// Realiser is a Source that knows what derivations were built to.
type Realiser interface {
	Source

	// Realisation returns what a derivation output was built to, as Nix up to 2.34 names it; ErrNotFound if unknown.
	// The caller must not change the result.
	Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error)

	// BuildTrace returns the same as Nix from 2.35 on names it: by derivation path and output name.
	// ErrNotFound if unknown. The caller must not change the result.
	BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error)
}

// Checker is a Source that can fail as a whole, and that compares the bytes it sends with their NAR
// hashes.
type Checker interface {
	Source

	// Check really asks what the source rests on, such as its database, and returns why it cannot serve.
	Check(ctx context.Context) error

	// Verified returns how many NARs were right, and how many were wrong and are withheld, since the source was opened.
	Verified() (right, wrong int64)
}

// Keeper is a Source whose paths may go at any time, and that can keep some of them.
type Keeper interface {
	Source

	// Keep keeps a path of the source, with all that it refers to, from now on, until KeepOnly does
	// not name it. That does not happen before done is called. The path stays kept when this
	// process ends.
	//
	// ErrNotFound if it is not there. ErrUnavailable if that may work later. Any other error says
	// that this process cannot have anything kept.
	Keep(ctx context.Context, path nix.StorePath) (done func(), err error)

	// KeepOnly ends the keeping of all paths but those that needed returns, and sees to it that
	// these are kept, as far as they are there. needed is called while no caller is between Keep
	// and its done.
	KeepOnly(ctx context.Context, needed func(ctx context.Context) ([]nix.StorePath, error)) error
}

// Adder is a Source that takes paths, such as a Nix store through its daemon. It checks their
// signatures by its own settings.
type Adder interface {
	Source

	// AddNAR adds a path. It reads r to its end, unless it objects before. ErrInvalid says in its text
	// why the store refuses the path.
	AddNAR(ctx context.Context, info *nix.PathInfo, r io.Reader) error

	// AddSignatures adds signatures to a path that is there. ErrInvalid is as above.
	AddSignatures(ctx context.Context, path nix.StorePath, sigs []nix.Signature) error
}

// Absent is a Source that may not be there yet, such as a store on a machine without Nix, or a
// depot to which nothing was pushed.
type Absent interface {
	Source

	// IsThere reports whether it is there: until then, the source has nothing. It is an error if that
	// could not be told.
	IsThere(ctx context.Context) (bool, error)
}

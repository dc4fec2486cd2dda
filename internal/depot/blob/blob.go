// Package blob is where the packs of a depot lie: immutable bytes under names, in a directory, or in an object store.
package blob

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrNotFound says that there is no blob of a name. Match it with errors.Is.
var ErrNotFound = errors.New("no such blob")

// ErrAbsent says that the store as a whole is not there, such as a disk that is not mounted: what
// is in it cannot be told.
var ErrAbsent = errors.New("the blobs are not there")

// A Store keeps blobs. All methods are safe for concurrent use, by several processes and machines at once.
//
// Names are 1 to 128 bytes of lower-case letters, digits, '-' and '.', not beginning with '.';
// any other is refused with an error, that of [CheckName].
// A name is used for one blob ever: whoever creates blobs draws names that nobody else does.
// Nothing assumes that a store can rename, append or overwrite, nor that listing is fast.
type Store interface {
	// Create begins a blob. Nobody can open or list it before it is committed.
	Create(ctx context.Context, name string) (Writer, error)

	// Open opens a committed blob. ErrNotFound if the store is there and surely has none of this
	// name; with any other error it may have. The context bounds the opening only. The caller
	// closes it.
	Open(ctx context.Context, name string) (Blob, error)

	// Delete removes a blob; that it is not there is no error.
	// A blob that is open can be read to its end, or fails to be read, and never gives other bytes.
	Delete(ctx context.Context, name string) error

	// List calls each with every committed blob, in any order, until that returns an error, which it returns.
	// What was created or deleted meanwhile may be there or not. For sweeps only: it may take minutes.
	List(ctx context.Context, each func(Info) error) error

	// Sweep removes what writers that are gone have left behind that is older than before.
	Sweep(ctx context.Context, before time.Time) error

	// Check asks whether the store is there. ErrAbsent if it is not.
	Check(ctx context.Context) error
}

// Measured is a Store that knows how much room it has. One that can grow without end is none.
type Measured interface {
	// Room returns how many bytes can be written still, and how many there could be in all, those of others included; 0 in all if that cannot be told.
	Room(ctx context.Context) (free, all int64, err error)
}

// Info is what a listing tells of a blob.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // when it was committed
}

// A Writer takes the bytes of one blob, from one goroutine.
// One that is neither committed nor aborted leaves what Sweep finds.
type Writer interface {
	io.Writer

	// Commit makes the blob durable and then visible: once it has returned nil, no crash loses it.
	// After an error the blob is not there, or is there whole, and it can be aborted.
	Commit(ctx context.Context) error

	// Abort removes what was written. After Commit has returned nil it does nothing, so it may be deferred.
	Abort()
}

// A Blob is open for reading. All methods but Close may be called at once.
type Blob interface {
	io.ReaderAt
	io.Closer

	// Size is its length in bytes, and less once it was damaged so.
	Size() int64

	// WriteRange writes the n bytes from off on to w; 0 ≤ off, 0 ≤ n, off+n ≤ Size.
	// A store of files gives w an io.SectionReader of an *os.File when w is an io.ReaderFrom, for
	// sendfile. Other ranges may be read from the same file at the same time, so w must leave its
	// offset alone.
	WriteRange(ctx context.Context, w io.Writer, off, n int64) error
}

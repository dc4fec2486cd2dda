// Package blob is where a depot has its packs: immutable bytes under names, in a directory or in an
// object store.
package blob

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrNotFound says that there is no blob of a name. Match it with errors.Is.
var ErrNotFound = errors.New("no such blob")

// ErrAbsent says that the store as a whole is not there, such as a disk that is not mounted. Which
// blobs it has is not known then.
var ErrAbsent = errors.New("the blobs are not there")

// A Store has blobs. All methods are safe for concurrent use, also by several processes and
// machines.
//
// Names are 1 to 128 bytes of lower-case letters, digits, '-' and '.', and do not begin with '.'.
// Any other name is refused with the error of [CheckName]. A name is used for one blob ever:
// callers draw names at random. A Store need not be able to rename, append or overwrite, and
// listing may be slow.
type Store interface {
	// Create begins a blob. It cannot be opened or listed before it is committed.
	Create(ctx context.Context, name string) (Writer, error)

	// Open opens a committed blob. ErrNotFound if the store is there and certainly has no blob of
	// this name; after any other error it may have one. The context bounds only the opening. The
	// caller closes the blob.
	Open(ctx context.Context, name string) (Blob, error)

	// Delete removes a blob. It is no error if it is not there. A blob that is open can be read to
	// its end, or fails to be read, and never gives other bytes.
	Delete(ctx context.Context, name string) error

	// List calls each with every committed blob, in any order, until each returns an error, which
	// List returns. A blob that is created or deleted at the same time may be listed or not. List
	// is for sweeps only: it may take minutes.
	List(ctx context.Context, each func(Info) error) error

	// Sweep removes the remains of writers that are gone, if they are older than before.
	Sweep(ctx context.Context, before time.Time) error

	// Check asks whether the store is there. ErrAbsent if it is not.
	Check(ctx context.Context) error
}

// Measured is a Store that knows how much room it has. A store that can grow without end is not
// Measured.
type Measured interface {
	// Room returns how many bytes can still be written, and how many there can be in all, those of
	// others included; 0 in all if that is not known.
	Room(ctx context.Context) (free, all int64, err error)
}

// Info describes a blob in a listing.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // when it was committed
}

// A Writer takes the bytes of one blob, from one goroutine. If it is neither committed nor aborted,
// Sweep removes its remains.
type Writer interface {
	io.Writer

	// Commit makes the blob durable and then visible: once it has returned nil, no crash loses the
	// blob. After an error the blob is not there or is there complete, and can be aborted.
	Commit(ctx context.Context) error

	// Abort removes the bytes that were written. After Commit has returned nil it does nothing, so
	// it may be deferred.
	Abort()
}

// A Blob is open for reading. All methods but Close may be called at once.
type Blob interface {
	io.ReaderAt
	io.Closer

	// Size returns its length in bytes. It is less if the blob was cut short by damage.
	Size() int64

	// WriteRange writes the n bytes from off on to w; 0 ≤ off, 0 ≤ n, off+n ≤ Size. If w is an
	// io.ReaderFrom, a store of files gives it an io.SectionReader of an *os.File, for sendfile.
	// Other ranges may be read from the same file at the same time, so w must leave the offset of
	// the file alone.
	WriteRange(ctx context.Context, w io.Writer, off, n int64) error
}

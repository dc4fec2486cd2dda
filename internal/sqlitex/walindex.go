// Package sqlitex tells the states of a SQLite database in WAL mode apart, for the price of reading a few bytes of memory.
package sqlitex

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
)

// size is the length of the header of SQLite's WAL index, the file that ends in -shm, in bytes. It has
// a counter of commits, the number of frames in the WAL, a checksum of all of them, and a salt that is drawn anew
// whenever the WAL starts again from its beginning (WalIndexHdr in SQLite's walformat.html).
// So no two states of the database have the same header as long as somebody has it open.
const size = 48

// A Header is that of a WAL index, mapped into memory: reading it with a system call was an eighth of what a narinfo costs.
// SQLite maps the same file in this process, and reads it at every transaction: what would make the mapping fail,
// a file that somebody cuts off, ends the process either way.
// All methods are safe for concurrent use.
type Header struct {
	seed   maphash.Seed
	mapped atomic.Pointer[mapping] // nil when closed
}

// mapping is unmapped when nobody reads it any more.
type mapping struct{ data []byte }

// Map maps the header of a WAL index, for as long as whoever calls it has the database open.
// The file may be closed afterwards as far as the mapping is concerned, but that ends the locks of this process on it.
func Map(f *os.File) (*Header, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < size {
		return nil, fmt.Errorf("map %s: %w", f.Name(), errShort)
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	m := &mapping{data}
	runtime.AddCleanup(m, func(data []byte) { _ = syscall.Munmap(data) }, data)
	h := &Header{seed: maphash.MakeSeed()}
	h.mapped.Store(m)
	return h, nil
}

var errShort = errors.New("it is shorter than its header")

// Version returns a number that is another one after every commit, of whatever process. ok is false once the header is closed.
func (h *Header) Version() (version uint64, ok bool) {
	m := h.mapped.Load()
	if m == nil {
		return 0, false
	}
	// A header that is just being written gives a number of its own; that does no harm.
	var header [size]byte
	copy(header[:], m.data)
	runtime.KeepAlive(m)
	return maphash.Bytes(h.seed, header[:]), true
}

// Close lets go of the memory.
func (h *Header) Close() { h.mapped.Store(nil) }

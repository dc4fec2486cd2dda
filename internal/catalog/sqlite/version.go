package sqlite

import (
	"context"
	"os"
	"sync"

	"firn/internal/memo"
)

// walIndex is the file of the WAL index, for reading its header.
//
// SQLite has locks on that file, and any process that closes it loses all its locks on it.
// So all catalogs of a process that have the same file share one, which is closed after the last of them.
type walIndex struct {
	*os.File
	users int
}

var indices struct {
	mu   sync.Mutex
	open []*walIndex
}

// openWALIndex opens an index. The database is open.
func openWALIndex(path string) (*walIndex, error) {
	indices.mu.Lock()
	defer indices.mu.Unlock()
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	for _, i := range indices.open {
		if ours, err := i.Stat(); err == nil && os.SameFile(ours, info) {
			i.users++
			return i, nil
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	i := &walIndex{f, 1}
	indices.open = append(indices.open, i)
	return i, nil
}

// close is called after the database is closed.
func (i *walIndex) close() error {
	indices.mu.Lock()
	defer indices.mu.Unlock()
	if i.users--; i.users > 0 {
		return nil
	}
	for at, other := range indices.open {
		if other == i {
			indices.open = append(indices.open[:at], indices.open[at+1:]...)
			break
		}
	}
	return i.Close()
}

// Version changes with every commit, of whatever process.
func (c *Catalog) Version(context.Context) memo.Version { return memo.Exactly(c.header.Version()) }

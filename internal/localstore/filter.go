package localstore

import (
	"context"
	"database/sql"
	"encoding/binary"
	"math/bits"
	"sync"
	"time"

	"firn/nix"
)

const (
	// filterBatch is how many rows one statement reads into the filter: some milliseconds of work, so that
	// no snapshot is held for long, which would keep Nix from truncating the WAL.
	filterBatch = 4096

	// filterAge is how old a filter may become before it is made again from all rows, to forget what was deleted
	// and whatever a row under an old id may have brought.
	filterAge = time.Hour
)

// filter knows, for one version of the database, which path hashes are surely not in it.
//
// It is filled in the background from ValidPaths in the order of ids. Ids grow (the column is
// an autoincrement), and there is one writer at a time; so after a commit only the rows above the last id are new.
// Deleted rows stay in the filter: it then sends a look-up to the database in vain, which is all.
// Memory is 8 bytes a path, and up to half of that again as room to grow.
type filter struct {
	wake chan struct{} // holds a token when a look-up found the filter behind

	mu      sync.RWMutex
	version uint64 // of the database
	ready   bool
	known   hashSet
}

// excludes reports whether the database surely has no path of the given hash at the given version.
func (f *filter) excludes(version uint64, hash nix.PathHash) bool {
	f.mu.RLock()
	certain := f.ready && f.version == version
	excluded := certain && !f.known.has(filterKey(hash))
	f.mu.RUnlock()
	if !certain {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
	return excluded
}

// filterKey is what the filter keeps of a hash: 64 bits, of which a million paths leave
// no more than one false alarm in 10^13. It is never zero.
func filterKey(hash nix.PathHash) uint64 { return max(1, binary.BigEndian.Uint64(hash[:8])) }

// follow fills the filter, and extends it when it is asked to, until the context ends.
func (f *filter) follow(ctx context.Context, d *database) {
	var last int64       // id up to which rows are in the filter
	var filled time.Time // when it was begun with
	var base int         // how many rows it had then
	for {
		if f.known.len() > 2*base+filterBatch || time.Since(filled) > filterAge {
			f.reset()
			last, filled, base = 0, time.Now(), 0
		}
		if f.extend(ctx, d, &last) && base == 0 {
			base = f.known.len()
		}
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
	}
}

// reset empties the filter.
func (f *filter) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready, f.known = false, hashSet{}
}

// extend reads the rows above last into the filter, and reports whether it then had all of a version.
// After an error, or when the database was replaced, it is simply behind.
func (f *filter) extend(ctx context.Context, d *database, last *int64) bool {
	keys := make([]uint64, 0, filterBatch)
	for ctx.Err() == nil {
		// The version is read before the rows, which then are of that version or a later one.
		version, ok := d.version()
		if !ok {
			return false
		}
		var more bool
		var err error
		if keys, more, err = d.filterKeys(ctx, last, keys[:0]); err != nil {
			return false
		}
		known := f.known.withRoom(len(keys)) // only this goroutine writes it, so it is copied while others read it
		f.mu.Lock()
		f.known = known
		for _, key := range keys {
			f.known.add(key)
		}
		if !more {
			f.version, f.ready = version, true
		}
		f.mu.Unlock()
		if !more {
			return true
		}
	}
	return false
}

// filterKeys appends the keys of up to filterBatch rows above the id last, and moves that on.
// more is whether there may be more rows.
func (d *database) filterKeys(ctx context.Context, last *int64, keys []uint64) (_ []uint64, more bool, err error) {
	rows, err := d.sql.QueryContext(ctx, filterQuery, *last, filterBatch, len(d.storeDir)+2)
	if err != nil {
		return keys, false, d.fail("query", err)
	}
	defer rows.Close()
	var text sql.RawBytes
	n := 0
	for ; rows.Next(); n++ {
		if err := rows.Scan(last, &text); err != nil {
			return keys, false, d.fail("query", err)
		}
		// A path that is not one cannot be asked for.
		if hash, err := nix.ParsePathHash(string(text)); err == nil {
			keys = append(keys, filterKey(hash))
		}
	}
	if err := rows.Err(); err != nil {
		return keys, false, d.fail("query", err)
	}
	return keys, n == filterBatch, nil
}

const filterQuery = `select id, substr(path, ?3, 32) from ValidPaths where id > ?1 order by id limit ?2`

// hashSet is a set of numbers other than zero that are as good as random: each lies at the place that
// it has among all numbers, or in the next free place after it.
type hashSet struct {
	places []uint64
	n      int
}

func (s *hashSet) len() int { return s.n }

func (s *hashSet) place(key uint64) int {
	high, _ := bits.Mul64(key, uint64(len(s.places)))
	return int(high)
}

func (s *hashSet) has(key uint64) bool {
	if s.n == 0 {
		return false
	}
	for i := s.place(key); ; i++ {
		if i == len(s.places) {
			i = 0
		}
		switch s.places[i] {
		case key:
			return true
		case 0:
			return false
		}
	}
}

// add needs room.
func (s *hashSet) add(key uint64) {
	for i := s.place(key); ; i++ {
		if i == len(s.places) {
			i = 0
		}
		switch s.places[i] {
		case key:
			return
		case 0:
			s.places[i] = key
			s.n++
			return
		}
	}
}

// withRoom returns the set, or where it would be more than four fifths full with more keys, a copy with a quarter more places.
func (s *hashSet) withRoom(more int) hashSet {
	need := (s.n+more)*5/4 + 1
	if need <= len(s.places) {
		return *s
	}
	larger := hashSet{places: make([]uint64, max(need, len(s.places)*5/4))}
	for _, key := range s.places {
		if key != 0 {
			larger.add(key)
		}
	}
	return larger
}

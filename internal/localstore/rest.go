package localstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	"firn/internal/cache"
)

const (
	// restAge is how long ago a database must have changed last to count as at rest. Two changes
	// within one tick of a file system's clock leave the same time; the coarsest clocks tick every
	// two seconds.
	restAge = 2 * time.Second

	// restPause is the time between two looks at a database that is locked. Nix locks it for
	// microseconds.
	restPause = time.Millisecond
)

// errUnsaved says that the newest changes are not in the database yet, but beside it.
var errUnsaved = errors.New("has changes that are not in the database yet, and only a process that can write there can bring them in")

// A rest is the state of a database file that no process is changing.
//
// A process that cannot take part in SQLite's locking, for want of write permission or because Nix
// locks in another way, can still read such a file right: every writer leaves a trace before it
// writes, in a file beside the database, and afterwards in the times of the database. So all that
// was read while there was no such file, and the times stayed the same, is of one state. This holds
// for a store on read-only media, and for one that Nix may change at any moment.
type rest struct {
	dev, inode, size  int64
	modified, changed int64 // ns
}

// lookAtRest returns the state of the database at path. busy says that it may be at rest a moment
// later.
func lookAtRest(path string) (r rest, busy bool, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return r, false, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	r = rest{int64(stat.Dev), int64(stat.Ino), info.Size(), info.ModTime().UnixNano(), changeTime(stat)}
	// The WAL, or the rollback journal of a database without one: not empty, it belongs to the
	// database. The index of the WAL and Nix's own lock: while they are there a process may be
	// writing.
	for _, beside := range []string{"-wal", "-journal", "-shm", ".lock"} {
		info, err := os.Stat(path + beside)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return r, false, err
		case beside == "-shm", beside == ".lock":
			return r, true, fmt.Errorf("read %s: another process uses it", path)
		case info.Size() > 0:
			return r, true, fmt.Errorf("read %s: %s%s %w", path, path, beside, errUnsaved)
		}
	}
	return r, false, nil
}

// awaitRest waits until the database at path is at rest, which is not for long.
func awaitRest(ctx context.Context, path string) (rest, error) {
	begun := time.Now()
	for {
		r, busy, err := lookAtRest(path)
		if err != nil && (!busy || time.Since(begun) > busyTimeout) {
			return r, err
		}
		pause := restPause
		if err == nil {
			// A time in the future, of another clock, is not the time that a change gets now.
			age := time.Since(time.Unix(0, max(r.modified, r.changed)))
			if age >= restAge || age < 0 {
				return r, nil
			}
			pause = restAge - age
			begun = time.Now().Add(pause)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return r, context.Cause(ctx)
		}
	}
}

// openAtRest opens a database that this process cannot lock, as long as it is at rest.
func openAtRest(ctx context.Context, d *database) error {
	r, err := awaitRest(ctx, d.path)
	if err != nil {
		return err
	}
	d.rest, d.number = &r, rand.Uint64()
	// What SQLite is told holds until stands says otherwise; then the database is closed with all
	// that it remembers.
	if err := d.connect(ctx, "mode=ro&immutable=1"); err != nil {
		return err
	}
	if !d.stands() {
		return fmt.Errorf("open %s: %w: it is being changed", d.path, cache.ErrUnavailable)
	}
	return nil
}

// stands reports whether all that was read of the database since it was opened is right, which it
// is in every case but one: it is read without locks, and has changed.
func (d *database) stands() bool {
	if d.rest == nil {
		return true
	}
	if d.replaced.Load() {
		return false
	}
	if now, _, err := lookAtRest(d.path); err != nil || now != *d.rest {
		d.replaced.Store(true)
		return false
	}
	return true
}

// maxReads is how often a database that changes while it is read without locks is read.
const maxReads = 4

// read asks the database that is at its path now, and once more if that has changed before all was
// read. Errors are cache.ErrUnavailable, errAskDaemon, or of ask.
func read[T any](ctx context.Context, s *Store, ask func(d *database, version uint64) (T, error)) (answer T, err error) {
	for range maxReads {
		var answered error
		var stands bool
		err = s.withDatabase(ctx, func(d *database, version uint64) {
			answer, answered = ask(d, version)
			stands = d.stands()
		})
		if err == nil && stands {
			err = answered
		}
		if err != nil || stands {
			return answer, err
		}
	}
	return answer, fmt.Errorf("read %s: %w: it changes all the time", s.dbPath, cache.ErrUnavailable)
}

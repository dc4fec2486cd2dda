package localstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"firn/internal/sqlitex"
)

// identityInterval is how long it may go unnoticed that one of the files was replaced, which
// must not happen while Nix may run. Asking for it is a hundred times as expensive as reading the header.
const identityInterval = 100 * time.Millisecond

// openVersion opens the files that the version is read from. SQLite has made db.sqlite-shm by now.
func (d *database) openVersion() error {
	var err error
	if d.file, err = os.Open(d.path); err != nil {
		return err
	}
	d.shm, err = os.OpenFile(d.path+"-shm", os.O_RDWR, 0)
	d.writable = err == nil
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		d.shm, err = os.Open(d.path + "-shm")
	}
	if err != nil {
		return err
	}
	if d.header, err = sqlitex.Map(d.shm); err != nil {
		return err
	}
	if !d.identify() {
		return fmt.Errorf("open %s: it was replaced just now", d.path)
	}
	return nil
}

// version returns a number that changes with every commit.
// ok is false when the database was replaced, and has to be opened again.
func (d *database) version() (version uint64, ok bool) {
	if d.rest != nil { // nothing can change but all of it
		return d.number, d.stands()
	}
	if now := int64(time.Since(d.opened)); now-d.identified.Load() > int64(identityInterval) {
		if !d.identify() {
			return 0, false
		}
		d.identified.Store(now)
	}
	if d.replaced.Load() {
		return 0, false
	}
	return d.header.Version()
}

// identify reports whether the files are still the ones at their paths.
func (d *database) identify() bool {
	for _, f := range []*os.File{d.file, d.shm} {
		ours, err := f.Stat()
		if err != nil {
			d.replaced.Store(true)
			return false
		}
		theirs, err := os.Stat(f.Name())
		if err != nil || !os.SameFile(ours, theirs) {
			d.replaced.Store(true)
			return false
		}
	}
	return true
}

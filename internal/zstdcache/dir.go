package zstdcache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"firn/internal/cache"
	"firn/internal/fairlimit"
	"firn/nix"
)

const (
	// blockSize is what the size of a file is rounded up to, in bytes, for the bound of the directory:
	// the block of most file systems.
	blockSize = 4 << 10

	// tinySize and tinyMemory bound the files that are kept in memory too, in bytes: each, and all together.
	// A third of all NARs have less than 4 KB, and opening a file costs more than sending so little.
	tinySize   = 16 << 10
	tinyMemory = 16 << 20

	// touchEvery is how much older than the last use the time of a file may be.
	// A restart after a crash orders what was used since then by chance.
	touchEvery = 10 * time.Minute

	// fullFor is how long a file system that has no room is not tried again.
	fullFor = 10 * time.Second

	lockName   = "lock"
	makingName = "making-" // with a number behind it: a file that is not whole yet
	suffix     = ".zst"
)

// errNotKept says that a file cannot be kept: there is no room for it, or the directory fails.
// A request that wanted to send it has to do without.
var errNotKept = errors.New("cannot be kept")

// dir is the directory of the kept files, and what is known of it.
//
//	lock                                   held by the process that uses the directory
//	making-<number>                        being made; of no use once its process has ended
//	<NAR hash>-<size>.<version>.zst        whole: it is renamed to this name after its last byte was written
//
// Nothing is synced: after a loss of power the newest files may be lost.
// A file that is not as long as its name says is removed, when the directory is opened or the file is.
// The time of a file is that of its last use, more or less (touchEvery).
type dir struct {
	root    *os.Root
	lock    *os.File
	version string
	limit   int64
	now     func() time.Time
	log     *slog.Logger

	scanned chan struct{} // closed when what is kept is known

	// moving is held while files are given their final name or removed,
	// so that a file is not removed by who has just made its name free. It is taken before mu.
	moving sync.Mutex

	mu        sync.Mutex
	files     *lru[nix.Hash, *file] // costs are bytes on disk
	tiny      *lru[nix.Hash, []byte]
	idle      *lru[*os.File, *file] // open and not in use, which saves the next who asks a fifth of the time of a request for a file of some 10 KB
	maxIdle   int64
	making    int64 // bytes on disk of files that are not whole yet
	made      int   // how many were ever begun, for their names
	full      time.Time
	evictions int64
}

// file is a kept file.
type file struct {
	hash    nix.Hash // of the NAR
	size    int64
	used    time.Time
	touched time.Time // the time it has on disk
	idle    []*os.File
}

// openDir makes the directory if it is not there, and locks it. What it holds is not known before scan has returned.
func openDir(path, version string, limit int64, now func() time.Time, log *slog.Logger) (_ *dir, err error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	d := &dir{
		root: root, version: version, limit: limit, now: now, log: log,
		files: newLRU[nix.Hash, *file](), tiny: newLRU[nix.Hash, []byte](), idle: newLRU[*os.File, *file](),
		maxIdle: int64(fairlimit.OfProcess().IdleNARs), scanned: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.lock, err = root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: it is in use by another process: %w", path, err)
	}
	return d, nil
}

// scan finds the files that are whole, and removes what was left by a crash or made otherwise.
// It is called once, and takes some seconds for a million files.
func (d *dir) scan(ctx context.Context) error {
	defer close(d.scanned)
	all, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer all.Close()
	var found []*file
	for {
		entries, err := all.ReadDir(1 << 10)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			f, err := d.examine(e)
			if err != nil {
				return err
			}
			if f != nil {
				found = append(found, f)
			}
		}
	}
	slices.SortFunc(found, func(a, b *file) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.size, b.size))
	})
	d.mu.Lock()
	for _, f := range found {
		d.files.Put(f.hash, f, f.cost())
	}
	d.mu.Unlock()
	return d.evict(func() bool { return d.files.Cost() > d.limit })
}

// examine returns the kept file that is in an entry of the directory; nil if it is something else, which it removes if it was ours.
func (d *dir) examine(e fs.DirEntry) (*file, error) {
	hash, size, version, ok := parseName(e.Name())
	if !ok && !strings.HasPrefix(e.Name(), makingName) {
		return nil, nil
	}
	if ok && version == d.version {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Size() == size {
			return &file{hash: hash, size: size, used: info.ModTime(), touched: info.ModTime()}, nil
		}
	}
	if err := d.root.Remove(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, nil
}

// close gives the files their times, so that a restart finds the order in which they were used.
func (d *dir) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files.All() {
		if !f.used.Equal(f.touched) {
			d.touch(f, f.used)
		}
		d.closeIdle(f)
	}
	d.maxIdle = 0
	var err error
	if d.lock != nil {
		err = d.lock.Close()
	}
	return errors.Join(err, d.root.Close())
}

func (d *dir) name(f *file) string {
	b := make([]byte, 0, 96)
	b = append(f.hash.AppendNix32(b), '-')
	b = append(strconv.AppendInt(b, f.size, 10), '.')
	return string(append(append(b, d.version...), suffix...))
}

func parseName(name string) (hash nix.Hash, size int64, version string, ok bool) {
	name, ok = strings.CutSuffix(name, suffix)
	name, version, dot := strings.Cut(name, ".")
	sum, digits, dash := strings.Cut(name, "-")
	if !ok || !dot || !dash {
		return hash, 0, "", false
	}
	hash, err := nix.ParseHashOf(nix.SHA256, sum)
	if err != nil || hash.Nix32() != sum {
		return hash, 0, "", false
	}
	size, err = strconv.ParseInt(digits, 10, 64)
	return hash, size, version, err == nil && size > 0 && strconv.FormatInt(size, 10) == digits
}

// cost is how many bytes the file takes on disk.
func (f *file) cost() int64 { return onDisk(f.size) }

func onDisk(size int64) int64 { return (size + blockSize - 1) &^ (blockSize - 1) }

// size returns the size of a kept file.
func (d *dir) size(hash nix.Hash) (int64, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, ok := d.files.Peek(hash)
	if !ok {
		return 0, false
	}
	return f.size, true
}

// open opens a kept file; nil if there is none.
func (d *dir) open(hash nix.Hash) (*kept, error) {
	now := d.now()
	d.mu.Lock()
	f, ok := d.files.Get(hash)
	if !ok {
		d.mu.Unlock()
		return nil, nil
	}
	f.used = now
	touch := now.Sub(f.touched) >= touchEvery
	if touch {
		f.touched = now
	}
	k := &kept{dir: d, file: f}
	k.data, _ = d.tiny.Get(hash)
	if last := len(f.idle) - 1; last >= 0 {
		k.handle, f.idle = f.idle[last], f.idle[:last]
		d.idle.Remove(k.handle)
	}
	d.mu.Unlock()

	if touch {
		d.touch(f, now)
	}
	if k.data != nil || k.handle != nil {
		return k, nil
	}
	switch err := k.open(); {
	case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE):
		return nil, fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
	case err != nil:
		d.drop(f, err)
		return nil, nil
	}
	return k, nil
}

// has reports whether f is still kept. It is called with mu held.
func (d *dir) has(f *file) bool {
	now, ok := d.files.Peek(f.hash)
	return ok && now == f
}

// touch gives the file the time of its last use. If that fails, it goes earlier than it should.
func (d *dir) touch(f *file, used time.Time) {
	_ = d.root.Chtimes(d.name(f), time.Time{}, used)
}

// drop removes a file that cannot be read.
func (d *dir) drop(f *file, why error) {
	d.moving.Lock()
	defer d.moving.Unlock()
	d.mu.Lock()
	kept := d.has(f)
	if kept {
		d.forget(f)
	}
	d.mu.Unlock()
	if kept {
		d.log.Warn("dropped a compressed NAR", "file", d.name(f), "error", why, "remove", d.remove(f))
	}
}

// forget is called with mu held.
func (d *dir) forget(f *file) {
	d.files.Remove(f.hash)
	d.tiny.Remove(f.hash)
	d.closeIdle(f)
}

func (d *dir) remove(f *file) error {
	if err := d.root.Remove(d.name(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// evict removes the file that was used longest ago, again and again while it is asked to; while is called with mu held.
func (d *dir) evict(while func() bool) error {
	d.moving.Lock()
	defer d.moving.Unlock()
	for {
		d.mu.Lock()
		hash, ok := d.files.Oldest()
		if !ok || !while() {
			d.mu.Unlock()
			return nil
		}
		f, _ := d.files.Peek(hash)
		d.forget(f)
		d.evictions++
		d.mu.Unlock()
		if err := d.remove(f); err != nil {
			return err
		}
	}
}

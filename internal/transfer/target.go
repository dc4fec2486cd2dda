package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
)

// workName is the directory in a target where files are written before they are moved to their names.
// What it holds when an export begins is of one that was killed.
const workName = ".firn-export"

// A target is the directory that a cache is written to. Nothing in it is ever half there.
// It is safe for concurrent use, by one process at a time.
type target struct {
	root *os.Root
	lock *os.File // of workName
	next atomic.Uint64

	mu   sync.Mutex
	made map[string]bool // directories that are surely there
}

// openTarget makes the directory where there is none, and fails at once if another export writes to it.
func openTarget(dir string) (_ *target, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	t := &target{root: root, made: map[string]bool{".": true}}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if err := root.MkdirAll(workName, 0o700); err != nil {
		return nil, err
	}
	if t.lock, err = root.Open(workName); err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(t.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: %w; another export writes there", dir, err)
	}
	left, err := t.lock.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range left {
		if err := root.RemoveAll(path.Join(workName, name)); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// finish makes all names durable and removes what was only needed for writing.
func (t *target) finish() error {
	for dir := range t.made {
		if err := t.syncDir(dir); err != nil {
			return err
		}
	}
	return t.root.Remove(workName)
}

func (t *target) close() {
	if t.lock != nil {
		t.lock.Close() // and with it the lock
	}
	t.root.Close()
}

// size returns the size in bytes of a file, -1 of one that is not there.
func (t *target) size(name string) (int64, error) {
	info, err := t.root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return -1, nil
	case err != nil:
		return 0, err
	case !info.Mode().IsRegular():
		return 0, fmt.Errorf("%s: %w, and no file", name, fs.ErrExist)
	}
	return info.Size(), nil
}

// put writes a small file, unless it is there with this content.
func (t *target) put(name string, content []byte) (written bool, err error) {
	size, err := t.size(name)
	if err != nil {
		return false, err
	}
	if size == int64(len(content)) {
		there, err := t.root.ReadFile(name)
		if err != nil {
			return false, err
		}
		if bytes.Equal(there, content) {
			return false, nil
		}
	}
	return true, t.write(name, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// write makes a file of what fill writes, in the place of one that is there. Its bytes are durable before it has its name,
// and its name is before write returns.
func (t *target) write(name string, fill func(io.Writer) error) (err error) {
	dir := path.Dir(name)
	if err := t.makeDir(dir); err != nil {
		return err
	}
	work := path.Join(workName, strconv.FormatUint(t.next.Add(1), 10))
	f, err := t.root.OpenFile(work, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close() // again, maybe
			err = errors.Join(err, t.root.RemoveAll(work))
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := t.root.Rename(work, name); err != nil {
		return err
	}
	return t.syncDir(dir)
}

// makeDir makes a directory below the root, and what it lies in.
func (t *target) makeDir(dir string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.made[dir] {
		return nil
	}
	if err := t.root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	t.made[dir] = true
	return nil
}

func (t *target) syncDir(dir string) error {
	f, err := t.root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

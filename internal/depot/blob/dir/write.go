package dir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"firn/internal/depot/blob"
)

// isTemporary reports whether a file of this name is being written. No name of a blob begins with a
// dot.
func isTemporary(name string) bool { return name[0] == '.' }

// early is how many bytes gather in the page cache before the disk is told to write them.
const early = 2 << 20

// writer is a blob that is being written.
type writer struct {
	store *Store
	file  *os.File // nil once it is closed
	path  string   // where the bytes are; "" once they are not to be removed
	name  string
	err   error // the first that a write had

	size, begun int64 // bytes that were written, and how many of them the disk was told to write
}

// Create begins a blob.
func (s *Store) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := s.create(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	return w, nil
}

func (s *Store) create(ctx context.Context, name string) (*writer, error) {
	if err := blob.CheckName(name); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// Files that are written below a mount point are hidden once the disk is mounted there.
	if err := s.Check(ctx); err != nil {
		return nil, err
	}
	path, f, err := s.temporary(name)
	if errors.Is(err, fs.ErrNotExist) { // the folder is gone, such as with another disk
		s.made.Delete(folder(name))
		path, f, err = s.temporary(name)
	}
	if err != nil {
		return nil, err
	}
	w := &writer{store: s, file: f, path: path, name: name}
	// The lock ends with the file, also when the process is killed. It tells Sweep that the file
	// has a writer, however slow it is.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

// temporary makes the file that a blob is written to.
func (s *Store) temporary(name string) (path string, _ *os.File, err error) {
	folder, err := s.folder(name)
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(folder, "."+name+"."+rand.Text()[:8])
	if err := s.fault("create", path); err != nil {
		return "", nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	return path, f, err
}

// Write writes to the file at once. It buffers nothing.
func (w *writer) Write(p []byte) (n int, err error) {
	if w.file == nil {
		return 0, os.ErrClosed
	}
	if err = w.store.fault("write", w.path); err != nil {
		n, _ = w.file.Write(p[:len(p)/2])
	} else {
		n, err = w.file.Write(p)
	}
	w.size += int64(n)
	if err != nil {
		w.err = errors.Join(w.err, err)
		return n, fmt.Errorf("write blob: %w", err)
	}
	if w.size-w.begun >= early {
		writeBack(w.file, w.begun, w.size-w.begun)
		w.begun = w.size
	}
	return n, nil
}

// Commit makes the blob durable and visible.
func (w *writer) Commit(ctx context.Context) error {
	if err := w.commit(ctx); err != nil {
		return fmt.Errorf("commit blob: %w", err)
	}
	return nil
}

func (w *writer) commit(ctx context.Context) error {
	switch {
	case w.file == nil:
		return os.ErrClosed
	case w.err != nil:
		return w.err // there is a hole in it
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if err := w.store.fault("sync", w.path); err != nil {
		return err
	}
	// The last byte may have been written long ago, and a sweep takes an old blob without a record
	// for one that will never be needed.
	now := time.Now()
	if err := os.Chtimes(w.path, now, now); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		// A second sync would succeed, and have lost the same bytes.
		w.err = err
		return err
	}
	final := w.store.file(w.name)
	if err := w.store.fault("rename", final); err != nil {
		return err
	}
	if err := os.Rename(w.path, final); err != nil {
		return err
	}
	w.path = final // to be removed if it may not survive a crash
	if err := w.store.syncDir(filepath.Dir(final)); err != nil {
		return err
	}
	w.path = ""
	// All bytes are synced, so closing cannot fail to write any.
	w.close()
	return nil
}

// Abort removes the file unless it is committed. If that fails, the rest is for Sweep, or is a
// complete blob.
func (w *writer) Abort() {
	if w.path != "" {
		_ = w.store.remove(w.path)
		w.path = ""
	}
	w.close()
}

func (w *writer) close() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
}

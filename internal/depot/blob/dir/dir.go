// Package dir has blobs as files of a directory of one machine. Several processes may use it at
// once.
//
//	firn-depot                  marks the directory: without it, the disk with the blobs is not mounted here
//	ab/abcdef…                  a blob, in the directory of the first two characters of its name
//	ab/.abcdef….<random>        being written; its writer holds a lock on it
//
// A blob is written beside its final name, synced, renamed, and then its directory is synced.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"firn/internal/depot/blob"
)

// Only the owner may read the blobs: some caches are private.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// listed is how many entries of a directory are read at once.
const listed = 1 << 10

// Marker is the file that marks a directory of blobs. It tells an empty depot from a disk that is
// not mounted.
const Marker = "firn-depot"

const markerText = "The packs of a depot of firn are in this directory. Without this file, firn takes them to be on a disk that is not mounted.\n"

// Options of a Store.
type Options struct {
	// Make makes the directory and marks it, if it is not there: it is a new depot.
	Make bool
	// Fault, unless it is nil, is called before every system call that changes a file or a
	// directory, and its error is the result of the call: "mkdir", "create", "write", "sync",
	// "rename", "syncdir", "remove". A write that fails so has written half. For tests.
	Fault func(call, path string) error
}

// A Store keeps blobs in a directory.
type Store struct {
	path  string // absolute
	fault func(call, path string) error

	made sync.Map // the names of directories that this process knows to be durable
}

// Open opens the store in a directory. The directory may be there and marked only later; Check
// returns an error until then.
func Open(path string, opts Options) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open directory of blobs: %w", err)
	}
	s := &Store{path: path, fault: opts.Fault}
	if s.fault == nil {
		s.fault = func(string, string) error { return nil }
	}
	if opts.Make {
		err = errors.Join(s.makeAll(path), s.mark())
	} else if err = s.Check(context.Background()); errors.Is(err, blob.ErrAbsent) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("open directory of blobs: %w", err)
	}
	return s, nil
}

// mark makes the marker durable.
func (s *Store) mark() error {
	path := filepath.Join(s.path, Marker)
	if err := s.fault("create", path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(markerText)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return s.syncDir(s.path)
}

// root opens the directory, if it is marked.
func (s *Store) root() (*os.Root, error) {
	root, err := os.OpenRoot(s.path)
	if err == nil {
		if _, err = root.Stat(Marker); err != nil {
			root.Close()
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no file %s: mount the disk that has it; if all packs are there, make it: touch %[2]s",
			blob.ErrAbsent, filepath.Join(s.path, Marker))
	}
	if err != nil {
		return nil, err
	}
	return root, nil
}

// Check looks for the marker.
func (s *Store) Check(context.Context) error {
	root, err := s.root()
	if err != nil {
		return fmt.Errorf("check directory of blobs: %w", err)
	}
	return root.Close()
}

// missing returns ErrNotFound for a blob that could not be found, if it is certain that there is
// none: the marker and the blob are looked for in one directory, even if a disk is mounted or
// unmounted in between.
func (s *Store) missing(name string) error {
	root, err := s.root()
	if err != nil {
		return err
	}
	defer root.Close()
	switch _, err := root.Stat(filepath.Join(folder(name), name)); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s", blob.ErrNotFound, name)
	case err != nil:
		return err
	}
	return fmt.Errorf("%s was not there a moment ago", name)
}

// makeAll makes a directory and its parents, and syncs every directory that it changes.
func (s *Store) makeAll(path string) error {
	var missing []string
	for at := path; ; at = filepath.Dir(at) {
		_, err := os.Stat(at)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, at)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := s.mkdir(missing[i]); err != nil {
			return err
		}
	}
	return nil
}

// mkdir makes a directory durable, and makes it if it is not there.
func (s *Store) mkdir(path string) error {
	if err := s.fault("mkdir", path); err != nil {
		return err
	}
	if err := os.Mkdir(path, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.syncDir(filepath.Dir(path))
}

func (s *Store) syncDir(path string) error {
	if err := s.fault("syncdir", path); err != nil {
		return err
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *Store) remove(path string) error {
	if err := s.fault("remove", path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// folder returns the name of the directory of a blob.
func folder(name string) string { return name[:min(2, len(name))] }

func (s *Store) file(name string) string { return filepath.Join(s.path, folder(name), name) }

// folder returns the path of the directory of a blob, and makes the directory if it is not there.
func (s *Store) folder(name string) (string, error) {
	name = folder(name)
	path := filepath.Join(s.path, name)
	// A directory that another process has made may not be durable yet, so the first blob of this
	// process in it makes sure.
	if _, ok := s.made.Load(name); ok {
		return path, nil
	}
	if err := s.mkdir(path); err != nil {
		return "", err
	}
	s.made.Store(name, true)
	return path, nil
}

// Open opens a blob.
func (s *Store) Open(ctx context.Context, name string) (blob.Blob, error) {
	b, err := s.open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return b, nil
}

func (s *Store) open(ctx context.Context, name string) (_ *file, err error) {
	if err := blob.CheckName(name); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	f, err := os.Open(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.missing(name)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{File: f, size: info.Size()}, nil
}

// Delete removes a blob. After a crash it may be there again.
func (s *Store) Delete(ctx context.Context, name string) error {
	err := blob.CheckName(name)
	if err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = s.remove(s.file(name))
	}
	if err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	return nil
}

// List lists the blobs.
func (s *Store) List(ctx context.Context, each func(blob.Info) error) error {
	return s.walk(ctx, func(folderName string, e fs.DirEntry) error {
		name := e.Name()
		if blob.CheckName(name) != nil || folder(name) != folderName {
			return nil
		}
		info, err := e.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it was just deleted
		case err != nil:
			return fmt.Errorf("list blobs: %w", err)
		case !info.Mode().IsRegular():
			return nil
		}
		return each(blob.Info{Name: name, Size: info.Size(), Modified: info.ModTime()})
	})
}

// Sweep removes files that were begun and whose writers have ended.
func (s *Store) Sweep(ctx context.Context, before time.Time) error {
	return s.walk(ctx, func(folder string, e fs.DirEntry) error {
		if !isTemporary(e.Name()) {
			return nil
		}
		if err := s.sweep(filepath.Join(s.path, folder, e.Name()), before); err != nil {
			return fmt.Errorf("sweep blobs: %w", err)
		}
		return nil
	})
}

// sweep removes a file if it is older than before and has no writer.
func (s *Store) sweep(path string, before time.Time) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || !info.ModTime().Before(before) {
		return nil
	}
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil
	case err != nil:
		return err
	}
	return s.remove(path)
}

// walk calls each with every entry of every directory of blobs.
func (s *Store) walk(ctx context.Context, each func(folder string, e fs.DirEntry) error) error {
	return readDir(ctx, s.path, func(d fs.DirEntry) error {
		name := d.Name()
		if !d.IsDir() || len(name) > 2 || blob.CheckName(name) != nil {
			return nil
		}
		return readDir(ctx, filepath.Join(s.path, name), func(e fs.DirEntry) error { return each(name, e) })
	})
}

// readDir calls each with every entry of a directory. Only a bounded part of them is in memory.
func readDir(ctx context.Context, path string, each func(fs.DirEntry) error) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	defer d.Close()
	for {
		entries, err := d.ReadDir(listed)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("list blobs: %w", err)
		}
		for _, e := range entries {
			if err := each(e); err != nil {
				return err
			}
		}
	}
}

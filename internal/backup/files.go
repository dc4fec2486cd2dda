package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// copyFiles copies all that is in the state directory beside the depot and what the server makes
// again: keys above all. What has gone from there stays in the backup: it may have been lost.
func (r *run) copyFiles(ctx context.Context) error {
	// Links that lead out of it are not followed, as other users may write there.
	state, err := os.OpenRoot(r.State)
	if err != nil {
		return err
	}
	defer state.Close()
	return fs.WalkDir(state.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil {
			err = context.Cause(ctx)
		}
		if errors.Is(err, fs.ErrNotExist) || name == Marker || name == "." {
			return nil // gone since it was listed
		}
		if err != nil {
			return err
		}
		if name == r.Depot || slices.Contains(r.Remade, name) {
			if !e.IsDir() { // a link to another disk: fs.SkipDir would skip all that comes after it
				return nil
			}
			return fs.SkipDir
		}
		if err := r.copyFile(state, name, e); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copy %s: %w", name, err)
		}
		return nil
	})
}

// copyFile copies one entry. Sockets and the like are nothing to copy.
func (r *run) copyFile(state *os.Root, name string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	to := r.in(name)
	there, err := os.Lstat(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case e.IsDir():
		if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return errors.Join(os.Chmod(to, info.Mode().Perm()), syncDir(filepath.Dir(to)))
	case e.Type() == fs.ModeSymlink:
		target, err := state.Readlink(name)
		if err != nil {
			return err
		}
		if old, err := os.Readlink(to); err == nil && old == target {
			return nil
		}
		r.report.Files++
		return replace(to, func(temp string) error { return os.Symlink(target, temp) })
	case !info.Mode().IsRegular(), there != nil && there.Mode() == info.Mode() && there.Size() == info.Size() && there.ModTime().Equal(info.ModTime()):
		return nil
	}
	// Whatever is in its place by now: not followed, and not waited for.
	from, err := state.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	if info, err = from.Stat(); err != nil || !info.Mode().IsRegular() {
		return err
	}
	r.report.Files++
	return replace(to, func(temp string) error {
		f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, from)
		return errors.Join(err, f.Chmod(info.Mode().Perm()), os.Chtimes(temp, info.ModTime(), info.ModTime()), f.Sync(), f.Close())
	})
}

// write makes a file durably.
func write(path, text string, mode fs.FileMode) error {
	return replace(path, func(temp string) error {
		f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		return errors.Join(err, f.Sync(), f.Close())
	})
}

// replace puts what is made under another name in the place of path.
func replace(path string, make func(temp string) error) error {
	temp := tempName(path)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a run that was cut off
		return err
	}
	if err := make(temp); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// tempName is the name of a file that is to take the place of path.
func tempName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// resolved returns a path without symbolic links, as far as it is there.
func resolved(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
		return real, err
	}
	parent, err := resolved(filepath.Dir(path))
	return filepath.Join(parent, filepath.Base(path)), err
}

// within reports whether a path is a directory, or in it, under any name.
func within(path, dir string) bool {
	for ; ; path = filepath.Dir(path) {
		if same(path, dir) {
			return true
		}
		if path == filepath.Dir(path) {
			return false
		}
	}
}

func same(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

//go:build !linux || mips || mipsle || mips64 || mips64le || portable

package nar

import (
	"fmt"
	"io"
	"os"
)

// tree is the tree of a layout while its files are being read. It is safe for concurrent use.
type tree struct {
	path string
	dir  *os.Root // nil where the root is no directory
}

// openTree opens the tree at path, whose root is of the given type.
func openTree(path string, root Type) (*tree, error) {
	t := &tree{path: path}
	if root == TypeDirectory {
		info, err := os.Lstat(path)
		if err == nil && !info.IsDir() {
			err = ErrChanged
		}
		if err == nil {
			t.dir, err = os.OpenRoot(path)
		}
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, changed(cause(err)))
		}
	}
	return t, nil
}

func (t *tree) close() {
	if t.dir != nil {
		t.dir.Close()
	}
}

// open opens the regular file that rel names, a path below the root, ended by a zero byte. No symlink is followed on the way,
// except one that takes the place of a directory at this very moment, and that leads out of the tree in no case.
func (t *tree) open(rel []byte) (file, error) {
	lstat, open, name := os.Lstat, os.Open, t.path
	if t.dir != nil {
		lstat, open, name = t.dir.Lstat, t.dir.Open, string(rel[:len(rel)-1])
		for i := range name {
			if name[i] != '/' {
				continue
			}
			if info, err := lstat(name[:i]); err != nil {
				return file{}, cause(err)
			} else if !info.IsDir() {
				return file{}, ErrChanged
			}
		}
	}
	info, err := lstat(name)
	if err != nil {
		return file{}, cause(err)
	}
	if !info.Mode().IsRegular() {
		return file{}, ErrChanged
	}
	f, err := open(name)
	if err != nil {
		return file{}, cause(err)
	}
	opened, err := f.Stat()
	if err == nil && !os.SameFile(info, opened) {
		err = ErrChanged
	}
	if err != nil {
		f.Close()
		return file{}, err
	}
	return file{f}, nil
}

// file is an open regular file.
type file struct{ *os.File }

// ReadAt is less than an [io.ReaderAt]: it returns few bytes, or none and no error, where the file ends.
func (f file) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// size returns how many bytes the file has.
func (f file) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// seek sets where Read and sendfile begin in a file just opened.
func (f file) seek(off int64) error {
	_, err := f.Seek(off, io.SeekStart)
	return err
}

//go:build linux && !mips && !mipsle && !mips64 && !mips64le && !portable

package nar

import (
	"bytes"
	"fmt"
	"io"
	"syscall"
	"unsafe"
)

// tree is the tree of a layout while its files are being read. It is safe for concurrent use.
type tree struct {
	path string
	dir  int // descriptor of the root where that is a directory, else -1
}

const (
	atCWD     = -0x64    // AT_FDCWD
	oPath     = 0x200000 // O_PATH
	dirFlags  = oPath | syscall.O_DIRECTORY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	fileFlags = syscall.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC |
		syscall.O_NONBLOCK // a pipe that has taken the place of a file does not block
)

// openTree opens the tree at path, whose root is of the given type.
func openTree(path string, root Type) (*tree, error) {
	t := &tree{path: path, dir: -1}
	if root == TypeDirectory {
		var err error
		if t.dir, err = openat(atCWD, path, dirFlags); err != nil {
			return nil, fmt.Errorf("open %s: %w", path, changed(err))
		}
	}
	return t, nil
}

func (t *tree) close() {
	if t.dir >= 0 {
		syscall.Close(t.dir)
	}
}

// open opens the regular file that rel names, a path below the root, ended by a zero byte. No symlink is followed on the way.
func (t *tree) open(rel []byte) (file, error) {
	if t.dir < 0 {
		fd, err := openat(atCWD, t.path, fileFlags)
		return file(fd), err
	}
	fd, err := openat2(t.dir, rel)
	if err == syscall.ENOSYS || err == syscall.EPERM || err == syscall.ENAMETOOLONG {
		fd, err = openStepwise(t.dir, rel)
	}
	return file(fd), err
}

// openat2 opens a file below dir in one system call, however many directories are in between.
// It is there since Linux 5.6, but some containers forbid it.
func openat2(dir int, rel []byte) (int, error) {
	const (
		sysOpenat2        = 437
		resolveNoSymlinks = 0x04
	)
	how := struct{ flags, mode, resolve uint64 }{flags: fileFlags, resolve: resolveNoSymlinks}
	for {
		fd, _, errno := syscall.Syscall6(sysOpenat2, uintptr(dir), uintptr(unsafe.Pointer(&rel[0])),
			uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
		switch errno {
		case 0:
			return int(fd), nil
		case syscall.EINTR, syscall.EAGAIN:
		default:
			return -1, errno
		}
	}
}

// openStepwise opens a file below dir, and the directories on the way one after the other.
func openStepwise(dir int, rel []byte) (int, error) {
	at := dir
	for {
		name, rest, more := bytes.Cut(rel, []byte{'/'})
		if !more {
			fd, err := openat(at, string(name[:len(name)-1]), fileFlags)
			if at != dir {
				syscall.Close(at)
			}
			return fd, err
		}
		next, err := openat(at, string(name), dirFlags)
		if at != dir {
			syscall.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at, rel = next, rest
	}
}

func openat(dir int, path string, flags int) (int, error) {
	for {
		fd, err := syscall.Openat(dir, path, flags, 0)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

// file is the descriptor of a file. An os.File would double the price of reading a small one.
type file int

// ReadAt is less than an [io.ReaderAt]: it returns few bytes, or none and no error, where the file ends.
func (f file) ReadAt(p []byte, off int64) (int, error) {
	for {
		n, err := syscall.Pread(int(f), p, off)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

func (f file) Read(p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(f), p)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// size returns how many bytes the file has; it is ErrChanged where it is no regular file.
func (f file) size() (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f), &st); err != nil {
		return 0, err
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return 0, ErrChanged
	}
	return st.Size, nil
}

// seek sets where Read and sendfile begin in a file just opened.
func (f file) seek(off int64) error {
	if off == 0 {
		return nil
	}
	_, err := syscall.Seek(int(f), off, io.SeekStart)
	return err
}

func (f file) Close() error { return syscall.Close(int(f)) }

// SyscallConn is what package net looks for in a reader to use sendfile.
func (f file) SyscallConn() (syscall.RawConn, error) { return rawFile(f), nil }

// rawFile lends a file's descriptor.
type rawFile file

func (f rawFile) Control(do func(fd uintptr)) error {
	do(uintptr(f))
	return nil
}

func (f rawFile) Read(do func(fd uintptr) bool) error {
	do(uintptr(f))
	return nil
}

func (f rawFile) Write(func(fd uintptr) bool) error { return syscall.EBADF }

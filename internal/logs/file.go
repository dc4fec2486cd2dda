// Package logs writes the logs of a server: records of failures, and a line for every request.
//
//	file, err := logs.Open("/var/log/firn/access.log")
//	…
//	requests := logs.NewRequests(file, logs.RequestOptions{Logger: log})
//	requests.Add(&logs.Request{…}) // waits for no disk
//	…
//	err = file.Reopen() // after it was renamed, as log rotation does it
package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Stderr is the path that stands for standard error.
const Stderr = "stderr"

// fileMode is the mode of a new log. Not every user may know who asked for what.
const fileMode fs.FileMode = 0o640

// A File is a log file. It is safe for concurrent use.
type File struct {
	path  string // absolute; "" for standard error
	owner *owner // nil: the user of this process

	mu   sync.Mutex
	file *os.File
	torn bool // its last line has no end: the disk was full
}

// An owner is the user that the process is about to become.
type owner struct{ uid, gid int }

// Open opens a log for appending, and creates it if it is not there. The path may be [Stderr].
func Open(path string) (*File, error) { return openFile(path, nil) }

// OpenFor is Open for a process that is root and is about to become another user, which may be able to write
// to the directory of the log. A new log belongs to that user, so that a rotation of logs lets the user write
// the next one. A log that is there keeps owner and group. A link is an error: the user could lead it to a
// file of root's.
func OpenFor(path string, uid, gid int) (*File, error) { return openFile(path, &owner{uid, gid}) }

func openFile(path string, o *owner) (*File, error) {
	// A socket, which standard error is under systemd, cannot be opened by its name.
	if path == Stderr || path == "/dev/stderr" {
		return &File{file: os.Stderr}, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	f := &File{path: path, owner: o}
	if f.file, err = f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) open() (*os.File, error) {
	var file *os.File
	var err error
	if f.owner != nil {
		file, err = f.owner.open(f.path)
	} else {
		file, err = os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, fileMode)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open log: %w; make its directory first", err)
	case errors.Is(err, syscall.ELOOP) && f.owner != nil:
		return nil, fmt.Errorf("open log: %w; no link is followed where root's rights are given up: name the file itself, without symbolic links in its path", err)
	case errors.Is(err, errLinked):
		return nil, fmt.Errorf("open log: %w; where root's rights are given up this is not written to: choose another file", err)
	case errors.Is(err, fs.ErrPermission) && f.owner != nil:
		return nil, fmt.Errorf("open log: %w; make the file that of user %d, as whom this runs, or choose another file", err, f.owner.uid)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open log: %w; let the user that this runs as write there, or choose another file", err)
	case err != nil:
		return nil, fmt.Errorf("open log: %w", err)
	}
	return file, nil
}

// Path returns the absolute path of the file, empty for standard error.
func (f *File) Path() string { return f.path }

// Write writes whole lines.
func (f *File) Write(lines []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.torn {
		if _, err := f.file.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
		f.torn = false
	}
	n, err := f.file.Write(lines)
	f.torn = n > 0 && lines[n-1] != '\n'
	return n, err
}

// Reopen opens the file at the path again, which is another one if the old one was renamed. If that fails,
// the old one stays open.
func (f *File) Reopen() error {
	if f.path == "" {
		return nil
	}
	file, err := f.open()
	if err != nil {
		return fmt.Errorf("%w; what is logged goes on to the file that had this name", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.file
	f.file, f.torn = file, false
	return old.Close()
}

// Close closes the file.
func (f *File) Close() error {
	if f.path == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.file.Close()
}

// Package logs writes what a server logs: records of what goes wrong, and a line for every request.
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
)

// Stderr is the path that stands for standard error.
const Stderr = "stderr"

// fileMode is that of a log that is made: who asked for what is not for everybody.
const fileMode fs.FileMode = 0o640

// A File is where lines are written to. It is safe for concurrent use.
type File struct {
	path string // absolute; "" for standard error

	mu   sync.Mutex
	file *os.File
	torn bool // its last line has no end: the disk was full
}

// Open opens a log for appending, and makes it if it is not there. The path may be [Stderr].
func Open(path string) (*File, error) {
	// A socket, which standard error is under systemd, cannot be opened by its name.
	if path == Stderr || path == "/dev/stderr" {
		return &File{file: os.Stderr}, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	f := &File{path: path}
	if f.file, err = f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) open() (*os.File, error) {
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, fileMode)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open log: %w; make its directory first", err)
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

// Reopen opens the file at the path again, which is another one if the old one was renamed. If it cannot, the old one stays.
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

// Chown gives the file to a user and a group. What is no regular file, such as a terminal, is left alone.
func (f *File) Chown(uid, gid int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := f.file.Stat()
	if err == nil && f.path != "" && info.Mode().IsRegular() {
		err = f.file.Chown(uid, gid)
	}
	if err != nil {
		return fmt.Errorf("give log away: %w", err)
	}
	return nil
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

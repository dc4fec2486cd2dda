package nixserve

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A PIDFile holds the number of this process while it runs. Only the process whose number is in it has the lock on it.
type PIDFile struct {
	path string
	file *os.File
}

// WritePID writes the number of this process into a file. A file that a crash left behind is taken over;
// one of a process that runs is an error. names are of programs that have such files and take no lock on them.
func WritePID(path string, names ...string) (*PIDFile, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	for {
		p, err := writePID(path, names)
		if !errors.Is(err, errRemoved) {
			return p, err
		}
	}
}

// errRemoved: another process that ended removed the file while it was opened.
var errRemoved = errors.New("the file was removed")

func writePID(path string, names []string) (_ *PIDFile, err error) {
	// No link is followed: in a directory that everybody may write to, it could lead to any file. A pipe or a device is not waited for.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0o644)
	switch {
	case errors.Is(err, syscall.ELOOP):
		return nil, fmt.Errorf("write pid file: %s is a symbolic link; name the file itself", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("write pid file: %w; make its directory first", err)
	case err != nil:
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	ours, err := file.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("write pid file: %w", err)
	case !ours.Mode().IsRegular():
		return nil, fmt.Errorf("write pid file: %s is no regular file; name another with --pid", path)
	case ours.Sys().(*syscall.Stat_t).Nlink > 1: // 0 if it was just removed
		return nil, fmt.Errorf("write pid file: %s has another name as well, by a hard link, and would be overwritten there; remove it, or name another with --pid", path)
	}
	text, err := io.ReadAll(io.LimitReader(file, 32))
	if err != nil {
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	other, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	switch err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, errRunning(path, other)
	case err != nil:
		return nil, fmt.Errorf("lock pid file %s: %w", path, err)
	}
	if theirs, err := os.Lstat(path); err != nil || !os.SameFile(ours, theirs) {
		return nil, errRemoved
	}
	if other != os.Getpid() && runs(other, names) {
		return nil, errRunning(path, other)
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	return &PIDFile{path, file}, nil
}

func errRunning(path string, pid int) error {
	return fmt.Errorf("write pid file %s: process %d of that file is running; end it first, or name another file with --pid", path, pid)
}

// runs reports whether a process runs, and is one of the named programs as far as that can be told:
// after a restart of the machine the number may be that of anything.
func runs(pid int, names []string) bool {
	if pid <= 0 {
		return false
	}
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) || !hasProc()
	}
	return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(string(line), name) })
}

func hasProc() bool {
	_, err := os.Stat("/proc/self/cmdline")
	return err == nil
}

// Remove removes the file. A process that may not, as it has given up the rights with which it made it, leaves an empty one.
func (p *PIDFile) Remove() error {
	if p == nil {
		return nil
	}
	defer p.file.Close()
	err := os.Remove(p.path) // no other process has replaced it: we have the lock
	if errors.Is(err, fs.ErrPermission) {
		err = p.file.Truncate(0)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pid file: %w", err)
	}
	return nil
}

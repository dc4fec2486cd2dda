package logs

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// stdout is a link, to a file that the kernel keeps and no user can replace.
const stdout = "/dev/stdout"

// errLinked: the log is also another file.
var errLinked = errors.New("it has another name as well, by a hard link")

// open opens a log without trusting the owner with any file but those that are the owner's anyway.
func (o *owner) open(path string) (*os.File, error) {
	if path == stdout {
		return os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	}
	// A pipe without a reader is an error, and holds up nothing.
	const flags = os.O_WRONLY | os.O_APPEND | syscall.O_NONBLOCK | syscall.O_NOCTTY
	file, err := openNoLinks(path, flags|os.O_CREATE|os.O_EXCL, fileMode)
	if err == nil {
		if os.Geteuid() == 0 { // else it is the owner's already
			err = file.Chown(o.uid, o.gid)
		}
		return file, closeAt(file, err)
	}
	if !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if file, err = openNoLinks(path, flags, 0); err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Mode().IsRegular() && info.Sys().(*syscall.Stat_t).Nlink != 1 {
		err = &fs.PathError{Op: "open", Path: path, Err: errLinked}
	}
	return file, closeAt(file, err)
}

// closeAt closes the file if there is an error, which it returns.
func closeAt(file *os.File, err error) error {
	if err != nil {
		file.Close()
	}
	return err
}

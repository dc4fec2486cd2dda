//go:build !linux

package logs

import (
	"io/fs"
	"os"
	"syscall"
)

// openNoLinks opens a file that is no symbolic link.
func openNoLinks(path string, flags int, mode fs.FileMode) (*os.File, error) {
	return os.OpenFile(path, flags|syscall.O_NOFOLLOW, mode)
}

package dir

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeBack tells the disk to take a part of a file now, and does not wait for it: the sync at the end then has little left to wait for.
// What goes wrong is told by that sync.
func writeBack(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

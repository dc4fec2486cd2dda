package dir

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeBack tells the disk to write a part of a file now, and does not wait for it. The sync at the
// end then has little left to wait for, and reports any error.
func writeBack(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

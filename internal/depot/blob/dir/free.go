package dir

import (
	"context"
	"fmt"
	"syscall"

	"firn/internal/depot/blob"
)

var _ blob.Measured = (*Store)(nil)

// Room asks the file system that the directory is in.
func (s *Store) Room(context.Context) (free, all int64, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.path, &fs); err != nil {
		return 0, 0, fmt.Errorf("measure file system of %s: %w", s.path, err)
	}
	return int64(fs.Bavail) * int64(fs.Bsize), int64(fs.Blocks) * int64(fs.Bsize), nil
}

package localstore

import "syscall"

// changeTime returns when the inode was changed last, in nanoseconds.
func changeTime(stat *syscall.Stat_t) int64 { return stat.Ctim.Nano() }

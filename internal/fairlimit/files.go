package fairlimit

import "syscall"

// Files says how many things of each kind may have files open at once, so that all together have no more
// open than the process may. A connection counts as one file.
type Files struct {
	// Reserved files are for everything that has to work whatever clients do: the catalog, Nix's
	// database, listeners, logs, signals, and the sweeps of the depot.
	Reserved int

	Connections int // over HTTP
	Readers     int // NARs and logs on their way over HTTP: two files each
	Waiting     int // requests over HTTP that wait for a slot: of these only the connection is open
	Uploads     int // of NARs and logs over HTTP: two files each

	SmallUploads int // of anything else over HTTP: only the connection is open

	SSHLogins      int // connections over SSH that have not logged in
	SSHConnections int // that have
	SSHSessions    int // commands that are answered: two files each, whether they read or write

	Making    int // NARs of the local store that are being compressed, of each of two sizes: three files each
	IdlePacks int // packs of the depot that stay open for the next reader
	IdleNARs  int // compressed NARs of the local store that do
}

// The most that there are of each kind, however many files there may be.
const (
	maxReserved       = 256
	maxConnections    = 16 << 10 // an idle one takes some 24 KB of memory, so these take 400 MB: enough for 600 machines with the 25 that Nix opens at most
	maxUploads        = 32
	maxSmallUploads   = 64 // each has 64 KiB in memory; larger ones share memory, see textMemory in internal/server
	maxSSHLogins      = 128
	maxSSHConnections = 1024
	maxSSHSessions    = 256
	maxMaking         = 64
	maxIdlePacks      = 128
	maxIdleNARs       = 1024
)

// Divide shares so many files.
func Divide(files int) Files {
	share := func(most, part int) int { return max(1, min(most, files/part)) }
	f := Files{
		Reserved:       min(maxReserved, 32+files/8),
		Uploads:        share(maxUploads, 32),
		SSHLogins:      share(maxSSHLogins, 32),
		SSHConnections: share(maxSSHConnections, 16),
		SSHSessions:    share(maxSSHSessions, 32),
		Making:         share(maxMaking, 64),
		IdlePacks:      share(maxIdlePacks, 32),
		IdleNARs:       share(maxIdleNARs, 16),
	}
	// Half of the connections may get a NAR at once. The other half has none open, or waits, or is
	// idle.
	f.Connections = max(2, min(maxConnections, (files-f.Sum())/2))
	f.Readers, f.Waiting = f.Connections/2, f.Connections/2
	f.SmallUploads = max(1, min(maxSmallUploads, f.Connections/4))
	return f
}

// Sum returns how many files are open when there is the most of everything.
func (f Files) Sum() int {
	return f.Reserved + f.Connections + 2*f.Readers + 2*f.Uploads + f.SSHLogins + f.SSHConnections + 2*f.SSHSessions + 6*f.Making + f.IdlePacks + f.IdleNARs
}

// OfProcess returns Divide of the files that this process may have open.
func OfProcess() Files { return Divide(MaxFiles()) }

// MaxFiles returns how many files this process may have open.
func MaxFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // what most systems give at the least
	}
	return int(min(limit.Cur, 1<<30)) // "unlimited" is more than there can be
}

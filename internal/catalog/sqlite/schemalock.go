package sqlite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"
)

const (
	// servePatience is how long a server waits for another one to end that may be of an older firn: its predecessor takes a minute at most.
	servePatience = 90 * time.Second
	// commandPatience is how long a command waits for a server that may be bringing the catalog up to date just then.
	commandPatience = 3 * time.Second
	// lockPause is the time between two tries.
	lockPause = 25 * time.Millisecond
)

// A SchemaLock keeps a command of a newer firn from changing the schema of a catalog under a running server, which would
// fail later on.
//
// It is a lock on the directory of the catalog, which leaves nothing behind, however a server ends. A server shares it with
// others for as long as it runs. A process that brings the catalog up to date has it alone for that time. On a file system
// without such locks it keeps no process from anything. See docs/adr/0067-a-catalog-in-use.md.
type SchemaLock struct {
	dir    *os.File
	server bool
	log    *slog.Logger // of a server
	asked  time.Time    // when Alone was called first
}

// LockForServer returns the lock of a directory, shared, which the server closes at its end.
func LockForServer(ctx context.Context, dir string, log *slog.Logger) (*SchemaLock, error) {
	l, err := LockForCommand(dir)
	if err != nil {
		return nil, err
	}
	l.server, l.log = true, log
	if err := l.Share(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// LockForCommand returns the lock of a directory. A command has it only while it brings the catalog up to date.
func LockForCommand(dir string) (*SchemaLock, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return &SchemaLock{dir: f}, nil
}

// Share takes the lock as a server has it. It waits for a process that brings the catalog up to date, however long that takes.
func (l *SchemaLock) Share(ctx context.Context) error {
	for waited := false; !l.lock(syscall.LOCK_SH); waited = true {
		if !waited {
			l.log.Info("waiting for another process, which brings the catalog up to date")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for another process, which brings the catalog up to date: %w", context.Cause(ctx))
		case <-time.After(lockPause):
		}
	}
	return nil
}

// Alone takes the whole lock, and reports whether it has it: see [Options.Older]. It fails when a server has shared it for too
// long.
func (l *SchemaLock) Alone() (ok bool, err error) {
	now := time.Now()
	if l.asked.IsZero() {
		l.asked = now
		l.lock(syscall.LOCK_UN) // of two servers that start at once, one goes on
	}
	if l.lock(syscall.LOCK_EX) {
		return true, nil
	}
	switch waited := now.Sub(l.asked); {
	case !l.server && waited >= commandPatience:
		return false, errors.New("it has to be brought up to date, and the server that uses it is of an older firn: " +
			"restart that with this firn, which does it, and then run this again")
	case l.server && waited >= servePatience:
		return false, errors.New("it has to be brought up to date, and another server, of an older firn, uses it: end that one first")
	case l.server && waited == 0:
		l.log.Info("the catalog has to be brought up to date: waiting for the end of another server, which uses it")
	}
	return false, nil
}

// lock changes the lock, and reports whether that was possible.
func (l *SchemaLock) lock(how int) bool {
	for {
		switch err := syscall.Flock(int(l.dir.Fd()), how|syscall.LOCK_NB); {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false
		default:
			return true // any other error: there are no locks here
		}
	}
}

// Close releases the lock.
func (l *SchemaLock) Close() error { return l.dir.Close() }

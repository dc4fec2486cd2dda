package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// servePatience is how long a server waits for another one to end that may be of an older firn: its predecessor takes a minute at most.
	servePatience = 90 * time.Second
	// commandPatience is how long a command waits for a server that may be bringing the catalog up to date just then.
	commandPatience = 3 * time.Second
	// claimPause is the time between two tries.
	claimPause = 25 * time.Millisecond
)

// A claim keeps a command of a newer firn from changing the schema of a catalog under a server, which would fail by and by.
//
// It is a lock on the directory of the depot, which leaves nothing behind, however a server ends: a server shares it with others for as long as it runs,
// and whoever brings the catalog up to date has it alone for that time. Where the file system has no such locks, nothing is kept from anybody.
// See docs/adr/0067-a-catalog-in-use.md.
type claim struct {
	dir    *os.File
	server bool
	log    *slog.Logger // of a server
	asked  time.Time    // when alone was called first
}

// serverClaim claims the depot in a state directory for a server, which closes it at its end.
func serverClaim(ctx context.Context, state string, log *slog.Logger) (*claim, error) {
	c, err := openClaim(state)
	if err != nil {
		return nil, err
	}
	c.server, c.log = true, log
	return c, c.share(ctx)
}

// openClaim opens the depot in a state directory, which is made if it is not there.
func openClaim(state string) (*claim, error) {
	at, err := makeDepot(state)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(at)
	if err != nil {
		return nil, fmt.Errorf("open depot: %w%s", err, stateAdvice(err))
	}
	return &claim{dir: dir}, nil
}

// share has what a server has of the lock. It waits for whoever brings the catalog up to date, however long that takes.
func (c *claim) share(ctx context.Context) error {
	for waited := false; !c.lock(syscall.LOCK_SH); waited = true {
		if !waited {
			c.log.Info("waiting for another process, which brings the catalog up to date")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for another process, which brings the catalog up to date: %w", context.Cause(ctx))
		case <-time.After(claimPause):
		}
	}
	return nil
}

// alone has all of the lock, if ok. It is asked again until it is, or the catalog has been brought up to date by another,
// and fails when a server has had some of it for too long.
func (c *claim) alone() (ok bool, err error) {
	now := time.Now()
	if c.asked.IsZero() {
		c.asked = now
		c.lock(syscall.LOCK_UN) // of two servers that start at once, one goes on
	}
	if c.lock(syscall.LOCK_EX) {
		return true, nil
	}
	switch waited := now.Sub(c.asked); {
	case !c.server && waited >= commandPatience:
		return false, errors.New("it has to be brought up to date, and the server that uses it is of an older firn: " +
			"restart that with this firn, which does it, and then run this again")
	case c.server && waited >= servePatience:
		return false, errors.New("it has to be brought up to date, and another server, of an older firn, uses it: end that one first")
	case c.server && waited == 0:
		c.log.Info("the catalog has to be brought up to date: waiting for the end of another server, which uses it")
	}
	return false, nil
}

// lock changes the lock, and reports whether that was possible.
func (c *claim) lock(how int) bool {
	for {
		switch err := syscall.Flock(int(c.dir.Fd()), how|syscall.LOCK_NB); {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false
		default:
			return true // any other error: there are no locks here
		}
	}
}

// Close gives the lock back.
func (c *claim) Close() error { return c.dir.Close() }

// makeDepot makes the directory of the depot in a state directory if it is not there, and returns it.
func makeDepot(state string) (string, error) {
	at := filepath.Join(state, depotDir)
	if err := os.MkdirAll(state, stateMode); err != nil {
		return "", fmt.Errorf("open depot: %w%s", err, stateAdvice(err))
	}
	if err := os.MkdirAll(at, depotMode); err != nil {
		return "", fmt.Errorf("open depot: %w%s", err, stateAdvice(err))
	}
	return at, nil
}

package server

import (
	"context"
	"time"
)

// How a server ends. net/http closes connections that wait for a request at once, and others after their answer, without a word.
// A client that asks one thing after the other then finds the connection closed under a request that is on its way, and may not know
// whether it was heard. So connections are drained: whoever asks is answered, and told that this was the last answer of
// the connection; one that has been silent for a while is closed.
const (
	// quietTime is how long a connection is silent before it is closed: longer than the way to a client and back.
	quietTime = time.Second

	// freshTime is the same for one that has brought nothing yet, whose client waited for it to be opened and does not try again.
	freshTime = 5 * time.Second

	// drainInterval is how often it is looked which ones are.
	drainInterval = 20 * time.Millisecond
)

// drain returns when all links are closed, or with an error when ctx ends. No others are added meanwhile.
func (ls *links) drain(ctx context.Context) error {
	ticker := time.NewTicker(drainInterval)
	defer ticker.Stop()
	for ls.retire() > 0 {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// retire has the links that are silent closed, and returns how many are open.
func (ls *links) retire() int {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for l := range ls.open {
		if since, ok := l.idleSince(); ok && time.Since(since) >= l.patience() {
			l.retire()
		}
	}
	return len(ls.open)
}

// patience is how long an end waits for a request through the link.
func (l *link) patience() time.Duration {
	if l.idle.Load() == 0 {
		return freshTime
	}
	return quietTime
}

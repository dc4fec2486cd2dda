package access

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
)

const (
	// noteInterval is how exactly it is known when a credential was used. Most requests look at one
	// number only.
	noteInterval = 10 * time.Second
	// writeInterval is the time between two writes of one credential to the catalog: every write
	// makes servers forget what they remember.
	writeInterval = 5 * time.Minute
)

// A credential is what a principal has shown, with when it was noted last that it was used.
type credential struct {
	use   catalog.Use
	noted atomic.Int64 // in seconds since 1970
}

// uses are the credentials that were used, until that is in the catalog. There are no more than the
// catalog has.
type uses struct {
	mu  sync.Mutex
	all map[string]*use // by hash or key
}

type use struct {
	catalog.Use
	written time.Time // which use is in the catalog; zero: none of this process
	when    time.Time // when it was written
}

// note notes that c was used now.
func (u *uses) note(c *credential, now time.Time) {
	last := c.noted.Load()
	if now.Unix() < last+int64(noteInterval/time.Second) || !c.noted.CompareAndSwap(last, now.Unix()) {
		return
	}
	key := string(c.use.SSHKey)
	if c.use.SSHKey == nil {
		key = string(c.use.Token[:])
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = map[string]*use{}
	}
	if u.all[key] == nil {
		u.all[key] = &use{Use: c.use}
	}
	u.all[key].At = now
}

// due are the uses that are to be written now, all that are not written yet if the server ends.
// What was written long ago is forgotten.
func (u *uses) due(now time.Time, ending bool) (due []catalog.Use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for key, one := range u.all {
		early := now.Sub(one.when) < writeInterval
		switch {
		case one.At.Equal(one.written) && !early:
			delete(u.all, key)
		case !one.At.Equal(one.written) && (ending || !early):
			one.written, one.when = one.At, now
			due = append(due, one.Use)
		}
	}
	return due
}

// Used notes that who has shown that it is who it says, and is doing something.
func (a *Access) Used(who cache.Principal) {
	if p, ok := who.(*principal); ok {
		a.uses.note(p.shown, a.now())
	}
}

// RunUses writes to the catalog when tokens and keys were used, until ctx ends, and then what is
// left. A use that could not be written is told to failed, and the next one is written again:
// nothing rests on it.
func (a *Access) RunUses(ctx context.Context, failed func(error)) {
	ticker := time.NewTicker(noteInterval)
	defer ticker.Stop()
	for ending := false; !ending; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			ending = true
		}
		if due := a.uses.due(a.now(), ending); len(due) > 0 {
			if err := a.records.NoteUses(context.WithoutCancel(ctx), due); err != nil {
				failed(err)
			}
		}
	}
}

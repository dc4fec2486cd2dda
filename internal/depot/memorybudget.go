package depot

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// minIdle is how long a reservation has been idle before it may be reclaimed: a client that takes
// 64 KiB in less is not slow.
const minIdle = 50 * time.Millisecond

// memoryBudget bounds the memory that all readers of decompressed NARs have together. While a reader
// waits for its client to take bytes, its reservation is idle. If another reader needs the memory,
// the reservation that has been idle for the longest is reclaimed, and its reader has to decompress
// the frame once more. So slow clients keep no other client waiting, however many they are.
type memoryBudget struct {
	next chan struct{} // is held by the reader that waits for memory; the others wait for it

	mu      sync.Mutex
	free    int64         // bytes
	idle    list.List     // of *reservation; the one that has been idle for the longest is in front
	changed chan struct{} // is closed when there is more to be had; nil if no reader waits
}

// A reservation is used by one goroutine.
type reservation struct {
	of     *memoryBudget
	weight int64  // bytes; 0 when it was reclaimed
	drop   func() // gives up what is in the memory
	at     *list.Element
	since  time.Time // when it became idle
}

func newMemoryBudget(bytes int64) *memoryBudget {
	return &memoryBudget{next: make(chan struct{}, 1), free: bytes}
}

// reserve waits until there are so many bytes. If the reservation is reclaimed while it is idle,
// another goroutine calls drop.
func (m *memoryBudget) reserve(ctx context.Context, weight int64, drop func()) (*reservation, error) {
	r := &reservation{of: m, drop: drop}
	return r, r.renew(ctx, weight)
}

// renew reserves the memory of a reservation that was reclaimed.
func (r *reservation) renew(ctx context.Context, weight int64) error {
	m := r.of
	select {
	case m.next <- struct{}{}:
		defer func() { <-m.next }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		m.mu.Lock()
		wait := m.reclaim(weight)
		if m.free >= weight {
			m.free -= weight
			r.weight = weight
			m.mu.Unlock()
			return nil
		}
		changed := make(chan struct{})
		m.changed = changed
		m.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		timer.Stop()
	}
}

// reclaim frees memory of idle reservations, as far as that is needed. If it is not enough, the
// caller tries again after wait.
func (m *memoryBudget) reclaim(weight int64) (wait time.Duration) {
	for m.free < weight && m.idle.Len() > 0 {
		r := m.idle.Front().Value.(*reservation)
		if idle := time.Since(r.since); idle < minIdle {
			return minIdle - idle
		}
		m.idle.Remove(r.at)
		r.at = nil
		m.free += r.weight
		r.weight = 0
		r.drop()
	}
	return time.Hour // until something changes
}

// pause makes the reservation idle, until resume.
func (r *reservation) pause() {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.since = time.Now()
	r.at = r.of.idle.PushBack(r)
	r.of.wake()
}

// resume reports whether the reservation is still there after a pause.
func (r *reservation) resume() bool {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	if r.at == nil {
		return false
	}
	r.of.idle.Remove(r.at)
	r.at = nil
	return true
}

// end gives the memory back. The reservation must not be idle.
func (r *reservation) end() {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.of.free += r.weight
	r.weight = 0
	r.of.wake()
}

// wake wakes the reader that waits for memory. It is called with mu held.
func (m *memoryBudget) wake() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

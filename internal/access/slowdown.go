package access

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"firn/internal/fairlimit"
)

// slots is the size of the table of addresses. Two addresses that fall into one slot share it, and fall into others after a restart:
// that may cost one of them a wait, if it fails too, and keeps the table from growing, whoever asks.
const slots = 1 << 14

// A slowdown counts failures by address.
type slowdown struct {
	burst time.Duration // pauses that an address may run up
	pause time.Duration
	seed  maphash.Seed

	mu sync.Mutex
	// owed is when what an address has run up is over: each failure adds a pause. The zero time: it has not failed.
	owed [slots]time.Time
}

func newSlowdown(burst int, pause time.Duration) *slowdown {
	return &slowdown{burst: time.Duration(burst) * pause, pause: pause, seed: maphash.MakeSeed()}
}

// failed counts a failure of an address, and returns how long it has to wait: zero if it has not failed too often.
// A failure while it has to wait does not lengthen the wait.
func (s *slowdown) failed(remote netip.Addr, now time.Time) (wait time.Duration) {
	slot := maphash.Comparable(s.seed, fairlimit.Network(remote)) % slots
	s.mu.Lock()
	defer s.mu.Unlock()
	owed := s.owed[slot]
	if owed.Before(now) {
		owed = now
	}
	owed = owed.Add(s.pause)
	if wait := owed.Sub(now) - s.burst; wait > 0 {
		return wait
	}
	s.owed[slot] = owed
	return 0
}

// wait returns how long an address has to wait before it may fail; zero if it need not.
func (s *slowdown) wait(remote netip.Addr, now time.Time) time.Duration {
	slot := maphash.Comparable(s.seed, fairlimit.Network(remote)) % slots
	s.mu.Lock()
	defer s.mu.Unlock()
	owed := s.owed[slot]
	if owed.Before(now) {
		return 0
	}
	return max(0, owed.Add(s.pause).Sub(now)-s.burst)
}

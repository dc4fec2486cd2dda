// Package fairlimit bounds uploads, connections and memory, and shares them among clients.
//
//	uploads := fairlimit.New(32)
//	done, err := uploads.Take(ctx, "principal "+name, fairlimit.Address(addr))
//	…
//	done()
//
//	memory := fairlimit.NewMemory(512 << 20)
//	done, err = memory.TakeN(ctx, 8<<20, "principal "+name, fairlimit.Address(addr))
package fairlimit

import (
	"container/list"
	"context"
	"net/netip"
	"slices"
	"sync"
)

// Slots bound how many of something there are at once, and leave some for the next owner. An owner may take
// a slot only while it holds fewer than are free. So a single owner gets at most half, and each further one
// half of what the others have left. Owners that have to wait do so in a queue; one that has too many is
// passed over.
type Slots struct {
	needs func(n, held int) int // how many must be free for an owner of held to take n

	mu      sync.Mutex
	free    int
	held    map[string]int // by owner; none is 0
	waiting list.List      // of *waiter
}

type waiter struct {
	n      int
	owners []string
	ready  chan struct{} // closed once it has a slot
}

// New returns n slots.
func New(n int) *Slots {
	return &Slots{needs: func(n, held int) int { return held + n }, free: n, held: make(map[string]int)}
}

// NewMemory returns Slots for n bytes of memory, of which requests take very different amounts. After a
// request is granted, at least as much is free as its owner then holds, and in addition as much as it
// took, or as its owner held before, whichever is less.
//
// So an owner has at most half. Whatever it has, another owner that has nothing gets a quarter of all at
// once. And an owner that may have no more large amounts still gets small ones.
func NewMemory(n int) *Slots {
	needs := func(n, held int) int { return held + 2*n + min(n, held) }
	return &Slots{needs: needs, free: n, held: make(map[string]int)}
}

// Take waits until there is a slot for a request that counts for all of these owners; an empty name counts
// for none. done gives the slot back.
func (s *Slots) Take(ctx context.Context, owners ...string) (done func(), err error) {
	return s.TakeN(ctx, 1, owners...)
}

// TakeN is Take for n slots, or bytes. It does not wait behind a larger request that cannot be granted yet.
func (s *Slots) TakeN(ctx context.Context, n int, owners ...string) (done func(), err error) {
	owners = named(owners)
	w := &waiter{n, owners, make(chan struct{})}
	s.mu.Lock()
	if s.mayTake(n, owners) { // requests that wait may not: that was checked when a slot was given back last
		s.lend(n, owners)
		s.mu.Unlock()
		return func() { s.give(n, owners) }, nil
	}
	at := s.waiting.PushBack(w)
	s.mu.Unlock()
	select {
	case <-w.ready:
		return func() { s.give(n, owners) }, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	select {
	case <-w.ready: // at the same moment
		s.mu.Unlock()
		s.give(n, owners)
	default:
		s.waiting.Remove(at)
		s.mu.Unlock()
	}
	return nil, context.Cause(ctx)
}

// TryTake is Take without waiting. ok is false if there is no slot now.
func (s *Slots) TryTake(owners ...string) (done func(), ok bool) { return s.TryTakeN(1, owners...) }

// TryTakeN is TakeN without waiting.
func (s *Slots) TryTakeN(n int, owners ...string) (done func(), ok bool) {
	owners = named(owners)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mayTake(n, owners) {
		return nil, false
	}
	s.lend(n, owners)
	return func() { s.give(n, owners) }, true
}

func named(owners []string) []string {
	return slices.DeleteFunc(slices.Clone(owners), func(o string) bool { return o == "" })
}

// lend counts slots that owners take. It is called with mu held.
func (s *Slots) lend(n int, owners []string) {
	s.free -= n
	for _, o := range owners {
		s.held[o] += n
	}
}

func (s *Slots) give(n int, owners []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free += n
	for _, o := range owners {
		if s.held[o] -= n; s.held[o] == 0 {
			delete(s.held, o)
		}
	}
	s.serve()
}

// Held returns how many slots an owner has.
func (s *Slots) Held(owner string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[owner]
}

// serve gives free slots to requests that wait. It is called with mu held.
func (s *Slots) serve() {
	for e := s.waiting.Front(); e != nil && s.free > 0; {
		w, next := e.Value.(*waiter), e.Next()
		if s.mayTake(w.n, w.owners) {
			s.lend(w.n, w.owners)
			s.waiting.Remove(e)
			close(w.ready)
		}
		e = next
	}
}

func (s *Slots) mayTake(n int, owners []string) bool {
	if s.free < n {
		return false
	}
	for _, o := range owners {
		if s.needs(n, s.held[o]) > s.free {
			return false
		}
	}
	return true
}

// Address returns the owner that stands for a client's address, "" if it has none. For IPv6 that is the
// network, as one machine has as many addresses of its network as it likes.
func Address(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return "address " + Network(addr).String()
}

// Network returns an address, or the network of an IPv6 address.
func Network(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		addr = netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	return addr
}

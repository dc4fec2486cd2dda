// Package slots shares places that there are few of, for uploads or connections, among those who want them.
//
//	uploads := slots.New(32)
//	done, err := uploads.Take(ctx, "principal "+name, slots.Address(addr))
//	…
//	done()
package slots

import (
	"container/list"
	"context"
	"net/netip"
	"slices"
	"sync"
)

// Slots bound how many of something there are at once, and leave room for whoever comes next: nobody gets a slot while he has as many
// as are free. So one alone gets half of them, and each further one half of what the others have left.
// Who has to wait does so in a queue, in which those who have too many are passed over.
type Slots struct {
	mu      sync.Mutex
	free    int
	held    map[string]int // by owner; none is 0
	waiting list.List      // of *waiter
}

type waiter struct {
	owners []string
	ready  chan struct{} // closed once it has a slot
}

// New returns n slots.
func New(n int) *Slots { return &Slots{free: n, held: make(map[string]int)} }

// Take waits until there is a slot for somebody who is known by all of these names; an empty one is none. done gives it back.
func (s *Slots) Take(ctx context.Context, owners ...string) (done func(), err error) {
	owners = named(owners)
	w := &waiter{owners, make(chan struct{})}
	s.mu.Lock()
	if s.mayTake(owners) { // those who wait may not: they were looked at when a slot was given back last
		s.lend(owners)
		s.mu.Unlock()
		return func() { s.give(owners) }, nil
	}
	at := s.waiting.PushBack(w)
	s.mu.Unlock()
	select {
	case <-w.ready:
		return func() { s.give(owners) }, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	select {
	case <-w.ready: // at the same moment
		s.mu.Unlock()
		s.give(owners)
	default:
		s.waiting.Remove(at)
		s.mu.Unlock()
	}
	return nil, context.Cause(ctx)
}

// TryTake is Take for those who do not wait. ok is false if there is no slot now.
func (s *Slots) TryTake(owners ...string) (done func(), ok bool) {
	owners = named(owners)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mayTake(owners) {
		return nil, false
	}
	s.lend(owners)
	return func() { s.give(owners) }, true
}

func named(owners []string) []string {
	return slices.DeleteFunc(slices.Clone(owners), func(o string) bool { return o == "" })
}

// lend counts a slot that somebody has now.
func (s *Slots) lend(owners []string) {
	s.free--
	for _, o := range owners {
		s.held[o]++
	}
}

func (s *Slots) give(owners []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	for _, o := range owners {
		if s.held[o]--; s.held[o] == 0 {
			delete(s.held, o)
		}
	}
	s.serve()
}

// serve gives free slots to those who wait. It is called with mu held.
func (s *Slots) serve() {
	for e := s.waiting.Front(); e != nil && s.free > 0; {
		w, next := e.Value.(*waiter), e.Next()
		if s.mayTake(w.owners) {
			s.lend(w.owners)
			s.waiting.Remove(e)
			close(w.ready)
		}
		e = next
	}
}

func (s *Slots) mayTake(owners []string) bool {
	if s.free == 0 {
		return false
	}
	for _, o := range owners {
		if s.held[o] >= s.free {
			return false
		}
	}
	return true
}

// Address is the owner that stands for a client's address: of IPv6 its network, as one machine has as many addresses of that as it likes.
// It is "" if there is none.
func Address(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return "address " + Place(addr).String()
}

// Place is an address, or the network of an IPv6 address.
func Place(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		addr = netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	return addr
}

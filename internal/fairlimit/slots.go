// Package fairlimit shares places that there are few of, for uploads or connections, and memory, among
// those who want them.
//
//	uploads := slots.New(32)
//	done, err := uploads.Take(ctx, "principal "+name, slots.Address(addr))
//	…
//	done()
//
//	memory := slots.NewMemory(512 << 20)
//	done, err = memory.TakeN(ctx, 8<<20, "principal "+name, slots.Address(addr))
package fairlimit

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

// NewMemory returns n bytes of memory, of which requests take very different amounts.
// After one is granted, at least as much is free as its owner then holds,
// and beside that as much as it took, or as its owner held before, whichever is less.
//
// So an owner has at most half. Whatever it has, another one that has nothing gets a quarter of all
// at once. And an owner who has all that it may have of large amounts still gets small ones.
func NewMemory(n int) *Slots {
	needs := func(n, held int) int { return held + 2*n + min(n, held) }
	return &Slots{needs: needs, free: n, held: make(map[string]int)}
}

// Take waits until there is a slot for somebody who is known by all of these names; an empty one is none. done gives it back.
func (s *Slots) Take(ctx context.Context, owners ...string) (done func(), err error) {
	return s.TakeN(ctx, 1, owners...)
}

// TakeN is Take for n slots, or bytes. It does not wait behind a larger request that cannot be
// granted yet.
func (s *Slots) TakeN(ctx context.Context, n int, owners ...string) (done func(), err error) {
	owners = named(owners)
	w := &waiter{n, owners, make(chan struct{})}
	s.mu.Lock()
	if s.mayTake(n, owners) { // those who wait may not: they were looked at when a slot was given back last
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

// TryTake is Take for those who do not wait. ok is false if there is no slot now.
func (s *Slots) TryTake(owners ...string) (done func(), ok bool) { return s.TryTakeN(1, owners...) }

// TryTakeN is TakeN for those who do not wait.
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

// lend counts what the owners have now.
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

// Held returns how many an owner has.
func (s *Slots) Held(owner string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[owner]
}

// serve gives what is free to those who wait. It is called with mu held.
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

// Address is the owner that stands for a client's address: of IPv6 its network, as one machine has as many addresses of that as it likes.
// It is "" if there is none.
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

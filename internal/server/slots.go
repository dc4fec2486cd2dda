package server

import (
	"container/list"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"firn/internal/cache"
)

// slots bound how many uploads are received, or logs sent, at once, and leave room for whoever comes next: nobody gets a slot while he has as many
// as are free. So one alone gets half of them, and each further one half of what the others have left.
// Who has to wait does so in a queue, in which those who have too many are passed over.
type slots struct {
	mu      sync.Mutex
	free    int
	held    map[string]int // by owner; none is 0
	waiting list.List      // of *waiter
}

type waiter struct {
	owners []string
	ready  chan struct{} // closed once it has a slot
}

func newSlots(n int) *slots { return &slots{free: n, held: make(map[string]int)} }

// take waits until there is a slot for somebody who is known by all of these names. done gives it back.
func (s *slots) take(ctx context.Context, owners ...string) (done func(), err error) {
	w := &waiter{owners, make(chan struct{})}
	s.mu.Lock()
	at := s.waiting.PushBack(w)
	s.serve()
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

func (s *slots) give(owners []string) {
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
func (s *slots) serve() {
	for e := s.waiting.Front(); e != nil && s.free > 0; {
		w, next := e.Value.(*waiter), e.Next()
		if s.mayTake(w.owners) {
			s.free--
			for _, o := range w.owners {
				s.held[o]++
			}
			s.waiting.Remove(e)
			close(w.ready)
		}
		e = next
	}
}

func (s *slots) mayTake(owners []string) bool {
	for _, o := range owners {
		if s.held[o] >= s.free {
			return false
		}
	}
	return true
}

// turn waits until there is a slot for an upload. done gives it back.
func (s *Server) turn(x *exchange, of *slots) (done func(), err error) {
	done, err = s.slot(x, of, turnLimit)
	if err != nil {
		return nil, fmt.Errorf("%w: too many uploads at once: %w", cache.ErrUnavailable, err)
	}
	return done, nil
}

// slot waits for a slot until a limit.
func (s *Server) slot(x *exchange, of *slots, limit time.Duration) (done func(), err error) {
	ctx, cancel := context.WithTimeout(x.r.Context(), limit)
	defer cancel()
	return of.take(ctx, s.owners(x)...)
}

// owners are the names under which a request takes a slot: who makes it, where that is known, and from where.
func (s *Server) owners(x *exchange) (owners []string) {
	if name := x.who.Name(); name != "" {
		owners = append(owners, "principal "+name)
	}
	if addr := s.originOf(x.r).addr; addr.IsValid() {
		if addr.Is6() { // one machine has as many of a network as it likes
			addr = netip.PrefixFrom(addr, 64).Masked().Addr()
		}
		owners = append(owners, "address "+addr.String())
	}
	return owners
}

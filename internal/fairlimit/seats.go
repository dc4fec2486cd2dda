package fairlimit

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// Occupant is what has a seat, such as a connection.
type Occupant interface {
	comparable

	// Spare reports whether the occupant can do without its seat now, and since when: the least
	// goes first. It is called with a lock held, so it must return at once. [Seat.Spared] has to be
	// called after the answer has changed. An occupant that can be spared from now on, or since
	// another time, goes behind all that could be before.
	Spare() (since int64, ok bool)
}

// Seats are slots whose occupants may lose them to others, as an idle connection does. They are shared like
// [Slots]: an owner gets a seat while it holds fewer than are free, so that a single owner gets half of
// them. An owner that has its share gets one all the same if an owner with at least as many seats, itself
// included, has an occupant that can spare its seat: the one that could for the longest loses it. An
// occupant without an owner, "", may take any free seat.
type Seats[T Occupant] struct {
	mu    sync.Mutex
	free  int
	owned map[string]*ownSeats[T]
}

// ownSeats are the seats of one owner.
type ownSeats[T Occupant] struct {
	taken  map[*Seat[T]]struct{}
	queue  []spareSeat[T] // those that were spare when it was last looked, the first to go in front
	spared atomic.Bool    // some may be spare that are not in queue
}

type spareSeat[T Occupant] struct {
	seat  *Seat[T]
	since int64
}

// A Seat is for one occupant.
type Seat[T Occupant] struct {
	of    *Seats[T]
	who   T
	owner string
	own   *ownSeats[T] // nil: it was not taken yet
}

// NewSeats returns n seats.
func NewSeats[T Occupant](n int) *Seats[T] {
	return &Seats[T]{free: n, owned: make(map[string]*ownSeats[T])}
}

// Seat returns a seat that is not taken yet.
func (s *Seats[T]) Seat(owner string, who T) *Seat[T] { return &Seat[T]{of: s, who: who, owner: owner} }

// Take takes the seat; ok is false if there is none for its owner. If leaves is not nil, that occupant has
// lost its seat to this one, and must end.
func (s *Seat[T]) Take() (leaves *T, ok bool) {
	all := s.of
	all.mu.Lock()
	defer all.mu.Unlock()
	own := all.owned[s.owner]
	if own == nil {
		own = &ownSeats[T]{taken: make(map[*Seat[T]]struct{})}
	}
	if all.free == 0 || s.owner != "" && len(own.taken) >= all.free {
		out := all.sparest(len(own.taken))
		if out == nil {
			return nil, false
		}
		out.give()
		leaves = &out.who
	}
	if since, ok := s.who.Spare(); ok && len(own.queue) > 0 && since < own.queue[len(own.queue)-1].since {
		own.queue = nil // it goes before one of these
	}
	all.free--
	all.owned[s.owner] = own // also where it was given up with its last seat just now
	own.taken[s] = struct{}{}
	s.own = own
	own.spared.Store(true)
	return leaves, true
}

// Give gives the seat back. It does nothing if that was done before, or if the seat was lost to another.
func (s *Seat[T]) Give() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.give()
}

// give is called with the lock of the seats held.
func (s *Seat[T]) give() {
	if s.own == nil || !s.isTaken() {
		return
	}
	delete(s.own.taken, s)
	s.of.free++
	if len(s.own.taken) == 0 {
		delete(s.of.owned, s.owner)
	}
}

func (s *Seat[T]) isTaken() bool {
	_, taken := s.own.taken[s]
	return taken
}

// Spared has to be called when the result of the occupant's Spare has changed. The seat must have been
// taken.
func (s *Seat[T]) Spared() {
	if !s.own.spared.Load() { // nearly always it is set already, and cores can share memory that none of them writes
		s.own.spared.Store(true)
	}
}

// sparest returns the seat that could be spared for the longest, of owners that have at least so many
// seats; nil if there is none.
func (s *Seats[T]) sparest(least int) (seat *Seat[T]) {
	var first int64
	for _, own := range s.owned {
		if len(own.taken) < least {
			continue
		}
		if out, since := own.sparest(); out != nil && (seat == nil || since < first) {
			seat, first = out, since
		}
	}
	return seat
}

// sparest returns the same for one owner. It looks at all seats only when it has used up those that it
// found the last time. So asking again and again costs nothing while no seat can be spared.
func (o *ownSeats[T]) sparest() (*Seat[T], int64) {
	for {
		for ; len(o.queue) > 0; o.queue = o.queue[1:] {
			front := o.queue[0]
			if since, ok := front.seat.who.Spare(); ok && since == front.since && front.seat.isTaken() {
				return front.seat, since
			}
		}
		if o.queue = nil; !o.spared.Swap(false) {
			return nil, 0
		}
		for seat := range o.taken {
			if since, ok := seat.who.Spare(); ok {
				o.queue = append(o.queue, spareSeat[T]{seat, since})
			}
		}
		slices.SortFunc(o.queue, func(a, b spareSeat[T]) int { return cmp.Compare(a.since, b.since) })
	}
}

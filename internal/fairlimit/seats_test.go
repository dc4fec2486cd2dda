package fairlimit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// guest is an occupant for tests.
type guest struct {
	name  string
	owner string
	since int64
	busy  bool
	seat  *Seat[*guest]
}

func (g *guest) Spare() (int64, bool) { return g.since, !g.busy }

// hall has seats, and the guests that have one.
type hall struct {
	*Seats[*guest]
	guests []*guest
	clock  int64
}

// enter returns what becomes of a new guest.
func (h *hall) enter(owner string, busy bool) (g *guest, left *guest, ok bool) {
	h.clock++
	g = &guest{name: fmt.Sprintf("%s%d", owner, h.clock), owner: owner, since: h.clock, busy: busy}
	g.seat = h.Seat(owner, g)
	leaves, ok := g.seat.Take()
	if leaves != nil {
		left = *leaves
		h.guests = slices.DeleteFunc(h.guests, func(o *guest) bool { return o == left })
	}
	if ok {
		h.guests = append(h.guests, g)
	}
	return g, left, ok
}

func (h *hall) has(owner string) (n int) {
	for _, g := range h.guests {
		if g.owner == owner {
			n++
		}
	}
	return n
}

// rest has a guest that is busy wait from now on.
func (h *hall) rest(g *guest) {
	h.clock++
	g.busy, g.since = false, h.clock
	g.seat.Spared()
}

// One owner has half of what is free, the next half of the rest; what has no owner, all.
func TestSeatsAreShared(t *testing.T) {
	h := &hall{Seats: NewSeats[*guest](64)}
	for _, want := range []struct {
		owner string
		seats int
	}{{"a", 32}, {"b", 16}, {"c", 8}, {"", 8}, {"d", 0}} {
		for range 100 {
			h.enter(want.owner, true)
		}
		if got := h.has(want.owner); got != want.seats {
			t.Errorf("%q has %d seats, want %d", want.owner, got, want.seats)
		}
	}
	for _, g := range h.guests {
		g.seat.Give()
		g.seat.Give()
	}
	if h.free != 64 || len(h.owned) != 0 {
		t.Errorf("in the end %d are free, and %d have some", h.free, len(h.owned))
	}
}

// Who has its share displaces what it can spare itself, and others only where they have as many.
func TestSeatsMakeRoom(t *testing.T) {
	h := &hall{Seats: NewSeats[*guest](8)}
	var a []*guest
	for range 4 {
		g, _, _ := h.enter("a", false)
		a = append(a, g)
	}
	h.rest(a[0]) // so that a[1] waits for the longest
	if _, left, ok := h.enter("a", true); !ok || left != a[1] {
		t.Errorf("a displaced %v, %v", left, ok)
	}
	b, _, _ := h.enter("b", false)
	for range 3 {
		h.enter("", true)
	}
	// All are taken: by a 4, of which 3 wait, by b one, and 3 that have no owner.
	c, left, ok := h.enter("c", false)
	if !ok || left != a[2] {
		t.Errorf("c displaced %v, %v: it has none, and a[2] waits for the longest", left, ok)
	}
	a[3].busy = true
	if _, left, ok := h.enter("b", true); !ok || left != a[0] {
		t.Errorf("b displaced %v, %v", left, ok)
	}
	if _, left, ok := h.enter("a", true); !ok || left != b {
		t.Errorf("a displaced %v, %v: b has as many", left, ok)
	}
	if _, left, ok := h.enter("a", true); ok {
		t.Errorf("a displaced %v, and has more than others, of which it can spare none", left)
	}
	h.rest(a[3])
	if _, left, ok := h.enter("d", true); !ok || left != c {
		t.Errorf("d displaced %v, %v", left, ok)
	}
	if _, left, ok := h.enter("a", true); !ok || left != a[3] {
		t.Errorf("a displaced %v, %v", left, ok)
	}
}

// One that comes later, but is to go first, does.
func TestSeatsOrder(t *testing.T) {
	h := &hall{Seats: NewSeats[*guest](6)}
	for range 3 {
		g, _, _ := h.enter("a", false)
		g.since += 1000
		g.seat.Spared()
	}
	for range 3 {
		last := h.guests[len(h.guests)-1]
		h.enter("a", false)
		_, left, ok := h.enter("a", false)
		if !ok || left.since > 1000 {
			t.Errorf("%v made room, %v, and %v was to go before", left, ok, last)
		}
	}
}

// Whatever happens in which order, it is as a search through all seats would have it.
func TestSeatsFindTheLongest(t *testing.T) {
	const most = 12
	r := rand.New(rand.NewPCG(1, 2))
	h := &hall{Seats: NewSeats[*guest](most)}
	displaced, refused := 0, 0
	for range 100_000 {
		switch k := r.IntN(10); {
		case k < 4:
			owner := string(rune('a' + r.IntN(5)))
			has := h.has(owner)
			share := has < most-len(h.guests)
			var want *guest
			for _, g := range h.guests {
				if !share && !g.busy && h.has(g.owner) >= has && (want == nil || g.since < want.since) {
					want = g
				}
			}
			late := int64(r.IntN(2)) << 40 // it goes behind others that come later
			h.clock += late
			g, left, ok := h.enter(owner, r.IntN(2) == 0)
			h.clock -= late
			if ok != (share || want != nil) || left != want {
				t.Fatalf("%s, which has %d of %d, displaced %v, %v, want %v", g.name, has, len(h.guests), left, ok, want)
			}
			if left != nil {
				displaced++
			} else if !ok {
				refused++
			}
		case len(h.guests) == 0:
		case k < 5:
			i := r.IntN(len(h.guests))
			h.guests[i].seat.Give()
			h.guests = slices.Delete(h.guests, i, i+1)
		case k < 8:
			h.clock += 1 << 40
			h.rest(h.guests[r.IntN(len(h.guests))])
			h.clock -= 1 << 40
		default:
			h.guests[r.IntN(len(h.guests))].busy = true
		}
	}
	if displaced < 1000 || refused < 1000 {
		t.Errorf("%d were displaced and %d refused, which shows little", displaced, refused)
	}
}

// However many seats an owner has, one more that gets none costs nothing.
func BenchmarkSeats(b *testing.B) {
	for name, busy := range map[string]bool{"busy": true, "spare": false} {
		b.Run(name, func(b *testing.B) {
			h := &hall{Seats: NewSeats[*guest](16 << 10)}
			for range 8 << 10 {
				h.enter("a", busy)
			}
			h.guests = nil
			for b.Loop() {
				h.enter("a", busy)
				h.guests = nil
			}
		})
	}
}

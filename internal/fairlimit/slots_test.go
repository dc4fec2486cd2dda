package fairlimit

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// TestSlots: whoever has too many is passed over, and gets what is free when nobody else wants it.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(8)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		got := make(map[string]int)
		var mu sync.Mutex
		var give []func()
		take := func(owners ...string) {
			wg.Go(func() {
				done, err := s.Take(ctx, owners...)
				if err != nil {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got[owners[0]]++
				give = append(give, done)
			})
			synctest.Wait()
		}
		for range 20 {
			take("a", "here")
		}
		for range 20 {
			take("b", "here")
		}
		for range 20 {
			take("c", "there")
		}
		for range 20 {
			take("d", "elsewhere")
		}
		if diff := cmp.Diff(map[string]int{"a": 4, "c": 2, "d": 1}, got); diff != "" {
			t.Errorf("slots taken (-want +got):\n%s", diff)
		}
		cancel()
		wg.Wait()
		for _, done := range give {
			done()
		}
		if s.free != 8 || len(s.held) != 0 || s.waiting.Len() != 0 {
			t.Errorf("in the end %d are free, held %v, %d wait", s.free, s.held, s.waiting.Len())
		}
	})
}

// Whatever happens in which order, nobody waits who may take a slot, and in the end all are free.
func TestNobodyWaitsInVain(t *testing.T) {
	t.Run("slots", func(t *testing.T) { testNoneWaitsInVain(t, New(6), 1) })
	t.Run("memory", func(t *testing.T) { testNoneWaitsInVain(t, NewMemory(60), 15) })
}

// testNoneWaitsInVain has each take up to most.
func testNoneWaitsInVain(t *testing.T, s *Slots, most int) {
	all := s.free
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		type taker struct {
			done   func() // once it has a slot
			cancel func()
		}
		var takers []*taker
		var wg sync.WaitGroup
		for range 3000 {
			if len(takers) == 0 || len(takers) < 40 && r.IntN(2) == 0 {
				ctx, cancel := context.WithCancel(t.Context())
				one := &taker{cancel: cancel}
				takers = append(takers, one)
				owners := []string{string(rune('a' + r.IntN(5))), string(rune('A' + r.IntN(3)))}
				n := 1 + r.IntN(most)
				wg.Go(func() { one.done, _ = s.TakeN(ctx, n, owners...) })
			} else {
				i := r.IntN(len(takers))
				if takers[i].done != nil {
					takers[i].done()
				}
				takers[i].cancel()
				takers = slices.Delete(takers, i, i+1)
			}
			synctest.Wait()
			for e := s.waiting.Front(); e != nil; e = e.Next() {
				if w := e.Value.(*waiter); s.mayTake(w.n, w.owners) {
					t.Fatalf("%v wait, with %v held and %d free", w.owners, s.held, s.free)
				}
			}
		}
		for _, one := range takers {
			one.cancel()
			synctest.Wait()
			if one.done != nil {
				one.done()
			}
		}
		wg.Wait()
		if s.free != all || len(s.held) != 0 || s.waiting.Len() != 0 {
			t.Errorf("in the end %d are free, held %v, %d wait", s.free, s.held, s.waiting.Len())
		}
	})
}

// However many wait who have too many, others take theirs at once.
func BenchmarkTake(b *testing.B) {
	s := New(8)
	ctx, cancel := context.WithCancel(b.Context())
	var waiting sync.WaitGroup
	for range 10_000 {
		waiting.Go(func() { s.Take(ctx, "a") })
	}
	for queued := 0; queued < 10_000-4; {
		s.mu.Lock()
		queued = s.waiting.Len()
		s.mu.Unlock()
	}
	for b.Loop() {
		more, stop := context.WithCancel(ctx)
		stop()
		s.Take(more, "a")
	}
	cancel()
	waiting.Wait()
}

// TestTryTake: who does not wait is told, and one that cannot be named has what there is.
func TestTryTake(t *testing.T) {
	s := New(3)
	first, ok := s.TryTake("a")
	if !ok {
		t.Fatal("a got no slot of three")
	}
	if _, ok := s.TryTake("a"); !ok {
		t.Error("a got no second slot of three")
	}
	if _, ok := s.TryTake("a", ""); ok {
		t.Error("a got all three slots")
	}
	if _, ok := s.TryTake(""); !ok {
		t.Error("nobody got a slot that was free")
	}
	if _, ok := s.TryTake("b"); ok {
		t.Error("b got a fourth slot of three")
	}
	first()
	if _, ok := s.TryTake("b"); !ok {
		t.Error("b got no slot that was given back")
	}
}

func TestAddress(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1":            "address 192.0.2.1",
		"::ffff:192.0.2.1":     "address 192.0.2.1",
		"2001:db8:1:2:3:4:5:6": "address 2001:db8:1:2::",
		"fe80::1%eth0":         "address fe80::",
		"2001:db8:1:2:ffff::":  "address 2001:db8:1:2::",
		"2001:db8:1:3::":       "address 2001:db8:1:3::",
	} {
		if got := Address(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
	if got := Address(netip.Addr{}); got != "" {
		t.Errorf("no address is %q", got)
	}
}

// TestMemory: what one owner holds, in whatever amounts, leaves others a quarter of all, and itself
// small amounts.
func TestMemory(t *testing.T) {
	const all, largest, small = 512, 128, 8
	for _, amounts := range [][]int{{128}, {64}, {32}, {16}, {100, 60}, {128, 64, 32, 16, 8, 4, 2, 1}, {1, 2, 4, 8, 16, 32, 64, 128}} {
		s := NewMemory(all)
		held := 0
		for _, n := range amounts {
			for {
				if _, ok := s.TryTakeN(n, "a", "here"); !ok {
					break
				}
				held += n
			}
		}
		if held < all/5 || held > all/2 {
			t.Errorf("%d: a holds %d of %d", amounts, held, all)
		}
		for _, owners := range [][]string{{"a", "there"}, {"b", "here"}} {
			if _, ok := s.TryTakeN(largest, owners...); ok {
				t.Errorf("%d: %v got more than half of all", amounts, owners)
			}
		}
		if done, ok := s.TryTakeN(largest, "b", "there"); !ok {
			t.Errorf("%d: b got no quarter beside a", amounts)
		} else {
			done()
		}
		if len(amounts) > 1 {
			continue // the last ones were small
		}
		for _, owners := range [][]string{{"a", "there"}, {"b", "here"}} {
			if done, ok := s.TryTakeN(min(small, amounts[0]/4), owners...); !ok {
				t.Errorf("%d: %v got no small amount any more", amounts, owners)
			} else {
				done()
			}
		}
	}
	// However many owners take large amounts, small ones are left.
	s := NewMemory(all)
	for i := range 10 {
		for s.takes(largest, i) {
		}
	}
	if !s.takes(small, 10) {
		t.Error("nothing small is left of others")
	}
}

func (s *Slots) takes(n, owner int) bool {
	_, ok := s.TryTakeN(n, string(rune('a'+owner)))
	return ok
}

// TestSmallFirst: a small amount does not wait behind a large one, which is given once there is
// enough.
func TestSmallFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewMemory(512)
		first, _ := s.TryTakeN(128, "a")
		got := make(chan int, 3)
		for _, n := range []int{128, 100, 8} {
			go func() {
				if done, err := s.TakeN(t.Context(), n, "a"); err == nil {
					defer done()
					got <- n
				}
			}()
			synctest.Wait()
		}
		if n := len(got); n != 1 || <-got != 8 {
			t.Errorf("%d were granted at once, want the one of 8", n)
		}
		first()
		synctest.Wait()
		if n := len(got); n != 2 || s.free != 512 {
			t.Errorf("%d were granted later, want 2, and %d are free in the end", n, s.free)
		}
	})
}

package slots

import (
	"context"
	"net/netip"
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

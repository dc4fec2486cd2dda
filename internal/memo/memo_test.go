package memo_test

import (
	"fmt"
	"runtime"
	"sync"
	"testing"

	"firn/internal/memo"
)

func Example() {
	names := map[int]string{1: "one"}
	var changes uint64
	version := func() memo.Version { return memo.Exactly(changes, true) }

	known := memo.New[int, string](1000)
	name := func(n int) string {
		now := version() // before it is asked for
		if name, at, ok := known.Get(n); ok && at.Hit(now) {
			return name + ", remembered"
		}
		known.Put(n, names[n], now, 1)
		return names[n]
	}
	fmt.Println(name(1))
	fmt.Println(name(1))
	names[1] = "uno"
	changes++
	fmt.Println(name(1))
	// Output:
	// one
	// one, remembered
	// uno
}

// What is used stays, and the rest goes once there is too much.
func TestMemo(t *testing.T) {
	m := memo.New[int, int](100)
	for i := range 1000 {
		m.Put(i, 2*i, memo.Exactly(uint64(i), true), 1)
		if v, _, ok := m.Get(0); !ok || v != 0 {
			t.Fatalf("what is always used is gone after %d others", i)
		}
	}
	there := 0
	for i := range 1000 {
		v, at, ok := m.Get(i)
		if ok && (v != 2*i || at != memo.Exactly(uint64(i), true)) {
			t.Errorf("%d is %d, at %v", i, v, at)
		}
		if ok {
			there++
		}
	}
	if there < 50 || there > 100 {
		t.Errorf("%d are remembered, want 50 to 100", there)
	}
	if _, _, ok := m.Get(999); !ok {
		t.Error("the last one is gone")
	}
	m.Remove(999)
	if _, _, ok := m.Get(999); ok {
		t.Error("what was removed is there")
	}
}

// Costs are never more than the bound, also when values are replaced or cost much.
func TestCost(t *testing.T) {
	m := memo.New[int, int64](1000)
	held := func() (all int64) {
		for i := range 50 {
			if cost, _, ok := m.Get(i); ok {
				all += cost
			}
		}
		return all
	}
	for i := range int64(5000) {
		cost := i * 7919 % 600
		m.Put(int(i*31%50), cost, memo.Version{}, cost)
		if all := held(); all > 1000 {
			t.Fatalf("after %d puts, %d is remembered", i, all)
		}
	}
	m.Put(1, 10, memo.Version{}, 10)
	m.Put(1, 501, memo.Version{}, 501)
	if cost, _, ok := m.Get(1); ok {
		t.Errorf("what costs too much left %d", cost)
	}
}

// What was put last is what is found, whoever finds what at the same time.
func TestConcurrent(t *testing.T) {
	m := memo.New[int, int](64)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 5000 {
				key := 4*(n%16) + g // of this goroutine alone
				m.Put(key, n, memo.Version{}, 1)
				for other := range 8 {
					m.Get(other)
				}
				if v, _, ok := m.Get(key); ok && v != n {
					t.Errorf("%d is %d, want %d", key, v, n)
					return
				}
			}
		})
	}
	wg.Wait()
}

// What was removed does not come back, whoever finds it at the same time.
func TestRemoveFound(t *testing.T) {
	m := memo.New[int, int](4)
	done := make(chan struct{})
	var finders sync.WaitGroup
	for range 4 {
		finders.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					m.Get(0)
				}
			}
		})
	}
	back := 0
	for range 500 {
		for key := range 3 { // the last one makes 0 old
			m.Put(key, key, memo.Version{}, 1)
		}
		m.Remove(0)
		for range 10 { // in which a finder may put it
			runtime.Gosched()
			if _, _, ok := m.Get(0); ok {
				back++
				break
			}
		}
	}
	close(done)
	finders.Wait()
	if back > 0 {
		t.Errorf("what was removed came back %d times", back)
	}
}

func TestVersion(t *testing.T) {
	unknown, recent, current := memo.Version{Number: 7}, memo.Version{7, memo.Recent}, memo.Version{7, memo.Current}
	for _, test := range []struct {
		then, now memo.Version
		hit, miss bool
	}{
		{current, current, true, true},
		{current, recent, true, false},
		{recent, current, true, true},
		{recent, recent, true, false},
		{current, unknown, false, false},
		{unknown, current, false, false},
		{current, memo.Version{8, memo.Current}, false, false},
	} {
		if test.then.Hit(test.now) != test.hit || test.then.Miss(test.now) != test.miss {
			t.Errorf("from %v to %v: hit %t, miss %t", test.then, test.now, test.then.Hit(test.now), test.then.Miss(test.now))
		}
	}
	if got := current.And(recent); got.Freshness != memo.Recent {
		t.Errorf("current and recent are %v", got)
	}
	seen := map[uint64]bool{}
	for a := range uint64(100) {
		for b := range uint64(100) {
			seen[memo.Exactly(a, true).And(memo.Exactly(b, true)).Number] = true
		}
	}
	if len(seen) != 100*100 {
		t.Errorf("%d numbers of 10,000 pairs", len(seen))
	}
}

package zstdcache

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"firn/internal/cache"
)

// gate lets a dump be read up to an offset, and then waits until it is opened further.
type gate struct {
	mu     sync.Mutex
	open   int64
	opened chan struct{}

	reached chan struct{} // receives when it is reached for the first time
	ended   chan error    // receives why a wait was given up
}

func newGate(d *dump) *gate {
	g := &gate{opened: make(chan struct{}), reached: make(chan struct{}, 1), ended: make(chan error, 1)}
	d.before = g.wait
	return g
}

func (g *gate) to(off int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = off
	close(g.opened)
	g.opened = make(chan struct{})
}

func (g *gate) wait(ctx context.Context, off int64) error {
	for {
		g.mu.Lock()
		open, opened := g.open, g.opened
		g.mu.Unlock()
		if off < open {
			return nil
		}
		select {
		case g.reached <- struct{}{}:
		default:
		}
		select {
		case <-opened:
		case <-ctx.Done():
			g.ended <- context.Cause(ctx)
			return context.Cause(ctx)
		}
	}
}

// A stream has its first reader, and one that reads as fast as it can. It is made up to the gate.
type two struct {
	*house
	d      *dump
	gate   *gate
	first  cache.NAR
	cancel context.CancelFunc // of the first reader
}

func newTwo(t *testing.T, made int64) *two {
	s := &two{house: newHouse(t, Options{}), d: randomDump(4*frameSize, 12)}
	s.gate = newGate(s.d)
	s.gate.to(made)
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	var err error
	if s.first, err = s.Encode(ctx, s.d.info, s.d.open); err != nil {
		t.Fatal(err)
	}
	if s.first.Size() != -1 {
		t.Errorf("size is %d before it can be known", s.first.Size())
	}
	if _, ok := s.Encoded(s.d.info); ok {
		t.Error("it is kept before it is made")
	}
	return s
}

func TestWait(t *testing.T) {
	s := newTwo(t, frameSize+1)
	n := s.first.(cache.Unfinished)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for _, r := range [][2]int64{{0, 1}, {1, -1}, {0, 0}} {
		if err := n.WriteRange(t.Context(), io.Discard, r[0], r[1]); err == nil {
			t.Errorf("range %v was answered before there is a size", r)
		}
	}
	s.gate.to(1 << 40)
	if err := n.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantRanges(t, n, s.encode(s.d))
	n.Close()
}

func TestCloseEndsStreams(t *testing.T) {
	s := newTwo(t, frameSize+1)
	s.Close()
	if err := s.first.WriteRange(t.Context(), io.Discard, 0, -1); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	s.first.Close()
	wantFiles(t, s.dir, 0)
	s.start()
}

// A client that has asked for a small NAR and goes away does not have to wait for it, and nothing is lost for the next.
func TestSmallReaderLeaves(t *testing.T) {
	h := newHouse(t, Options{})
	d := randomDump(1000, 13)
	g := newGate(d)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := h.Encode(ctx, d.info, d.open)
		left <- err
	}()
	<-g.reached
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	g.to(1 << 40)
	h.running.Wait()
	h.wantKept([]bool{true}, d)
}

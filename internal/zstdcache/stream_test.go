package zstdcache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
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

// written is a writer that tells of each write, and waits until it is taken note of.
type written struct {
	got  bytes.Buffer
	ctx  context.Context
	tell chan int
}

func (w *written) Write(p []byte) (int, error) {
	n, _ := w.got.Write(p)
	select {
	case w.tell <- n:
		return n, nil
	case <-w.ctx.Done():
		return n, w.ctx.Err()
	}
}

// Everyone who asks while a NAR is being compressed, at any moment, fast or slow, gets the same bytes of one compression.
func TestJoin(t *testing.T) {
	h := newHouse(t, Options{})
	d := randomDump(2*frameSize+999, 11)
	g := newGate(d)
	rng := rand.New(rand.NewPCG(1, 1))

	const readers = 40
	got := make([]bytes.Buffer, readers)
	var reading sync.WaitGroup
	read := func(i int, slow bool) {
		n, err := h.Encode(t.Context(), d.info, d.open)
		if err != nil {
			t.Error(err)
			return
		}
		defer n.Close()
		var w io.Writer = &got[i]
		if slow {
			w = slowWriter{w}
		}
		if err := n.WriteRange(t.Context(), w, 0, n.Size()); err != nil {
			t.Error(err)
		}
	}
	for i := range readers {
		slow := rng.IntN(3) == 0
		reading.Go(func() { read(i, slow) })
		if i%3 == 0 {
			g.to(rng.Int64N(int64(len(d.data)) * int64(i+1) / readers))
		}
	}
	g.to(1 << 40)
	reading.Wait()

	if !bytes.Equal(unzstd(t, got[0].Bytes()), d.data) {
		t.Error("zstd -d gives other bytes")
	}
	for i := range got {
		if !bytes.Equal(got[i].Bytes(), got[0].Bytes()) {
			t.Errorf("reader %d got other bytes", i)
		}
	}
	if n := d.opens.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
	if s := h.Stats(); s.Misses != 1 || s.Misses+s.Joins+s.Hits != readers || s.Making != 0 {
		t.Errorf("stats: %+v", s)
	}
	h.wantKept([]bool{true}, d)
}

// slowWriter takes a few bytes at a time.
type slowWriter struct{ io.Writer }

func (w slowWriter) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = w.Writer.Write(p[n:min(n+777, len(p))])
		n += m
	}
	return n, err
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

func TestFirstReaderLeaves(t *testing.T) {
	s := newTwo(t, frameSize+1)
	second, err := s.Encode(t.Context(), s.d.info, s.d.open)
	if err != nil {
		t.Fatal(err)
	}
	w := &written{ctx: t.Context(), tell: make(chan int)}
	failed := make(chan error, 1)
	go func() { failed <- second.WriteRange(t.Context(), w, 0, -1) }()
	<-w.tell

	s.cancel()
	s.first.Close()
	s.gate.to(1 << 40)
	for {
		select {
		case <-w.tell:
			continue
		case err = <-failed:
		}
		break
	}
	second.Close()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(unzstd(t, w.got.Bytes()), s.d.data) {
		t.Error("other bytes")
	}
	s.wantKept([]bool{true}, s.d)
}

// When nobody is left, what is not half made is given up, and what is, is finished.
func TestNobodyLeft(t *testing.T) {
	t.Run("early", func(t *testing.T) {
		s := newTwo(t, frameSize+1)
		s.first.Close()
		if err := <-s.gate.ended; !errors.Is(err, errAbandoned) {
			t.Errorf("the source was ended by %v", err)
		}
		// Who comes now is not bound to what was given up.
		s.gate.to(1 << 40)
		if got := unzstd(t, s.encode(s.d)); !bytes.Equal(got, s.d.data) {
			t.Error("other bytes")
		}
		wantFiles(t, s.dir, 1)
	})
	t.Run("late", func(t *testing.T) {
		s := newTwo(t, 3*frameSize)
		stream := s.streams[s.d.info.NARHash]
		for size, ok := int64(0), false; !ok; ok = stream.halfMade() {
			var err error
			if size, _, err = stream.wait(t.Context(), size); err != nil {
				t.Fatal(err)
			}
		}
		s.first.Close()
		s.gate.to(1 << 40)
		if _, _, err := stream.wait(t.Context(), 1<<40); err != nil {
			t.Fatal(err)
		}
		s.wantKept([]bool{true}, s.d)
	})
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

//go:build programs

package zstdcache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
)

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

package depot_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"firn/internal/cache"
	"firn/internal/depot"
	"firn/nix"
)

// stuck is a client that takes nothing until it is let go, and then everything.
type stuck struct {
	bytes.Buffer
	reached func()
	until   <-chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	s.reached()
	<-s.until
	return s.Buffer.Write(p)
}

// TestSlowReaders: however many clients take nothing of a NAR that is decompressed for them, others get theirs, and it can be verified;
// and who is slow gets the right bytes nevertheless.
func TestSlowReaders(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	nar := archive(t, dir(""), file("a", text(700_000, 1)), file("b", []byte(reference(1, 1))), file("c", noise(1_500_000, 2)), file("d", text(100, 3)))
	info := t.push(nar)
	const slow = 150
	var reading, begun sync.WaitGroup
	until := make(chan struct{})
	for i := range slow {
		begun.Add(1)
		reading.Go(func() {
			n, err := t.OpenNAR(t.Context(), info)
			if err != nil {
				begun.Done()
				t.Error(err)
				return
			}
			defer n.Close()
			off := int64(i) * 1000
			w := &stuck{reached: sync.OnceFunc(begun.Done), until: until}
			if err := n.WriteRange(t.Context(), w, off, n.Size()-off-int64(i)); err != nil || !bytes.Equal(w.Bytes(), nar[off:len(nar)-i]) {
				t.Errorf("slow client %d: %d bytes, %v", i, w.Len(), err)
			}
		})
	}
	begun.Wait()
	t.wantPlain(nar)
	t.wantClean()
	close(until)
	reading.Wait()
}

// TestReadersThatLeave give their memory back, wherever they were.
func TestReadersThatLeave(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	nar := archive(t, file("", text(3_000_000, 1)))
	info := t.push(nar)
	var reading sync.WaitGroup
	for range 150 {
		ctx, cancel := context.WithCancelCause(t.Context())
		left := errors.New("left")
		reading.Go(func() {
			n, err := t.OpenNAR(t.Context(), info)
			if err != nil {
				t.Error(err)
				return
			}
			defer n.Close()
			w := &stuck{reached: func() { cancel(left) }, until: ctx.Done()}
			if err := n.WriteRange(ctx, w, 0, n.Size()); !errors.Is(err, left) {
				t.Errorf("a client that left: %v", err)
			}
		})
	}
	reading.Wait()
	t.wantPlain(nar)
}

// TestManyLogs: two large logs that nobody takes keep no small one from being read, and no large one from being kept.
func TestManyLogs(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	derivation := func(name string) nix.StorePath {
		drv, err := nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-" + name + ".drv")
		if err != nil {
			t.Fatal(err)
		}
		return drv
	}
	put := func(name string, log []byte) {
		if err := t.PutLog(t.Context(), derivation(name), bytes.NewReader(log)); err != nil {
			t.Fatal(err)
		}
	}
	put("large", noise(20<<20, 1))
	put("small", []byte("it is built"))
	opened := 0
	for ; opened < 100; opened++ {
		log, err := t.OpenLog(t.Context(), derivation("large"))
		if errors.Is(err, cache.ErrUnavailable) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
	}
	if opened == 0 || opened > 4 {
		t.Errorf("%d large logs are open", opened)
	}
	log, err := t.OpenLog(t.Context(), derivation("small"))
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	put("another", noise(2<<20, 2))
}

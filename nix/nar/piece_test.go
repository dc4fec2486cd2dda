package nar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// makeFiles makes a directory of files of the given size.
func makeFiles(tb testing.TB, count, size int) (path string, l *Layout) {
	tb.Helper()
	path = tb.TempDir()
	for i := range count {
		if err := os.WriteFile(filepath.Join(path, fmt.Sprintf("%06d", i)), bytes.Repeat([]byte{byte(i)}, size), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	l, err := NewLayout(tb.Context(), path)
	if err != nil {
		tb.Fatal(err)
	}
	return path, l
}

// stuck is a client that takes nothing until it is let go.
type stuck struct {
	reached *sync.WaitGroup // done at the first write
	let     <-chan struct{}
	once    sync.Once
	want    []byte // what is still to come
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(s.reached.Done)
	<-s.let
	if !bytes.HasPrefix(s.want, p) {
		return 0, errors.New("other bytes than those wanted")
	}
	s.want = s.want[len(p):]
	return len(p), nil
}

// TestStuckClients: a thousand clients that do not read hold little memory and few files, and delay no other client;
// once they read, they get all.
func TestStuckClients(t *testing.T) {
	const clients = 1000
	path, l := makeFiles(t, 100, 10_000)
	var want bytes.Buffer
	if err := l.WriteRange(t.Context(), &want, path, 0, l.Size()); err != nil {
		t.Fatal(err)
	}
	before := heap()
	var reached, done sync.WaitGroup
	let := make(chan struct{})
	all := make([]stuck, clients)
	for i := range all {
		s := &all[i]
		s.reached, s.let, s.want = &reached, let, want.Bytes()
		reached.Add(1)
		done.Go(func() {
			if err := l.WriteRange(t.Context(), s, path, 0, l.Size()); err != nil {
				t.Error(err)
			}
		})
	}
	reached.Wait()
	if taken := blocks.taken.Load(); taken > maxBlocks {
		t.Errorf("%d blocks are taken, more than %d", taken, maxBlocks)
	}
	if used, most := heap()-before, int64(maxBlocks*blockSize+clients*(smallBlock+16<<10)); used > most {
		t.Errorf("clients that are stuck hold %d bytes of memory, more than %d", used, most)
	}
	var got bytes.Buffer
	if err := l.WriteRange(t.Context(), &got, path, 0, l.Size()); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("beside clients that are stuck: wrote %d bytes, %v", got.Len(), err)
	}
	close(let)
	done.Wait()
	for i := range all {
		if n := len(all[i].want); n > 0 {
			t.Fatalf("client %d did not get the last %d bytes", i, n)
		}
	}
	if taken := blocks.taken.Load(); taken != 0 {
		t.Errorf("%d blocks are still taken", taken)
	}
}

// heap returns how many bytes of memory are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestOneFileOneWrite: what fits in a small block costs one write and few allocations.
func TestOneFileOneWrite(t *testing.T) {
	path, l := makeFiles(t, 1, 60_000)
	file := filepath.Join(path, "000000")
	single, err := NewLayout(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		l    *Layout
	}{{path, l}, {file, single}} {
		var w writes
		allocs := testing.AllocsPerRun(100, func() {
			w = 0
			if err := c.l.WriteRange(t.Context(), &w, c.path, 0, c.l.Size()); err != nil {
				t.Fatal(err)
			}
		})
		if w != 1 || allocs > 32 {
			t.Errorf("%d writes, %v allocations", w, allocs)
		}
	}
}

// writes counts them.
type writes int

func (w *writes) Write(p []byte) (int, error) {
	*w++
	return len(p), nil
}

// TestManyAhead reads ahead in full depth, as it is done when the files come from a disk.
func TestManyAhead(t *testing.T) {
	path, l := makeFiles(t, 1000, 10_000)
	tr, err := openTree(path, TypeDirectory)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	r := &reading{l, tr, l.Size(), 1 << 62}
	var queue [1 + slowReadAhead]piece
	off := int64(0)
	for i := range queue {
		if !r.plan(&queue[i], off, blockSize, true) {
			t.Fatalf("no block for piece %d", i)
		}
		off = queue[i].end
	}
	var want bytes.Buffer
	if err := l.WriteRange(t.Context(), &want, path, 0, off); err != nil {
		t.Fatal(err)
	}
	for i := range queue {
		if err := queue[i].wait(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(queue[i].data, want.Next(len(queue[i].data))) {
			t.Fatalf("piece %d is wrong", i)
		}
		queue[i].release()
	}
}

// TestCancelledBetweenPieces: a context that is cancelled ends the call before the next piece.
func TestCancelledBetweenPieces(t *testing.T) {
	path, l := makeFiles(t, 1000, 10_000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range l.pieces(ctx, path, 0, l.Size(), 1<<62) {
		if n++; err != nil && n != 2 {
			t.Errorf("piece %d: %v", n, err)
		}
		cancel()
	}
	if n != 2 {
		t.Errorf("got %d pieces, want one and an error", n)
	}
}

package depot_test

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"runtime"
	"testing"

	"firn/internal/depot"
	"firn/nix/nar"
)

// TestLargeListing: to write a listing takes little memory, however many files there are, and gives what there would be all at once.
func TestLargeListing(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	objects := []object{dir("")}
	const files = 200_000
	for i := range files {
		objects = append(objects, link(fmt.Sprintf("a-name-that-is-not-short-%08d", i), "somewhere else"))
	}
	info := t.push(archive(t, objects...))
	objects = nil
	w := &heapWriter{}
	runtime.GC()
	before := heap()
	if err := t.WriteListing(t.Context(), info, w); err != nil {
		t.Fatal(err)
	}
	if most := int64(8 << 20); w.most-before > most {
		t.Errorf("it takes %d bytes of memory, want at most %d", w.most-before, most)
	}
	l := nar.Listing{Entries: []nar.Header{{Type: nar.TypeDirectory}}}
	for i := range files {
		l.Entries = append(l.Entries, nar.Header{Path: fmt.Sprintf("a-name-that-is-not-short-%08d", i), Type: nar.TypeSymlink, Target: "somewhere else"})
	}
	if want := sha256.Sum256(l.AppendJSON(nil)); [32]byte(w.hash().Sum(nil)) != want {
		t.Error("it is not the listing")
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// heapWriter notes how much memory is in use while something is written to it.
type heapWriter struct {
	sum    hash.Hash
	writes int
	most   int64
}

func (w *heapWriter) hash() hash.Hash {
	if w.sum == nil {
		w.sum = sha256.New()
	}
	return w.sum
}

func (w *heapWriter) Write(p []byte) (int, error) {
	if w.writes++; w.writes%100 == 0 {
		runtime.GC()
		w.most = max(w.most, heap())
	}
	return w.hash().Write(p)
}

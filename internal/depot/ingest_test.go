package depot

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/catalog/sqlite/sqlitetest"
	"firn/internal/depot/blob/blobtest"
	"firn/internal/depot/index"
	"firn/nix"
)

var errNoLook = errors.New("no look-up")

// blind is a catalog in which chunks cannot be looked up.
type blind struct{ *sqlite.Catalog }

func (blind) FindChunks(context.Context, catalog.CacheID, []catalog.Sum) ([]index.Chunk, error) {
	return nil, errNoLook
}

// TestFailedBatch: nothing of a batch is written that comes after one that failed, so that nothing
// is kept without the first. Both buffers come back.
func TestFailedBatch(t *testing.T) {
	db := blind{sqlitetest.Open(t, nil)}
	d := New(db, index.Of(db), blobtest.NewMemory(), Options{})
	defer d.Close()
	in := d.newIngest(t.Context(), 0, nix.DefaultStoreDir, strings.NewReader(""))
	defer in.close()
	var passed atomic.Int32
	for _, shared := range []bool{true, false} { // only the first is looked up
		b := &batch{buf: make([]byte, 1<<10), n: 1 << 10, cut: 1 << 10}
		b.pieces = []piece{{data: b.buf, like: -1, shared: shared}}
		in.pass(b, func() { passed.Add(1) })
	}
	in.wait()
	if err := context.Cause(in.ctx); !errors.Is(err, errNoLook) {
		t.Errorf("the ingest ended with: %v", err)
	}
	if len(in.packing.frames) != 0 || in.packing.to != nil {
		t.Errorf("%d frames were written", len(in.packing.frames))
	}
	if passed.Load() != 2 {
		t.Errorf("%d batches are through", passed.Load())
	}
}

// A NAR is not taken if its frames are not all of it, whatever the reason.
func TestIncompleteFrames(t *testing.T) {
	for size, want := range map[int64]error{8: nil, 9: cache.ErrUnavailable, 7: cache.ErrUnavailable} {
		p := &packing{frames: []place{{size: 5}, {size: 3}}}
		if err := p.commit(size); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", size, err, want)
		}
	}
}

// The pieces of a batch are divided in order, none is left out, and no core gets much more than its share.
func TestDivide(t *testing.T) {
	for _, test := range []struct {
		sizes []int
		most  int
		want  []int // pieces in each share
	}{
		{nil, 2, nil},
		{[]int{5}, 2, []int{1}},
		{[]int{50_000, 50_000}, 2, []int{2}},
		{[]int{1 << 20, 1, 1 << 20}, 2, []int{2, 1}},
		{[]int{200_000, 200_000, 200_000, 200_000}, 3, []int{2, 2}},
		{[]int{200_000, 200_000, 200_000, 200_000}, 16, []int{1, 1, 1, 1}},
		{[]int{200_000, 200_000, 200_000, 200_000}, 1, []int{4}},
	} {
		b := &batch{}
		for i, n := range test.sizes {
			b.pieces = append(b.pieces, piece{data: make([]byte, n), like: i})
			b.cut += n
		}
		for range 2 { // with the memory of the time before
			b.divide(test.most)
			var got []int
			next := 0
			for _, p := range b.shares {
				got = append(got, len(p.pieces))
				for _, piece := range p.pieces {
					if piece.like != next {
						t.Errorf("%v by %d: piece %d where %d was to be", test.sizes, test.most, piece.like, next)
					}
					next++
				}
				if len(p.out)+len(p.unseen) != 0 {
					t.Error("a share begins with the frames of another")
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%v by %d: %v, want %v", test.sizes, test.most, got, test.want)
			}
			for i := range b.shares {
				b.shares[i].out = append(b.shares[i].out, 1)
			}
		}
	}
}

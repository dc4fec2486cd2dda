package depot

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/catalogtest"
	"firn/internal/depot/blob/blobtest"
	"firn/nix"
)

var errNoLook = errors.New("no look-up")

// blind is a catalog in which chunks cannot be looked up.
type blind struct{ catalog.Catalog }

func (blind) Chunks(context.Context, catalog.CacheID, []catalog.Sum) ([]catalog.Chunk, error) {
	return nil, errNoLook
}

// TestFailedRoom: by the time that the room after one that failed may go on, the upload has ended,
// so that nothing is kept without the first.
func TestFailedRoom(t *testing.T) {
	d := New(blind{catalogtest.NewMemory(nil)}, blobtest.NewMemory(), Options{})
	defer d.Close()
	in := d.newIngest(t.Context(), 0, nix.DefaultStoreDir, strings.NewReader(""))
	defer in.close()
	in.room.pieces = append(in.room.pieces, piece{data: make([]byte, 1<<10), like: -1, shared: true})
	own := newTurns()
	seen := make(chan error, 2)
	for _, turn := range []chan struct{}{own.claimed, own.written} {
		go func() {
			<-turn
			seen <- context.Cause(in.ctx)
		}()
	}
	if err := in.keep(in.room, passed, own); !errors.Is(err, errNoLook) {
		t.Errorf("keep: %v", err)
	}
	for range cap(seen) {
		if err := <-seen; !errors.Is(err, errNoLook) {
			t.Errorf("the next room finds that the upload ended with: %v", err)
		}
	}
}

// A NAR is not taken if its frames are not all of it, whatever the reason.
func TestWhole(t *testing.T) {
	for _, test := range []struct {
		size  int64
		known bool
		want  error
	}{{8, false, nil}, {9, false, cache.ErrUnavailable}, {7, false, cache.ErrUnavailable}, {9, true, nil}} {
		in := &ingest{frames: []place{{size: 5}, {size: 3}}, size: test.size, known: test.known}
		if err := in.whole(); !errors.Is(err, test.want) {
			t.Errorf("%d bytes, known %t: %v, want %v", test.size, test.known, err, test.want)
		}
	}
}

// The pieces of a room are divided in order, none is left out, and no core gets much more than its share.
func TestDivide(t *testing.T) {
	for _, test := range []struct {
		sizes []int
		most  int
		want  []int // pieces in each part
	}{
		{nil, 2, nil},
		{[]int{5}, 2, []int{1}},
		{[]int{50_000, 50_000}, 2, []int{2}},
		{[]int{1 << 20, 1, 1 << 20}, 2, []int{2, 1}},
		{[]int{200_000, 200_000, 200_000, 200_000}, 3, []int{2, 2}},
		{[]int{200_000, 200_000, 200_000, 200_000}, 16, []int{1, 1, 1, 1}},
		{[]int{200_000, 200_000, 200_000, 200_000}, 1, []int{4}},
	} {
		b := &room{}
		for i, n := range test.sizes {
			b.pieces = append(b.pieces, piece{data: make([]byte, n), like: i})
			b.cut += n
		}
		for range 2 { // with the memory of the time before
			b.divide(test.most)
			var got []int
			next := 0
			for _, p := range b.parts {
				got = append(got, len(p.pieces))
				for _, piece := range p.pieces {
					if piece.like != next {
						t.Errorf("%v by %d: piece %d where %d was to be", test.sizes, test.most, piece.like, next)
					}
					next++
				}
				if len(p.out)+len(p.unseen) != 0 {
					t.Error("a part begins with the frames of another")
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%v by %d: %v, want %v", test.sizes, test.most, got, test.want)
			}
			for i := range b.parts {
				b.parts[i].out = append(b.parts[i].out, 1)
			}
		}
	}
}

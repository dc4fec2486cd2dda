// Nothing is done at once here, so the race detector has nothing to see.

//go:build !race

package decompress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

// bytesNAR is a NAR of its bytes, which it writes in pieces.
type bytesNAR struct {
	data   []byte
	piece  int
	read   int64 // bytes written in all
	fail   error // after the last byte of each range
	closed int
}

func (n *bytesNAR) Size() int64  { return int64(len(n.data)) }
func (n *bytesNAR) Close() error { n.closed++; return nil }
func (n *bytesNAR) WriteRange(_ context.Context, w io.Writer, off, count int64) error {
	n.read += count
	for data := n.data[off : off+count]; len(data) > 0; {
		m := min(n.piece, len(data))
		if _, err := w.Write(data[:m]); err != nil {
			return err
		}
		data = data[m:]
	}
	return n.fail
}

func wrap(data []byte) (*bytesNAR, cache.NAR) {
	inner := &bytesNAR{data: data, piece: 10_007}
	return inner, WrapXZ(inner)
}

func whole(t testing.TB, n cache.NAR) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := n.WriteRange(t.Context(), &b, 0, n.Size()); err != nil {
		t.Fatal(err)
	}
	if int64(b.Len()) != n.Size() {
		t.Fatalf("wrote %d bytes, and the size is %d", b.Len(), n.Size())
	}
	return b.Bytes()
}

func TestWrap(t *testing.T) {
	for _, size := range []int{1, 2, 3, 100, xzBlock - 1, xzBlock, xzBlock + 1, 2*xzBlock - 1, 2 * xzBlock, 2*xzBlock + 12_345} {
		plain := sample(size)
		inner, n := wrap(plain)
		file := whole(t, n)
		if inner.read != int64(size) {
			t.Errorf("%d bytes: %d were read", size, inner.read)
		}
		wantAll(t, nix.XZ, file, plain)
		for _, p := range []string{"xz -dc", "bsdcat"} { // libarchive is what Nix decompresses with
			if got := (command{nix.XZ, p}).run(t, file); !bytes.Equal(got, plain) {
				t.Errorf("%d bytes: %s gives %d other ones", size, p, len(got))
			}
		}
		if err := n.Close(); err != nil || inner.closed != 1 {
			t.Errorf("closed %d times, %v", inner.closed, err)
		}
	}
	// xz finds nothing to say about it, and knows the sizes.
	_, n := wrap(sample(200_000))
	run(t, whole(t, n), "xz", "--test", "-")
}

func TestWrapRanges(t *testing.T) {
	plain := sample(xzBlock*2 + 1000)
	_, n := wrap(plain)
	file := whole(t, n)
	// Where something begins or ends: ranges from there are what goes wrong first.
	edges := []int64{0, int64(len(xzPrefix)), n.(*xzFile).body, n.Size()}
	for i := range int64(3) {
		start := edges[1] + i*(xzBlock+xzHeader)
		edges = append(edges, start, start+xzHeader)
	}
	rapid.Check(t, func(t *rapid.T) {
		inner, n := wrap(plain)
		near := rapid.Custom(func(t *rapid.T) int64 {
			at := rapid.SampledFrom(edges).Draw(t, "edge") + rapid.Int64Range(-6, 6).Draw(t, "by")
			return min(max(at, 0), n.Size())
		})
		offset := rapid.OneOf(near, rapid.Int64Range(0, n.Size()))
		for range rapid.IntRange(1, 4).Draw(t, "ranges") {
			a, b := offset.Draw(t, "from"), offset.Draw(t, "to")
			a, b = min(a, b), max(a, b)
			var got bytes.Buffer
			inner.read = 0
			if err := n.WriteRange(context.Background(), &got, a, b-a); err != nil {
				t.Fatalf("%d to %d: %v", a, b, err)
			}
			if inner.read > b-a {
				t.Fatalf("%d to %d: %d bytes were read", a, b, inner.read)
			}
			if !bytes.Equal(got.Bytes(), file[a:b]) {
				t.Fatalf("%d to %d: other bytes", a, b)
			}
		}
	})
}

// A NAR larger than any memory, of which a byte tells where it is.
type hugeNAR struct{ size int64 }

func (n hugeNAR) at(off int64) byte { return byte(off ^ off>>8 ^ off>>32) }
func (n hugeNAR) Size() int64       { return n.size }
func (n hugeNAR) Close() error      { return nil }
func (n hugeNAR) WriteRange(_ context.Context, w io.Writer, off, count int64) error {
	b := make([]byte, count)
	for i := range b {
		b[i] = n.at(off + int64(i))
	}
	_, err := w.Write(b)
	return err
}

func TestWrapHuge(t *testing.T) {
	n := hugeNAR{1<<44 + 12_345}
	file := WrapXZ(n)
	i := n.size / xzBlock / 3 * 2
	off := int64(len(xzPrefix)) + i*(xzBlock+xzHeader)
	var got bytes.Buffer
	if err := file.WriteRange(t.Context(), &got, off, 100); err != nil {
		t.Fatal(err)
	}
	for j, b := range got.Bytes()[xzHeader:] {
		if b != n.at(i*xzBlock+int64(j)) {
			t.Errorf("byte %d of a block is another one", j)
			break
		}
	}
	got.Reset()
	if err := file.WriteRange(t.Context(), &got, file.Size()-100, 100); err != nil || got.Len() != 100 {
		t.Errorf("the last bytes: %d, %v", got.Len(), err)
	}
}

// limited fails after a number of bytes.
type limited struct{ left int }

var errFull = errors.New("full")

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		n := l.left
		l.left = 0
		return n, errFull
	}
	l.left -= len(p)
	return len(p), nil
}

func TestWrapFails(t *testing.T) {
	inner, n := wrap(sample(200_000))
	for _, left := range []int{0, 1, 5, 8, 13, 20, 1000, 65_550, 150_000, int(n.Size()) - 1} {
		if err := n.WriteRange(t.Context(), &limited{left}, 0, n.Size()); !errors.Is(err, errFull) {
			t.Errorf("full after %d bytes: %v", left, err)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, n.Size() + 1}, {n.Size() + 1, 0}} {
		if err := n.WriteRange(t.Context(), io.Discard, r[0], r[1]); err == nil {
			t.Errorf("wrote %d bytes from %d on", r[1], r[0])
		}
	}
	inner.fail = nar.ErrMismatch
	if err := n.WriteRange(t.Context(), io.Discard, 0, n.Size()); !errors.Is(err, nar.ErrMismatch) {
		t.Errorf("a NAR that is wrong: %v", err)
	}
	inner.fail = nil
	short := WrapXZ(shortNAR{inner})
	if err := short.WriteRange(t.Context(), io.Discard, 0, short.Size()); err == nil || !strings.Contains(err.Error(), "less than") {
		t.Errorf("a NAR that ends early: %v", err)
	}
}

// shortNAR leaves the last byte out.
type shortNAR struct{ *bytesNAR }

func (n shortNAR) WriteRange(ctx context.Context, w io.Writer, off, count int64) error {
	return n.bytesNAR.WriteRange(ctx, w, off, count-1)
}

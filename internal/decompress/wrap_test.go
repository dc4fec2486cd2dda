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

func wrap(t interface{ Fatalf(string, ...any) }, c nix.Compression, data []byte) (*bytesNAR, cache.NAR) {
	inner := &bytesNAR{data: data, piece: 10_007}
	w, ok := Wrap(c, inner)
	if !ok {
		t.Fatalf("%s cannot be wrapped", c)
	}
	return inner, w
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

// unwrappers are the programs of each format; libarchive is what Nix decompresses with.
var unwrappers = map[nix.Compression][]string{
	nix.XZ:     {"xz -dc", "bsdcat"},
	nix.Gzip:   {"gzip -dc", "bsdcat"},
	nix.Zstd:   {"zstd -dc", "bsdcat"},
	nix.LZ4:    {"lz4 -dc", "bsdcat"},
	nix.Brotli: {"brotli -dc"},
}

func TestWrapRanges(t *testing.T) {
	for c := range unwrappers {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			size := int(containers[c].block)*2 + 1000
			plain := sample(size)
			_, n := wrap(t, c, plain)
			file := whole(t, n)
			// Where something begins or ends: ranges from there are what goes wrong first.
			edges := []int64{0, int64(len(containers[c].prefix)), n.(*wrapping).body, n.Size()}
			for i := range int64(3) {
				start := edges[1] + i*(containers[c].block+containers[c].header)
				edges = append(edges, start, start+containers[c].header)
			}
			rapid.Check(t, func(t *rapid.T) {
				inner, n := wrap(t, c, plain)
				near := rapid.Custom(func(t *rapid.T) int64 {
					at := rapid.SampledFrom(edges).Draw(t, "edge") + rapid.Int64Range(-6, 6).Draw(t, "by")
					return min(max(at, 0), n.Size())
				})
				offset := rapid.OneOf(near, rapid.Int64Range(0, n.Size()))
				for range rapid.IntRange(1, 4).Draw(t, "ranges") {
					a, b := offset.Draw(t, "from"), offset.Draw(t, "to")
					a, b = min(a, b), max(a, b)
					b = min(b, a+400_000) // no longer, for the sake of time: blocks of lz4 have 4 MiB
					if !Ranges(c) {
						b = min(b, n.(*wrapping).body)
						a = min(a, b)
					}
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
		})
	}
}

// The checksum of gzip is of what is written on the way to it, and never makes the NAR be read for
// itself.
func TestWrapSum(t *testing.T) {
	plain := sample(200_000)
	_, first := wrap(t, nix.Gzip, plain)
	file := whole(t, first)

	inner, n := wrap(t, nix.Gzip, plain)
	if n.Size() != int64(len(file)) || inner.read != 0 {
		t.Errorf("the size is %d instead of %d; %d bytes were read for it", n.Size(), len(file), inner.read)
	}
	var got bytes.Buffer
	for off := int64(0); off < n.Size(); off += 7000 {
		if err := n.WriteRange(t.Context(), &got, off, min(7000, n.Size()-off)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), file) || inner.read != int64(len(plain)) {
		t.Errorf("in order: %d bytes were read; the same: %v", inner.read, bytes.Equal(got.Bytes(), file))
	}

	inner, n = wrap(t, nix.Gzip, plain)
	if err := n.WriteRange(t.Context(), io.Discard, n.Size()-1, 1); err == nil || inner.read != 0 {
		t.Errorf("the last byte: %v, and %d bytes were read", err, inner.read)
	}
	for c := range containers {
		if Ranges(c) == (c == nix.Gzip) {
			t.Errorf("%s: ranges: %v", c, Ranges(c))
		}
	}
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
	for c, k := range containers {
		if k.sums {
			continue
		}
		file, _ := Wrap(c, n)
		i := n.size / k.block / 3 * 2
		off := int64(len(k.prefix)) + i*(k.block+k.header)
		var got bytes.Buffer
		if err := file.WriteRange(t.Context(), &got, off, 100); err != nil {
			t.Fatal(err)
		}
		for j, b := range got.Bytes()[k.header:] {
			if b != n.at(i*k.block+int64(j)) {
				t.Errorf("%s: byte %d of a block is another one", c, j)
				break
			}
		}
		got.Reset()
		if err := file.WriteRange(t.Context(), &got, file.Size()-100, 100); err != nil || got.Len() != 100 {
			t.Errorf("%s: the last bytes: %d, %v", c, got.Len(), err)
		}
	}
}

type unfinished struct{ cache.NAR }

func (unfinished) Size() int64 { return -1 }

func TestCannotWrap(t *testing.T) {
	n := &bytesNAR{data: sample(10), piece: 10}
	for _, c := range []nix.Compression{nix.Bzip2, nix.LZMA, nix.Lzip, nix.Compress, nix.Grzip, nix.Lrzip, nix.Lzop, "zip"} {
		if _, ok := Wrap(c, n); ok {
			t.Errorf("%s was wrapped", c)
		}
	}
	if _, ok := Wrap(nix.XZ, unfinished{n}); ok {
		t.Error("a NAR of unknown size was wrapped")
	}
	for _, c := range []nix.Compression{nix.None, ""} {
		if w, ok := Wrap(c, n); !ok || w != cache.NAR(n) {
			t.Errorf("%q: %v, %v", c, w, ok)
		}
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
	plain := sample(200_000)
	for c := range unwrappers {
		inner, n := wrap(t, c, plain)
		for _, left := range []int{0, 1, 5, 8, 13, 20, 1000, 65_550, 150_000, int(n.Size()) - 1} {
			if err := n.WriteRange(t.Context(), &limited{left}, 0, n.Size()); !errors.Is(err, errFull) {
				t.Errorf("%s: full after %d bytes: %v", c, left, err)
			}
		}
		for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, n.Size() + 1}, {n.Size() + 1, 0}} {
			if err := n.WriteRange(t.Context(), io.Discard, r[0], r[1]); err == nil {
				t.Errorf("%s: wrote %d bytes from %d on", c, r[1], r[0])
			}
		}
		inner.fail = nar.ErrMismatch
		if err := n.WriteRange(t.Context(), io.Discard, 0, n.Size()); !errors.Is(err, nar.ErrMismatch) {
			t.Errorf("%s: a NAR that is wrong: %v", c, err)
		}
		inner.fail, inner.data = nil, inner.data[:len(inner.data):len(inner.data)]
		short, _ := Wrap(c, shortNAR{inner})
		if err := short.WriteRange(t.Context(), io.Discard, 0, short.Size()); err == nil || !strings.Contains(err.Error(), "less than") {
			t.Errorf("%s: a NAR that ends early: %v", c, err)
		}
	}
}

// shortNAR leaves the last byte out.
type shortNAR struct{ *bytesNAR }

func (n shortNAR) WriteRange(ctx context.Context, w io.Writer, off, count int64) error {
	return n.bytesNAR.WriteRange(ctx, w, off, count-1)
}

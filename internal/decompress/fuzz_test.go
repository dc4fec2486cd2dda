package decompress

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"firn/internal/cache"
	"firn/nix"
)

func FuzzBrotli(f *testing.F) { fuzz(f, nix.Brotli) }
func FuzzBzip2(f *testing.F)  { fuzz(f, nix.Bzip2) }
func FuzzGzip(f *testing.F)   { fuzz(f, nix.Gzip) }
func FuzzLZ4(f *testing.F)    { fuzz(f, nix.LZ4) }
func FuzzLzip(f *testing.F)   { fuzz(f, nix.Lzip) }
func FuzzLZMA(f *testing.F)   { fuzz(f, nix.LZMA) }
func FuzzXZ(f *testing.F)     { fuzz(f, nix.XZ) }
func FuzzZstd(f *testing.F)   { fuzz(f, nix.Zstd) }

// fuzz decodes whatever comes. What is accepted is accepted in whatever pieces it comes, and neither with a byte less nor with one more.
func fuzz(f *testing.F, c nix.Compression) {
	const free = 4 << 20
	try := func(t *testing.T, r io.Reader) ([]byte, error) {
		l := newLender(Options{Most: 10 << 20, Free: free})
		got, err := decode(c, r, l.Limits)
		if err != nil && !errors.Is(err, cache.ErrInvalid) && !errors.Is(err, cache.ErrTooLarge) {
			t.Errorf("it fails with %v", err)
		}
		if err != nil && strings.Contains(err.Error(), errPanic.Error()) {
			t.Errorf("the decoder panics: %v", err)
		}
		if n := l.lent.Load(); n != 0 {
			t.Errorf("%d bytes of memory are still lent", n)
		}
		return got, err
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := try(t, bytes.NewReader(data))
		if len(got) > 3*free && len(got)/defaultRatio > 2*len(data) {
			t.Errorf("%d bytes of %d", len(got), len(data))
		}
		again, againErr := try(t, iotest.OneByteReader(bytes.NewReader(data)))
		if (err == nil) != (againErr == nil) || err == nil && !bytes.Equal(got, again) {
			t.Errorf("%d bytes and %v; byte by byte, %d and %v", len(got), err, len(again), againErr)
		}
		if err != nil {
			return
		}
		if _, err := try(t, bytes.NewReader(data[:len(data)-1])); err == nil {
			t.Error("it may be a byte shorter")
		}
		if _, err := try(t, io.MultiReader(bytes.NewReader(data), strings.NewReader("x"))); err == nil {
			t.Error("there may be a byte after it")
		}
	})
}

//go:build programs

package zstdcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

func missing(context.Context) (cache.NAR, error) { return nil, cache.ErrNotFound }

// unzstd decompresses with the zstd command.
func unzstd(t testing.TB, data []byte) []byte {
	t.Helper()
	cmd := exec.Command("zstd", "-d", "-c", "-q")
	cmd.Stdin = bytes.NewReader(data)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("zstd -d: %v", err)
	}
	return out
}

func TestEncode(t *testing.T) {
	h := newHouse(t, Options{})
	sizes := []int{1, 96, 1000, 128 << 10, smallSize - 1, smallSize, smallSize + 1, frameSize - 1, frameSize, 2*frameSize + 17}
	for i, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			d := randomDump(size, 1)
			n, err := h.Encode(t.Context(), d.info, d.open)
			if err != nil {
				t.Fatal(err)
			}
			if size <= frameSize && n.Size() < 0 {
				t.Error("a NAR of one frame has no size")
			}
			var first bytes.Buffer
			if err := n.WriteRange(t.Context(), &first, 0, n.Size()); err != nil {
				t.Fatal(err)
			}
			n.Close()
			if got := unzstd(t, first.Bytes()); !bytes.Equal(got, d.data) {
				t.Fatal("zstd -d gives other bytes")
			}
			for range 2 { // from the file; and again, perhaps from memory
				n, err = h.Encode(t.Context(), d.info, d.open)
				if err != nil {
					t.Fatal(err)
				}
				if n.Size() != int64(first.Len()) {
					t.Errorf("size of the second is %d instead of %d", n.Size(), first.Len())
				}
				wantRanges(t, n, first.Bytes())
				n.Close()
			}
			if size, ok := h.Encoded(d.info); !ok || size != int64(first.Len()) {
				t.Errorf("Encoded: %d, %v", size, ok)
			}
			if n := d.opens.Load(); n != 1 {
				t.Errorf("opened %d times", n)
			}
			want := Stats{Files: i + 1, Hits: 2 * int64(i+1), Misses: int64(i + 1), Bytes: h.Stats().Bytes}
			if diff := cmp.Diff(want, h.Stats()); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
	wantFiles(t, h.dir, len(sizes))
}

func TestBadInput(t *testing.T) {
	sentinel := errors.New("broken disk")
	for _, size := range []int{50, 500_000, frameSize + 5} {
		whole := randomDump(size, 5).data
		for name, test := range map[string]struct {
			spoil func(d *dump)
			want  error
		}{
			"another last byte":  {func(d *dump) { d.data[size-1]++ }, nar.ErrMismatch},
			"another first byte": {func(d *dump) { d.data[0]++ }, nar.ErrMismatch},
			"shorter":            {func(d *dump) { d.data = d.data[:size-1] }, nar.ErrMismatch},
			"longer":             {func(d *dump) { d.data = append(d.data, 0) }, nar.ErrMismatch},
			"fails at the end": {func(d *dump) {
				d.before = func(_ context.Context, off int64) error {
					if off+pieceSize >= int64(size) {
						return sentinel
					}
					return nil
				}
			}, sentinel},
		} {
			t.Run(fmt.Sprintf("%d/%s", size, name), func(t *testing.T) {
				h := newHouse(t, Options{})
				d := newDump(bytes.Clone(whole))
				test.spoil(d)
				n, err := h.Encode(t.Context(), d.info, d.open)
				var b bytes.Buffer
				if err == nil {
					err = n.WriteRange(t.Context(), &b, 0, n.Size())
					n.Close()
				}
				if !errors.Is(err, test.want) {
					t.Errorf("got error %v instead of %v", err, test.want)
				}
				if b.Len() > 0 {
					if got := unzstd(t, b.Bytes()); len(got)%frameSize != 0 {
						t.Errorf("of %d bytes the last frame was sent", len(got))
					}
				}
				wantFiles(t, h.dir, 0)

				// The next who asks is answered, once the source is mended.
				d = newDump(whole)
				if got := unzstd(t, h.encode(d)); !bytes.Equal(got, whole) {
					t.Error("other bytes")
				}
			})
		}
	}

	t.Run("cannot be opened", func(t *testing.T) {
		h := newHouse(t, Options{})
		for _, size := range []int{50, 2 * frameSize} {
			_, err := h.Encode(t.Context(), randomDump(size, 1).info, missing)
			if !errors.Is(err, cache.ErrNotFound) {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("no hash", func(t *testing.T) {
		h := newHouse(t, Options{})
		d := randomDump(50, 1)
		d.info.NARHash = nix.Hash{}
		if _, err := h.Encode(t.Context(), d.info, d.open); !errors.Is(err, cache.ErrInvalid) {
			t.Errorf("got %v", err)
		}
	})
}

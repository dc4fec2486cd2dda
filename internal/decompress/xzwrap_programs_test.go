//go:build programs && !race

package decompress

import (
	"bytes"
	"testing"

	"firn/nix"
)

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

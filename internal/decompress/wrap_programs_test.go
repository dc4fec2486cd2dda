// Nothing is done at once here, so the race detector has nothing to see.

//go:build programs && !race

package decompress

import (
	"bytes"
	"testing"

	"firn/nix"
)

func TestWrap(t *testing.T) {
	for c, programs := range unwrappers {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			block := int(containers[c].block)
			for _, size := range []int{1, 2, 3, 100, block - 1, block, block + 1, 2*block - 1, 2 * block, 2*block + 12_345} {
				plain := sample(size)
				inner, n := wrap(t, c, plain)
				file := whole(t, n)
				if inner.read != int64(size) {
					t.Errorf("%d bytes: %d were read", size, inner.read)
				}
				wantAll(t, c, file, plain)
				for _, p := range programs {
					if got := (command{c, p}).run(t, file); !bytes.Equal(got, plain) {
						t.Errorf("%d bytes: %s gives %d other ones", size, p, len(got))
					}
				}
				if err := n.Close(); err != nil || inner.closed != 1 {
					t.Errorf("closed %d times, %v", inner.closed, err)
				}
			}
		})
	}
	// xz finds nothing to say about it, and knows the sizes.
	_, n := wrap(t, nix.XZ, sample(200_000))
	run(t, whole(t, n), "xz", "--test", "-")
}

//go:build programs

package depot_test

import (
	"bytes"
	"os/exec"
	"testing"

	"firn/internal/depot"
)

// TestZstd has the reference implementation decompress.
func TestZstd(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	for _, nars := range [][][]byte{system(t, 5, 0), system(t, 5, 1)} {
		for _, nar := range nars {
			n, _, err := t.OpenCompressed(t.Context(), t.push(nar))
			if err != nil {
				t.Fatal(err)
			}
			var packed, got bytes.Buffer
			if err := n.WriteRange(t.Context(), &packed, 0, n.Size()); err != nil {
				t.Fatal(err)
			}
			n.Close()
			cmd := exec.CommandContext(t.Context(), "zstd", "-dc")
			cmd.Stdin, cmd.Stdout = &packed, &got
			if err := cmd.Run(); err != nil || !bytes.Equal(got.Bytes(), nar) {
				t.Errorf("zstd: %v, %d bytes, want %d", err, got.Len(), len(nar))
			}
		}
	}
}

//go:build programs

package chunk_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/nix"
)

// A program in another language, written after docs/format.md, finds the same cut points.
func TestPython(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			nar := g.nar()
			var want strings.Builder
			for _, p := range goldenCut(t, nar) {
				fmt.Fprintln(&want, p)
			}
			cmd := exec.CommandContext(t.Context(), "python3", "testdata/cutter.py", string(nix.DefaultStoreDir))
			cmd.Stdin = bytes.NewReader(nar)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, stderr.Bytes())
			}
			if diff := cmp.Diff(want.String(), string(got)); diff != "" {
				t.Errorf("it cuts elsewhere (-want +got):\n%s", diff)
			}
		})
	}
}

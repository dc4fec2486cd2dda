package chunk_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/depot/chunk"
	"firn/nix"
)

// golden are inputs that every implementation of docs/format.md can make, by name.
// Their cut points are in testdata/golden.txt.
var golden = []struct {
	name string
	nar  func() []byte
}{
	{"noise", func() []byte { return goldenNoise("noise", 3<<20) }},
	{"zeros", func() []byte { return make([]byte, 5<<19) }},
	{"references", func() []byte {
		nar := goldenNoise("references", 2<<20)
		for i, at := range []int{
			0, 44, 200, // at the very beginning
			// 255 and 256 bytes between the digits of one and those of the next
			5000, 5000 + 32 + 255, 5000 + 2*32 + 255 + 256,
			70_000,             // where the minimum size is not reached
			800_000, 1_048_576, // behind what has no references
			2<<20 - 44, // at the very end
		} {
			copy(nar[at:], goldenReference(i))
		}
		return nar
	}},
	{"list", func() []byte {
		nar := goldenNoise("list", 1000)
		for i := 0; len(nar) < 600<<10; i++ {
			nar = fmt.Appendf(nar, "%sname-%d\n", goldenReference(i), i)
		}
		return append(nar, goldenNoise("list", 100_000)...)
	}},
}

// goldenNoise is the SHA-256 of "firn golden NAME 0", of "firn golden NAME 1", and so on: n bytes of them.
func goldenNoise(name string, n int) (noise []byte) {
	for i := 0; len(noise) < n; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "firn golden %s %d", name, i))
		noise = append(noise, sum[:]...)
	}
	return noise[:n]
}

// goldenReference is a reference whose digits are the low five bits of each byte of the SHA-256 of "firn golden reference I".
func goldenReference(i int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "firn golden reference %d", i))
	for i, b := range sum {
		sum[i] = "0123456789abcdfghijklmnpqrsvwxyz"[b%32]
	}
	return "/nix/store/" + string(sum[:]) + "-"
}

// The cut points are a promise on disk: a difference needs another chunk.Version.
func TestGolden(t *testing.T) {
	var got strings.Builder
	fmt.Fprintf(&got, "version %d\n", chunk.Version)
	for _, g := range golden {
		nar := g.nar()
		fmt.Fprintf(&got, "\n%s of %d bytes, SHA-256 %x\n", g.name, len(nar), sha256.Sum256(nar))
		for _, p := range cut(chunk.NewCutter(nix.DefaultStoreDir), nar) {
			fmt.Fprintln(&got, p)
		}
	}
	want, err := os.ReadFile("testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("cut points are not the promised ones (-want +got):\n%s", diff)
	}
}

// A program in another language, written after docs/format.md, finds the same cut points.
func TestPython(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			nar := g.nar()
			var want strings.Builder
			for _, p := range cut(chunk.NewCutter(nix.DefaultStoreDir), nar) {
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

package chunk_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/chunk"
	"firn/nix"
	narformat "firn/nix/nar"
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
	// A NAR with files whose contents are cut out, and others.
	{"tree", goldenTree},
}

// goldenTree is a NAR with files of several sizes, between which are names that look like its
// structure.
func goldenTree() []byte {
	var nar bytes.Buffer
	w := narformat.NewWriter(&nar)
	header := func(h *narformat.Header) {
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
	}
	header(&narformat.Header{Type: narformat.TypeDirectory})
	for i, size := range []int{0, 1, chunk.MinFile - 1, chunk.MinFile, chunk.MinFile + 1, 300_000, 1_500_000} {
		contents := goldenNoise(fmt.Sprintf("tree %d", size), size)
		if size > chunk.MinFile {
			copy(contents, goldenReference(i))             // at the beginning
			copy(contents[size-44:], goldenReference(i+1)) // at the end
			copy(contents[size/2:], goldenReference(i+2))
		}
		header(&narformat.Header{Path: fmt.Sprintf("%d", i), Type: narformat.TypeRegular, Size: int64(size), Executable: i%2 == 1})
		if _, err := w.Write(contents); err != nil {
			panic(err)
		}
	}
	header(&narformat.Header{Path: "contents", Type: narformat.TypeDirectory})
	header(&narformat.Header{Path: "contents/regular", Type: narformat.TypeSymlink, Target: "contents"})
	if err := w.Close(); err != nil {
		panic(err)
	}
	return nar.Bytes()
}

// goldenCut cuts an input, a NAR or not.
func goldenCut(t *testing.T, nar []byte) []piece {
	t.Helper()
	var files []file
	if bytes.HasPrefix(nar, []byte("\r\x00\x00\x00\x00\x00\x00\x00nix-archive-1")) {
		r := narformat.NewReader(bytes.NewReader(nar))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Type == narformat.TypeRegular {
				files = append(files, file{int(h.Offset), int(h.Offset + h.Size)})
			}
		}
	}
	return cut(chunk.NewCutter(nix.DefaultStoreDir), nar, files...)
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
		for _, p := range goldenCut(t, nar) {
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

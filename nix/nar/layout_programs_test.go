//go:build programs

package nar_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/nix/nar"
	"firn/nix/nar/nartest"
)

// TestLayoutAgainstNix: the bytes are those that real Nix dumps, whole and in ranges, gathered or by ReadFrom, and the listing points at them.
func TestLayoutAgainstNix(t *testing.T) {
	fresh := freshDir(t)
	rapid.Check(t, func(r *rapid.T) {
		objects := trees.Draw(r, "tree")
		path := objects.make(t, fresh())
		want := nartest.Dump(t, path)
		l := layout(t, path)
		if l.Size() != int64(len(want)) {
			r.Fatalf("size is %d, want %d", l.Size(), len(want))
		}
		check := func(what string, off, n int64, write func(io.Writer) error) {
			var got bytes.Buffer
			if err := write(&got); err != nil {
				r.Fatalf("%s: %v", what, err)
			}
			if !bytes.Equal(got.Bytes(), want[off:off+n]) {
				r.Fatalf("%s: %d bytes from %d on are wrong", what, n, off)
			}
		}
		ctx := t.Context()
		check("whole", 0, l.Size(), func(w io.Writer) error { return l.WriteRange(ctx, w, path, 0, l.Size()) })
		check("gathered", 0, l.Size(), func(w io.Writer) error { return l.WriteRange(ctx, plain{w}, path, 0, l.Size()) })
		check("verified", 0, l.Size(), func(w io.Writer) error { return l.WriteVerified(ctx, w, path, sha256.Sum256(want)) })
		for range 10 {
			off := rapid.Int64Range(0, l.Size()).Draw(r, "offset")
			n := rapid.Int64Range(0, l.Size()-off).Draw(r, "bytes")
			check("range", off, n, func(w io.Writer) error { return l.WriteRange(ctx, w, path, off, n) })
			check("gathered range", off, n, func(w io.Writer) error { return l.WriteRange(ctx, plain{w}, path, off, n) })
		}
		if sum, err := l.Hash(ctx, path); err != nil || sum != sha256.Sum256(want) {
			r.Fatalf("hash is %x, %v", sum, err)
		}
		read, headers, err := readTree(bytes.NewReader(want))
		if err != nil {
			r.Fatal(err)
		}
		if diff := cmp.Diff(&nar.Listing{Entries: headers}, l.Listing()); diff != "" {
			r.Fatalf("listing: -want +got:\n%s", diff)
		}
		for i, h := range headers {
			if h.Type == nar.TypeRegular && string(want[h.Offset:h.Offset+h.Size]) != read[i].data {
				r.Fatalf("contents of %q are not at %d", h.Path, h.Offset)
			}
		}
	})
}

// awkward are trees of kinds that are rare, and large.
func awkward(tb testing.TB) map[string]string {
	tb.Helper()
	base := tb.TempDir()
	large := filepath.Join(base, "large")
	tree{dir(""), file("a", "small"), program("b", ""), file("c", "small")}.make(tb, large)
	if err := os.Truncate(filepath.Join(large, "b"), 600<<20); err != nil {
		tb.Fatal(err)
	}
	deep40 := deep(40)
	leaf := deep40[40].path + "/leaf"
	return map[string]string{
		"45,000 files":      manyFiles(45_000, 10).make(tb, filepath.Join(base, "many")),
		"one directory":     tree{dir(""), file("45 kB", noise(45_000, 3)), file("a\nb", "newline"), file("\xff", "no UTF-8"), file("empty", "")}.sorted().make(tb, filepath.Join(base, "odd")),
		"600 MB in a file":  large,
		"40 levels":         append(deep40, file(leaf, "leaf")).make(tb, filepath.Join(base, "deep")),
		"blocks of all fit": manyFiles(300, 4700).make(tb, filepath.Join(base, "blocks")),
	}
}

func TestRanges(t *testing.T) {
	for name, path := range awkward(t) {
		t.Run(name, func(t *testing.T) {
			dump, err := os.Create(filepath.Join(t.TempDir(), "dump"))
			if err != nil {
				t.Fatal(err)
			}
			defer dump.Close()
			if err := nartest.NixTo(t, dump, nil, "nix-store", "--dump", path); err != nil {
				t.Fatal(err)
			}
			l := layout(t, path)
			sum, err := l.Hash(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			if theirs, err := nartest.Nix(t, nil, "nix-hash", "--type", "sha256", path); err != nil || strings.TrimSpace(string(theirs)) != fmt.Sprintf("%x", sum) {
				t.Fatalf("hash is %x, Nix says %s, %v", sum, theirs, err)
			}
			rnd := rand.New(rand.NewPCG(1, 2))
			var got bytes.Buffer
			for range ranges {
				n := min(l.Size(), rnd.Int64N(1<<(1+rnd.Int64N(21))))
				off := rnd.Int64N(l.Size() - n + 1)
				got.Reset()
				if err := l.WriteRange(t.Context(), &got, path, off, n); err != nil {
					t.Fatal(err)
				}
				want := make([]byte, n)
				if _, err := dump.ReadAt(want, off); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Fatalf("%d bytes from %d on are wrong", n, off)
				}
			}
			if name == "45,000 files" && l.MemSize() > 4<<20 {
				t.Errorf("layout takes %d bytes", l.MemSize())
			}
		})
	}
}

// sorted puts the tree, which is one directory of leaves, in order.
func (t tree) sorted() tree {
	for i := 2; i < len(t); i++ {
		for j := i; j > 1 && t[j].path < t[j-1].path; j-- {
			t[j], t[j-1] = t[j-1], t[j]
		}
	}
	return t
}

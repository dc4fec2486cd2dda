//go:build programs

package depot_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/depot"
	blobs "firn/internal/depot/blob/dir"
	"firn/internal/depot/index"
	"firn/nix"
	"firn/nix/nar"
)

// A program in another language, written after docs/format.md, reads back what was kept:
// a small NAR, one of many frames, and the same after a rebuild, which is in two packs.
func TestPythonReads(t *testing.T) {
	path := t.TempDir()
	keep := openOnDisk(t, path)
	text := bytes.Repeat([]byte("exec /nix/store/0123456789abcdfghijklmnpqrsvwxyz-hello/bin/hello\n"), 9)
	noise := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	large := slices.Concat(noise[:1<<20], text, noise[1<<20:], text, make([]byte, 2<<20))
	rebuilt := bytes.ReplaceAll(large, []byte("0123456789abcdfghijklmnpqrsvwxyz"), []byte("zyxwvsrqpnmlkjihgfdcba9876543210"))
	for _, test := range []struct {
		name string
		file []byte
	}{{"empty", nil}, {"small", text}, {"large", large}, {"rebuilt", rebuilt}} {
		archive := narOf(t, test.file)
		sum := sha256.Sum256(archive)
		r, err := keep.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(archive)})
		if err != nil {
			t.Fatal(err)
		}
		if [32]byte(r.NARHash.Sum()) != sum {
			t.Errorf("%s: NAR hash %v", test.name, r.NARHash)
		}
		cmd := exec.CommandContext(t.Context(), "python3", "testdata/reader.py", path, hex.EncodeToString(sum[:]))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		got, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", test.name, err, stderr.Bytes())
		}
		if !bytes.Equal(got, archive) {
			t.Errorf("%s: the reader gives other bytes", test.name)
		}
	}
	packs, err := filepath.Glob(filepath.Join(path, "packs", "*", "*.pack"))
	if err != nil || len(packs) != 4 {
		t.Errorf("there are %d packs, error %v", len(packs), err)
	}
	// The rebuilt file is as long as the one before.
	out, err := exec.CommandContext(t.Context(), "python3", "-c",
		"import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM listings').fetchone())",
		filepath.Join(path, "catalog.db")).Output()
	if err != nil || string(out) != "3\n" {
		t.Errorf("there are %s listings of 4 NARs, error %v", out, err)
	}
}

// openOnDisk opens a depot as the server has it, and what a cache sees of it.
func openOnDisk(t *testing.T, path string) *depot.View {
	t.Helper()
	cat, err := sqlite.Open(t.Context(), filepath.Join(path, "catalog.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cat.Close() })
	packs, err := blobs.Open(filepath.Join(path, "packs"), blobs.Options{Make: true})
	if err != nil {
		t.Fatal(err)
	}
	d := depot.New(cat, index.Of(cat), packs, depot.Options{})
	t.Cleanup(func() { d.Close() })
	c := &catalog.Cache{Name: "main", StoreDir: nix.DefaultStoreDir, Sources: []string{"depot"}}
	if err := cat.AddCache(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	return d.For(c)
}

func narOf(t *testing.T, file []byte) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := nar.NewWriter(&archive)
	if err := w.WriteHeader(&nar.Header{Type: nar.TypeRegular, Size: int64(len(file))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(file); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

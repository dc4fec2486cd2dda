package cache_test

import (
	"bytes"
	"crypto/sha1"
	"fmt"
	"io"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/nar"
)

// What git has no tree of: a file, executable or not, a symlink, and an empty directory, which it would leave out.
func TestGitAddressOfOne(t *testing.T) {
	c := newPushed(t, cache.Options{})
	for what, test := range map[string]struct {
		header   nar.Header
		contents string
		object   string
	}{
		"file":       {nar.Header{Type: nar.TypeRegular, Size: 6}, "hello\n", "blob 6\x00hello\n"},
		"executable": {nar.Header{Type: nar.TypeRegular, Size: 6, Executable: true}, "hello\n", "blob 6\x00hello\n"},
		"symlink":    {nar.Header{Type: nar.TypeSymlink, Target: "a/b"}, "", "blob 3\x00a/b"},
		"directory":  {nar.Header{Type: nar.TypeDirectory}, "", "tree 0\x00"},
	} {
		var archive bytes.Buffer
		w := nar.NewWriter(&archive)
		if err := w.WriteHeader(&test.header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, test.contents); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		sum := sha1.Sum([]byte(test.object))
		t.Run(what, func(*testing.T) { c.publish(c.upload(addressed(t, archive.Bytes(), nix.GitMethod, nix.SHA1, sum[:]))) })
	}
}

// Directories that would take much memory are refused.
func TestGitAddressOfMuch(t *testing.T) {
	files := make(map[string]string)
	for i := range 70_000 {
		files[fmt.Sprintf("%0220d", i)] = ""
	}
	c := newPushed(t, cache.Options{})
	sum := sha1.Sum(nil)
	c.wantRefused(c.upload(addressed(t, cachetest.TreeNAR(t, files), nix.GitMethod, nix.SHA1, sum[:])), cache.ErrTooLarge, "CA")
}

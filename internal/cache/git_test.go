package cache_test

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/nar"
)

// gitOf returns what git says of a directory, or of one file.
func gitOf(t *testing.T, algorithm nix.HashAlgorithm, root string) []byte {
	t.Helper()
	repository := t.TempDir()
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "GIT_DIR="+repository, "GIT_WORK_TREE="+root, "GIT_CONFIG_NOSYSTEM=1", "HOME="+repository)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %q: %v", args, err)
		}
		return bytes.TrimSpace(out)
	}
	run("init", "--quiet", "--object-format="+algorithm.String())
	run("add", "--all", "--force", ".")
	sum, err := hex.DecodeString(string(run("write-tree")))
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestGitAddress: real git agrees with us on the address of trees.
func TestGitAddress(t *testing.T) {
	root := t.TempDir()
	write := func(name, contents string, mode os.FileMode) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(contents), mode); err != nil {
			t.Fatal(err)
		}
	}
	// git sorts "foo/" behind "foo.txt", and "foo-bar" before both.
	for i, name := range []string{"foo/deep/er/file", "foo/x", "foo.txt", "foo-bar", "foo0", "a", "z/z/z", "empty", "ü/ä"} {
		write(name, strings.Repeat(name+"\n", i*1000), 0o644)
	}
	write("program", "#!/bin/sh\n", 0o755)
	write("foo/program", "", 0o755)
	if err := os.Symlink("../foo", filepath.Join(root, "z/link")); err != nil {
		t.Fatal(err)
	}
	tree, err := exec.Command("nix-store", "--dump", root).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range []nix.HashAlgorithm{nix.SHA1, nix.SHA256} {
		t.Run(algorithm.String(), func(t *testing.T) {
			c := newPushed(t, cache.Options{})
			sum := gitOf(t, algorithm, root)
			c.publish(c.upload(addressed(t, tree, nix.GitMethod, algorithm, sum)))
			wrong := bytes.Clone(sum)
			wrong[0] ^= 1
			c.wantRefused(c.upload(addressed(t, tree, nix.GitMethod, algorithm, wrong)), cache.ErrInvalid, "CA")
			if c.sink.Open() != 0 {
				t.Errorf("%d NARs are still open", c.sink.Open())
			}
		})
	}
}

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

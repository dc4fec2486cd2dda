//go:build programs

package cache_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/nix"
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

package debstore

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePackages(t *testing.T) {
	// name, architecture, version, status, KiB, dependencies, provides
	const text = "b\tall\t1\tinstalled\t10\t, a (>= 1), absent | virtual:any (= 2)\t\n" +
		"a\tamd64\t2:1~x\tinstalled\t\t, b\t\n" + // a cycle with b
		"giant\tall\t1\tinstalled\t300001\t, \t\n" +
		"gone\tall\t1\tconfig-files\t1\t, \t\n" +
		"provider\tall\t1\tinstalled\t1\t, gone, giant, provider\tother (= 1), virtual (= 2)\n"
	packages, err := parsePackages(text)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range packages {
		for _, d := range p.depends {
			got[p.name] += d.name + " "
		}
	}
	if want := map[string]string{"a": "b ", "b": "provider "}; !cmp.Equal(want, got) {
		t.Errorf("dependencies (-want +got):\n%s", cmp.Diff(want, got))
	}
	if len(packages) != 3 {
		t.Errorf("got %d packages, want 3", len(packages))
	}
	if _, err := parsePackages("a\tb\n"); err == nil {
		t.Error("a line of two fields was taken")
	}
}

func TestOnlyFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"real", "real/empty"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"real/file": 0o644, "real.file": 0o755, "real/secret": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"merged": "real", "link": "nowhere"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	got := onlyFiles([]string{
		"diverted by x to: " + dir + "/real/file",
		dir, dir + "/merged", dir + "/merged/file", dir + "/real", dir + "/real.file", dir + "/real/secret",
		dir + "/real/empty", dir + "/link", dir + "/gone",
	})
	want := []string{dir + "/link", dir + "/merged/file", dir + "/real.file"}
	if !cmp.Equal(want, got) {
		t.Errorf("files (-want +got):\n%s", cmp.Diff(want, got))
	}
}

func TestStoreName(t *testing.T) {
	for in, want := range map[string]string{
		"libc6-2:2.36~rc1+b1":    "libc6-2-2.36-rc1+b1",
		strings.Repeat("x", 300): strings.Repeat("x", 211),
	} {
		if got := storeName(in); got != want {
			t.Errorf("storeName(%q) = %q, want %q", in, got, want)
		}
	}
}

// Another generation differs in its path hashes, and in nothing else.
func TestGenerations(t *testing.T) {
	shell := &debianPackage{name: "dash", arch: "amd64", version: "1", files: []string{"/usr/bin/sh"}}
	tool := &debianPackage{name: "tool", arch: "all", version: "1", depends: []*debianPackage{shell}}

	contents := func(generation int) (texts [][]byte, hashes []string) {
		paths := packagePaths([]*debianPackage{shell, tool}, Options{Generation: generation})
		tr := tree{path: paths[1].path, refs: paths[1].refs, owner: map[string]*storePath{"/usr/bin/sh": paths[0]}}
		for _, text := range []string{"\x7fELF and so on", "#!/bin/sh -e\nexit\n", "#!/bin/awk\n", "plain", ""} {
			texts = append(texts, tr.withRefs([]byte(text)))
		}
		for _, p := range paths {
			hashes = append(hashes, p.path.Hash().String())
		}
		return texts, hashes
	}
	first, oldHashes := contents(0)
	second, newHashes := contents(1)
	if want := "#!/nix/store/" + oldHashes[0] + "-dash-1/bin/sh -e\nexit\n"; string(first[1]) != want {
		t.Errorf("script is %q, want %q", first[1], want)
	}
	if !bytes.Contains(first[0], []byte(oldHashes[1]+"-tool-1/usr/lib:")) {
		t.Errorf("ELF file %q has no reference to its own path", first[0])
	}
	if cmp.Equal(first, second) {
		t.Error("two generations are equal")
	}
	for _, text := range second {
		for i := range newHashes {
			copy(text, bytes.ReplaceAll(text, []byte(newHashes[i]), []byte(oldHashes[i])))
		}
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("generations differ in more than hashes (-first +second):\n%s", diff)
	}
}

//go:build programs

package nar_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/nix/nar"
	"firn/nix/nar/nartest"
)

// TestListingAgainstNix compares with the listing that Nix writes into a binary cache.
func TestListingAgainstNix(t *testing.T) {
	root := t.TempDir()
	all := tree{dir(""), file("+?= ", "plus"), dir("a"), program("a/b", "hello\n"), dir("a/c"), file("a-", noise(300_000, 1)), file("caf\u00e9", ""), link("l", "/nix/store"), file("new\nline", "x"), file("q\"\\", "x")}
	path := all.make(t, filepath.Join(t.TempDir(), "tree"))
	features := []string{"--extra-experimental-features", "nix-command", "--store", root}
	out, err := nartest.Nix(t, nil, "nix", append(features, "store", "add-path", path)...)
	if err != nil {
		t.Fatal(err)
	}
	storePath := strings.TrimSpace(string(out))
	cache := t.TempDir()
	if _, err := nartest.Nix(t, nil, "nix", append(features, "copy", "--no-check-sigs", "--to", "file://"+cache+"?write-nar-listing=true&compression=none", storePath)...); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(cache, "*.ls"))
	if err != nil || len(files) != 1 {
		t.Fatalf("found listings %v, %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := nar.ParseListing(text)
	if err != nil {
		t.Fatal(err)
	}
	layout, err := nar.NewLayout(t.Context(), filepath.Join(root, storePath))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(theirs, layout.Listing()); diff != "" {
		t.Errorf("-Nix's +ours:\n%s", diff)
	}
}

package localstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestNoStore(t *testing.T) {
	if _, err := Open(t.Context(), Options{Root: t.TempDir()}); !errors.Is(err, ErrNoStore) {
		t.Errorf("Open where there is nothing: %v, want ErrNoStore", err)
	}
	// A store directory alone is none, either: that is how `nix copy` to a file system leaves it.
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "nix/store"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Root: root}); !errors.Is(err, ErrNoStore) {
		t.Errorf("Open without a database: %v, want ErrNoStore", err)
	}
}

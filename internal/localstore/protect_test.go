package localstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"firn/nix"
)

// Clients that are slow for hours keep no more than so many files open.
func TestEpochsBounded(t *testing.T) {
	stateDir, path := newState(t), rootOf(t)
	p := newProtector(stateDir, newDaemon("", nix.DefaultStoreDir), slog.New(slog.DiscardHandler))
	count := func() int {
		files, err := os.ReadDir(filepath.Join(stateDir, "temproots"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	var slow []func()
	for range 2 * maxEpochs {
		slow = append(slow, p.protect(t.Context(), path))
		p.expire(p.current)
	}
	if got := count(); got != maxEpochs {
		t.Errorf("%d files of roots, want %d", got, maxEpochs)
	}
	slow[0]() // its epoch ends, so that the last may too
	p.expire(p.current)
	for _, release := range slow[1:] {
		release()
	}
	if got := count(); got != 0 {
		t.Errorf("%d files of roots, want none", got)
	}
}

// A root that cannot be recorded is given up by all who wait to record one, and not tried by one after the other.
func TestRootsFail(t *testing.T) {
	p := newProtector(newState(t), newDaemon("", nix.DefaultStoreDir), slog.New(slog.DiscardHandler))
	path := rootOf(t)
	e, _ := p.begin(path)
	p.begin(path)
	roots := &failingRoots{}
	e.roots = roots
	for range 2 {
		if err := p.record(t.Context(), e, path); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("record: %v", err)
		}
	}
	if roots.adds != 1 {
		t.Errorf("it was tried %d times, want once", roots.adds)
	}
}

// failingRoots is a rootSet that has no room.
type failingRoots struct{ adds int }

func (r *failingRoots) add(context.Context, nix.StorePath) error {
	r.adds++
	return io.ErrShortWrite
}
func (*failingRoots) clear() error { return nil }
func (*failingRoots) close()       {}

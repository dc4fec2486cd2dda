package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"firn/internal/catalog/sqlite"
	"firn/internal/depot/blob"
	"firn/internal/depot/blob/dir"
	"firn/internal/depot/index"
)

// A state is a state directory with some packs, to each of which a NAR refers.
type state struct {
	*testing.T
	dir     string
	now     time.Time
	catalog *sqlite.Catalog
	packs   *dir.Store
}

func newState(t *testing.T) *state {
	t.Helper()
	s := &state{T: t, dir: t.TempDir(), now: time.Unix(1_700_000_000, 0)}
	var err error
	if s.packs, err = dir.Open(filepath.Join(s.dir, "depot/packs"), dir.Options{Make: true}); err != nil {
		t.Fatal(err)
	}
	s.catalog, err = sqlite.Open(t.Context(), filepath.Join(s.dir, "depot/catalog.db"), sqlite.Options{Now: func() time.Time { return s.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.catalog.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// add adds a NAR with a pack.
func (s *state) add(name string) {
	s.Helper()
	w, err := s.packs.Create(s.Context(), name)
	if err != nil {
		s.Fatal(err)
	}
	defer w.Abort()
	data := make([]byte, 1<<20)
	if _, err := w.Write(data); err != nil {
		s.Fatal(err)
	}
	if err := w.Commit(s.Context()); err != nil {
		s.Fatal(err)
	}
	n := &index.NewNAR{Pack: &index.Pack{Name: name, Size: int64(len(data))}}
	n.Hash, n.Packs, n.Size, n.FileSize = sha256.Sum256([]byte(name)), []string{name}, 1, 1
	if _, _, err := s.catalog.AddNAR(s.Context(), n); err != nil {
		s.Fatal(err)
	}
}

// sweep forgets and deletes all that nothing leads to, as a server does a day later.
func (s *state) sweep() {
	for range 4 {
		s.now = s.now.Add(24 * time.Hour)
		names, _, err := s.catalog.Sweep(s.Context(), s.now.Add(-time.Hour), 256)
		if err != nil {
			s.Error(err)
		}
		for _, name := range names {
			if err := s.packs.Delete(s.Context(), name); err != nil {
				s.Error(err)
			}
		}
	}
}

func (s *state) options(to string) Options {
	return Options{State: s.dir, Dir: to, Depot: "depot", Catalog: "catalog.db", Packs: "packs"}
}

// in returns the names of the packs of a backup, and of those that its catalog names.
func (s *state) in(to string) (there, named []string) {
	s.Helper()
	packs, err := dir.Open(filepath.Join(to, "depot/packs"), dir.Options{})
	if err != nil {
		s.Fatal(err)
	}
	if err := packs.List(s.Context(), func(i blob.Info) error { there = append(there, i.Name); return nil }); err != nil {
		s.Fatal(err)
	}
	c, err := sqlite.Open(s.Context(), filepath.Join(to, "depot/catalog.db"), sqlite.Options{})
	if err != nil {
		s.Fatal(err)
	}
	defer c.Close()
	sizes, err := c.Copy(s.Context(), filepath.Join(s.TempDir(), "copy"))
	if err != nil {
		s.Fatal(err)
	}
	for name := range sizes {
		named = append(named, name)
	}
	slices.Sort(there)
	slices.Sort(named)
	return there, named
}

// Packs that the server deletes while they are copied are no loss: the catalog is copied again.
func TestSweptDuringCopy(t *testing.T) {
	s := newState(t)
	for i := range 12 {
		s.add(fmt.Sprintf("pack%02d", i))
	}
	to := filepath.Join(t.TempDir(), "backup")
	opts := s.options(to)
	swept := false
	opts.Progress = func(int64, int64) {
		if !swept {
			swept = true
			s.sweep()
			s.add("later")
		}
	}
	report, err := Run(t.Context(), s.catalog, opts)
	if err != nil || len(report.Missing) > 0 {
		t.Fatalf("%v, missing %q", err, report.Missing)
	}
	there, named := s.in(to)
	if want := []string{"later"}; !slices.Equal(there, want) || !slices.Equal(named, want) {
		t.Errorf("it has %q and names %q, want %q", there, named, want)
	}
	if report.Removed == 0 || report.Copied < 2 {
		t.Errorf("nothing was copied before it went: %+v", report)
	}
}

// One that is ended in the middle has the catalog that it had, and all packs of that.
func TestCancelled(t *testing.T) {
	s := newState(t)
	s.add("first")
	to := filepath.Join(t.TempDir(), "backup")
	if _, err := Run(t.Context(), s.catalog, s.options(to)); err != nil {
		t.Fatal(err)
	}
	s.sweep()
	for i := range 12 {
		s.add(fmt.Sprintf("pack%02d", i))
	}
	opts := s.options(to)
	ctx, cancel := context.WithCancel(t.Context())
	opts.Progress = func(int64, int64) { cancel() }
	if _, err := Run(ctx, s.catalog, opts); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	there, named := s.in(to)
	if want := []string{"first"}; !slices.Equal(named, want) || !slices.Contains(there, "first") {
		t.Errorf("it has %q and names %q, want %q", there, named, want)
	}
	report, err := Run(t.Context(), s.catalog, s.options(to))
	if err != nil {
		t.Fatal(err)
	}
	if there, named := s.in(to); len(named) != 12 || !slices.Equal(there, named) || report.Removed != 1 {
		t.Errorf("then it has %q and names %q, and %d were removed", there, named, report.Removed)
	}
}

// Of two at once the second is refused.
func TestOneAtATime(t *testing.T) {
	s := newState(t)
	s.add("first")
	to := filepath.Join(t.TempDir(), "backup")
	opts := s.options(to)
	var second error
	opts.Progress = func(int64, int64) { _, second = Run(t.Context(), s.catalog, s.options(to)) }
	if _, err := Run(t.Context(), s.catalog, opts); err != nil {
		t.Fatal(err)
	}
	if second == nil {
		t.Error("a second one at the same time was not refused")
	}
}

// What lies on another disk, behind a link, keeps nothing that comes after it from being copied.
func TestLinks(t *testing.T) {
	s := newState(t)
	s.add("a")
	other := t.TempDir()
	depot := filepath.Join(s.dir, "depot")
	// The catalog is open: what it has open stays the same file.
	if err := os.Rename(depot, filepath.Join(other, "depot")); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(os.Symlink(filepath.Join(other, "depot"), depot), os.Symlink(other, filepath.Join(s.dir, "made")),
		os.WriteFile(filepath.Join(s.dir, "secret-key"), []byte("secret"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "backup")
	opts := s.options(to)
	opts.Remade = []string{"made"}
	if _, err := Run(t.Context(), s.catalog, opts); err != nil {
		t.Fatal(err)
	}
	if key, err := os.ReadFile(filepath.Join(to, "secret-key")); err != nil || string(key) != "secret" {
		t.Errorf("the backup has the key %q, %v", key, err)
	}
	if there, named := s.in(to); !slices.Equal(there, []string{"a"}) || !slices.Equal(named, []string{"a"}) {
		t.Errorf("the backup has packs %v, and names %v", there, named)
	}
	if _, err := os.Lstat(filepath.Join(to, "made")); err == nil {
		t.Error("what the server makes again is in the backup")
	}
}

// A run that ends before its catalog is in place has removed nothing that the older one names.
func TestCatalogInUse(t *testing.T) {
	s := newState(t)
	s.add("first")
	to := filepath.Join(t.TempDir(), "backup")
	if _, err := Run(t.Context(), s.catalog, s.options(to)); err != nil {
		t.Fatal(err)
	}
	s.sweep()
	s.add("second")
	used, err := sqlite.Open(t.Context(), filepath.Join(to, "depot/catalog.db"), sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(t.Context(), s.catalog, s.options(to))
	if closed := used.Close(); err == nil || closed != nil {
		t.Fatalf("while another process uses the backup: %v, %v", err, closed)
	}
	if there, named := s.in(to); !slices.Equal(named, []string{"first"}) || !slices.Contains(there, "first") {
		t.Errorf("it has %q and names %q", there, named)
	}
}

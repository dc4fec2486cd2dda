// Package indextest has what every database of the ports of package index must pass.
package indextest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/catalog"
	"firn/internal/catalog/catalogtest"
	"firn/internal/depot/index"
	"firn/internal/memo"
	"firn/nix"
)

// Test checks what the ports promise. open opens an empty database that has its time from a clock.
func Test(t *testing.T, open func(testing.TB, *catalogtest.Clock) (catalogtest.Catalog, index.Index)) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"NARs", (*suite).nars},
		{"NARs that are refused", (*suite).refusedNARs},
		{"NARs of little", (*suite).bareNARs},
		{"damaged NARs", (*suite).damaged},
		{"missing packs", (*suite).missing},
		{"uploads", (*suite).uploads},
		{"packs of several NARs", (*suite).sharedPacks},
		{"listings of several NARs", (*suite).sharedListings},
		{"uploads of NARs that are there", (*suite).uploadsOfKnown},
		{"uses of chunks", (*suite).usesOfChunks},
		{"NARs built on chunks", (*suite).builtNARs},
		{"paths that are referred to", (*suite).referredPaths},
		{"dangling references", (*suite).danglingReferences},
		{"paths on a basis", (*suite).bases},
		{"cycles that are closed at once", (*suite).racedCycles},
		{"references", (*suite).references},
		{"referrers", (*suite).referrers},
		{"paths", (*suite).paths},
		{"paths that are refused", (*suite).refusedPaths},
		{"all of a path", (*suite).wholePaths},
		{"signatures of what is elsewhere", (*suite).endorsements},
		{"paths in order", (*suite).order},
		{"deletions", (*suite).deletions},
		{"deletions of what is referred to", (*suite).referredDeletions},
		{"deletions of what files tell of", (*suite).fileDeletions},
		{"deletions while others publish", (*suite).racedDeletions},
		{"signatures", (*suite).signatures},
		{"paths that are withheld", (*suite).replaceWithheld},
		{"debug info", (*suite).debug},
		{"files", (*suite).files},
		{"updates of files", (*suite).updates},
		{"updates of files at once", (*suite).racedUpdates},
		{"sweeps", (*suite).sweeps},
		{"packs that are soon swept", (*suite).leavingPacks},
		{"sweeps of uploads", (*suite).sweepUploads},
		{"sweeps of a few", (*suite).sweepLimit},
		{"thin packs", (*suite).thinPacks},
		{"moves", (*suite).moves},
		{"retired packs", (*suite).retiredPacks},
		{"rewritten packs", (*suite).rewrittenPacks},
		{"moves that come too late", (*suite).lateMoves},
		{"deleting a cache", (*suite).deleteCache},
		{"versions", (*suite).versions},
		{"many writers", (*suite).many},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &suite{T: t, clock: catalogtest.NewClock()}
			s.c.Catalog, s.c.Index = open(t, s.clock)
			test.run(s)
		})
	}
}

type suite struct {
	*testing.T
	clock *catalogtest.Clock
	c     ports
}

// ports are those that a cache needs: what is published is in one.
type ports struct {
	catalogtest.Catalog
	index.Index
}

// deletePath removes a path, whatever refers to it.
func (s *suite) deletePath(cache catalog.CacheID, hash nix.PathHash) error {
	_, err := s.c.Delete(s.Context(), &index.Deletion{Cache: cache, Paths: []nix.PathHash{hash}, Referrers: index.KeepReferrers})
	return err
}

func sum(text string) catalog.Sum { return sha256.Sum256([]byte(text)) }

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) want(err, target error) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Errorf("error %v, want %v", err, target)
	}
}

func (s *suite) equal(got, want any) {
	s.Helper()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b nix.SecretKey) bool { return a.Reveal() == b.Reveal() }),
		cmp.Comparer(func(a, b nix.StorePath) bool { return a == b }), cmp.Comparer(func(a, b nix.Hash) bool { return a == b }),
		cmp.Comparer(func(a, b nix.Signature) bool { return a == b }), cmp.Comparer(func(a, b nix.ContentAddress) bool { return a == b })); diff != "" {
		s.Errorf("-want +got:\n%s", diff)
	}
}

func (s *suite) cache(name string) catalog.CacheID {
	s.Helper()
	c := &catalog.Cache{Name: name, StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), c))
	return c.ID
}

// nar adds a NAR of one shared chunk of its own, and those of others, under an upload if cache is not 0.
func (s *suite) nar(name string, cache catalog.CacheID, others ...string) (index.NARID, *index.NewNAR) {
	s.Helper()
	n := newNAR(name, cache, others...)
	id, added, err := s.c.AddNAR(s.Context(), n)
	s.ok(err)
	if !added {
		s.Errorf("NAR %s is not added", name)
	}
	return id, n
}

func errOf[A, B any](_ A, _ B, err error) error { return err }

func (s *suite) files() {
	a, b := s.cache("a"), s.cache("b")
	s.ok(s.c.PutFile(s.Context(), a, &index.File{Key: "log/x", Content: []byte("one")}))
	content, err := s.c.File(s.Context(), a, "log/x")
	s.ok(err)
	s.equal(string(content), "one")
	s.ok(s.c.PutFile(s.Context(), a, &index.File{Key: "log/x", Content: []byte("three")}))
	content, err = s.c.File(s.Context(), a, "log/x")
	s.ok(err)
	s.equal(string(content), "three")
	_, err = s.c.File(s.Context(), b, "log/x")
	s.want(err, catalog.ErrNotFound)
	s.want(s.c.PutFile(s.Context(), 999, &index.File{Key: "log/x"}), catalog.ErrGone)
	s.ok(s.c.PutFile(s.Context(), a, &index.File{Key: "log/empty"}))
	for i := range 410 {
		s.ok(s.c.PutFile(s.Context(), b, &index.File{Key: fmt.Sprintf("k/%03d", i)}))
	}
	s.ok(s.c.PutFile(s.Context(), b, &index.File{Key: "j"}))
	s.ok(s.c.PutFile(s.Context(), b, &index.File{Key: "l"}))
	var keys []string
	for key, err := range s.c.AllFiles(s.Context(), b, "k/") {
		s.ok(err)
		keys = append(keys, key)
	}
	if len(keys) != 410 || !slices.IsSorted(keys) || keys[0] != "k/000" {
		s.Errorf("%d keys", len(keys))
	}
}

func (s *suite) updates() {
	a := s.cache("a")
	f := &index.File{Key: "k", Content: []byte("not this")}
	update := func(cache catalog.CacheID, old, content string, result error) error {
		s.Helper()
		return s.c.UpdateFile(s.Context(), cache, f, index.Basis{}, func(got []byte) ([]byte, error) {
			if string(got) != old {
				s.Errorf("the old content is %q, want %q", got, old)
			}
			if content == "nil" {
				return nil, result
			}
			return []byte(content), result
		})
	}
	want := func(content string) {
		s.Helper()
		got, err := s.c.File(s.Context(), a, "k")
		s.ok(err)
		s.equal(string(got), content)
	}
	refused := errors.New("refused")
	if err := update(a, "", "x", refused); err != refused {
		s.Errorf("an update that fails: %v, want its own error", err)
	}
	_, err := s.c.File(s.Context(), a, "k")
	s.want(err, catalog.ErrNotFound)
	s.ok(update(a, "", "nil", nil))
	_, err = s.c.File(s.Context(), a, "k")
	s.want(err, catalog.ErrNotFound)
	s.want(update(999, "", "x", nil), catalog.ErrGone)
	s.ok(update(a, "", "one", nil))
	want("one")
	s.ok(update(a, "one", "two", nil))
	s.ok(update(a, "two", "nil", nil))
	s.ok(update(a, "two", "two", nil))
	if err := update(a, "two", "three", refused); err != refused {
		s.Errorf("an update that fails: %v, want its own error", err)
	}
	want("two")

	// A file that is there and empty is not one that is missing.
	s.ok(s.c.PutFile(s.Context(), a, &index.File{Key: "k"}))
	s.ok(s.c.UpdateFile(s.Context(), a, f, index.Basis{}, func(old []byte) ([]byte, error) {
		if old == nil || len(old) > 0 {
			s.Errorf("the content of an empty file is %#v", old)
		}
		return []byte("three"), nil
	}))
	want("three")
}

// racedUpdates all take effect, each once.
func (s *suite) racedUpdates() {
	a := s.cache("a")
	const writers, each = 8, 20
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := s.c.UpdateFile(s.Context(), a, &index.File{Key: "k"}, index.Basis{}, func(old []byte) ([]byte, error) {
					return append(bytes.Clone(old), 'x'), nil
				}); err != nil {
					s.Error(err)
				}
			}
		})
	}
	wg.Wait()
	content, err := s.c.File(s.Context(), a, "k")
	s.ok(err)
	s.equal(len(content), writers*each)
}

func (s *suite) versions() {
	s.ok(s.c.Check(s.Context()))
	a := s.cache("a")
	before := s.c.Version(s.Context())
	if before.Freshness == memo.Unknown {
		return
	}
	if !before.Hit(s.c.Version(s.Context())) {
		s.Error("the version changes by itself")
	}
	s.ok(s.c.PutFile(s.Context(), a, &index.File{Key: "k"}))
	if before.Hit(s.c.Version(s.Context())) {
		s.Error("the version stays after a commit")
	}
}

func (s *suite) many() {
	a := s.cache("a")
	var group sync.WaitGroup
	ctx := context.WithoutCancel(s.Context())
	for i := range 16 {
		group.Go(func() {
			for j := range 8 {
				name := fmt.Sprint("n", i, "-", j)
				id, _, err := s.c.AddNAR(ctx, newNAR(name, a))
				if err == nil {
					_, _, err = s.c.Publish(ctx, a, path(name, id, name), nil, Unchecked())
				}
				if err == nil {
					_, err = s.c.Path(ctx, a, storePath(name).Hash())
				}
				// One that fails does no harm to those that share its transaction.
				if _, _, gone := s.c.AddNAR(ctx, newNAR("x"+name, a, "gone")); !errors.Is(gone, catalog.ErrGone) {
					s.Errorf("error %v, want ErrGone", gone)
				}
				if err != nil {
					s.Error(err)
				}
			}
		})
	}
	group.Wait()
	if n := len(s.all(a, false)); n != 128 {
		s.Errorf("%d paths, want 128", n)
	}
}

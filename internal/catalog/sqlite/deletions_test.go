package sqlite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/internal/depot/index/indextest"
	"firn/nix"
)

// pushReferring publishes a path with the references given.
func pushReferring(ctx context.Context, c *Catalog, cache catalog.CacheID, name string, refs ...nix.StorePath) (nix.StorePath, error) {
	_, p := indextest.Sample(name, cache)
	b, err := c.Basis(ctx, cache, p.Info.Path.Hash())
	if err != nil {
		return nix.StorePath{}, err
	}
	b.Visited = map[nix.PathHash]bool{} // there are no cycles
	return pushOn(ctx, c, cache, b, name, refs...)
}

// pushOn publishes a path on a basis.
func pushOn(ctx context.Context, c *Catalog, cache catalog.CacheID, b index.Basis, name string, refs ...nix.StorePath) (nix.StorePath, error) {
	n, p := indextest.Sample(name, cache)
	id, _, err := c.AddNAR(ctx, n)
	if err != nil {
		return nix.StorePath{}, err
	}
	p.NAR, p.Info.References = id, refs
	_, _, err = c.Publish(ctx, cache, p, nil, b)
	return p.Info.Path, err
}

// fillReferring publishes n paths that refer to one.
func fillReferring(t testing.TB, c *Catalog, cache catalog.CacheID, n int, to nix.StorePath) {
	t.Helper()
	hash := to.Hash()
	if err := c.write(t.Context(), func(x *change) error {
		var ref int64
		if _, err := x.get("INSERT INTO referenced (cache, hash, name) VALUES (?, ?, ?) RETURNING id", []any{int64(cache), hash[:], to.Name()}, &ref); err != nil {
			return err
		}
		return errors.Join(x.exec(fmt.Sprintf(`WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < %d)
			INSERT INTO paths (cache, hash, name, nar, deriver, sigs, ca, fields, registered, published, publisher)
			SELECT %d, unhex(printf('%%040x', i)), 'user', (SELECT min(id) FROM nars), '', '', '', '', 1700000000, 1700000000, '' FROM numbers`, n, cache)),
			x.exec("INSERT INTO path_refs SELECT id, ? FROM paths WHERE name = 'user'", ref))
	}); err != nil {
		t.Fatal(err)
	}
}

// interrupted has something happen before the first transaction of a deletion, and after it.
type interrupted struct {
	index.Deletions
	before func()
	after  func(gone []index.Leaving)
}

func (i *interrupted) DeletePaths(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash, may func(index.Reference) bool) ([]index.Leaving, error) {
	if before := i.before; before != nil {
		i.before = nil
		before()
	}
	gone, err := i.Deletions.DeletePaths(ctx, cache, hashes, may)
	if after := i.after; after != nil {
		i.after = nil
		after(gone)
	}
	return gone, err
}

// deleteOne deletes a path, whatever refers to it.
func deleteOne(c *Catalog, cache catalog.CacheID, hash nix.PathHash) error {
	_, err := index.Of(c).Delete(context.Background(), &index.Deletion{Cache: cache, Paths: []nix.PathHash{hash}, Referrers: index.KeepReferrers})
	return err
}

// lacking returns the paths of a cache that lack a reference.
func lacking(t *testing.T, c *Catalog, cache catalog.CacheID) (lack []string) {
	t.Helper()
	there := make(map[nix.StorePath]bool)
	refs := make(map[nix.StorePath][]nix.StorePath)
	for p, err := range c.AllPaths(t.Context(), cache) {
		if err != nil {
			t.Fatal(err)
		}
		there[p.Info.Path], refs[p.Info.Path] = true, p.Info.References
	}
	for path, refs := range refs {
		for _, ref := range refs {
			if !there[ref] {
				lack = append(lack, fmt.Sprintf("%s lacks %s", path, ref))
			}
		}
	}
	return lack
}

// What goes in many transactions leaves nothing that lacks a reference, also while another process publishes more that refers to it.
func TestDeleteMany(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c, other := openAt(t, path, Options{}), openAt(t, path, Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	library, err := pushReferring(t.Context(), c, cache, "library")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := pushReferring(t.Context(), c, cache, "kept")
	if err != nil {
		t.Fatal(err)
	}
	const many = 20*100 + 7
	fillReferring(t, c, cache, many, library)

	var done atomic.Bool
	var published atomic.Int64
	var longest time.Duration
	var pushing sync.WaitGroup
	pushing.Go(func() {
		last := library
		for i := 0; !done.Load(); i++ {
			name := fmt.Sprint("program-", i)
			b, err := other.Basis(context.Background(), cache, nix.PathHash{})
			if err != nil {
				t.Error(err)
			}
			for _, ref := range []nix.StorePath{library, last} { // as a door looks for them first
				if _, err := other.Path(context.Background(), cache, ref.Hash()); err != nil {
					last = kept
				}
			}
			began := time.Now()
			pushed, err := pushOn(context.Background(), other, cache, b, name, kept, last)
			longest = max(longest, time.Since(began))
			switch {
			case err == nil:
				last = pushed
				published.Add(1)
			case errors.Is(err, catalog.ErrChanged):
				last = kept
			default:
				t.Error(err)
			}
		}
	})
	for published.Load() < 10 {
		time.Sleep(time.Millisecond)
	}
	gone, err := index.Of(c).Delete(t.Context(), &index.Deletion{Cache: cache, Paths: []nix.PathHash{library.Hash()}, Referrers: index.DeleteReferrers})
	done.Store(true)
	pushing.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d paths are gone, %d were pushed, one of them in %v", len(gone.Paths), published.Load(), longest)
	if len(gone.Paths) < many+11 {
		t.Errorf("%d paths are gone", len(gone.Paths))
	}
	if lack := lacking(t, c, cache); len(lack) > 0 {
		t.Error(strings.Join(lack, "\n"))
	}
}

// What is published after the search is found as well.
func TestDeleteWhatComesLate(t *testing.T) {
	c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	publish := func(name string, refs ...nix.StorePath) nix.StorePath {
		t.Helper()
		path, err := pushReferring(t.Context(), c, cache, name, refs...)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	remove := func(path nix.StorePath) {
		t.Helper()
		if err := deleteOne(c, cache, path.Hash()); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		late func(library, early nix.StorePath) // early refers to what was deleted
		gone int
	}{
		{"nothing", func(_, _ nix.StorePath) {}, 1},
		{"a referrer", func(library, _ nix.StorePath) { publish("late", library) }, 2},
		{"a chain of them", func(library, _ nix.StorePath) { publish("later", publish("late", library)) }, 3},
		{"where the last path was", func(library, early nix.StorePath) {
			remove(early)
			publish("late", library)
		}, 2},
		{"what was missing to an early one", func(library, _ nix.StorePath) { publish("missing", library) }, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			library := publish("library")
			missing := publish("missing")
			remove(missing)
			early := publish("early", missing)
			d := &index.Deletion{Cache: cache, Paths: []nix.PathHash{library.Hash()}, Referrers: index.DeleteReferrers}
			ix := index.Of(c)
			ix.Deletions = &interrupted{Deletions: c, before: func() { test.late(library, early) }}
			gone, err := ix.Delete(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			if len(gone.Paths) != test.gone {
				t.Errorf("gone are %v", gone.Paths)
			}
			for _, path := range []nix.StorePath{early, library} {
				_ = deleteOne(c, cache, path.Hash())
			}
		})
	}
}

// What comes again between two transactions goes as well.
func TestDeleteWhatComesAgain(t *testing.T) {
	c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	library, err := pushReferring(t.Context(), c, cache, "library")
	if err != nil {
		t.Fatal(err)
	}
	fillReferring(t, c, cache, 100+1, library)
	d := &index.Deletion{Cache: cache, Paths: []nix.PathHash{library.Hash()}, Referrers: index.DeleteReferrers}
	ix := index.Of(c)
	ix.Deletions = &interrupted{Deletions: c, after: func(gone []index.Leaving) {
		n, p := indextest.Sample("again", cache)
		if p.NAR, _, err = c.AddNAR(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		p.Info.Path, p.Info.References = gone[0].Path, []nix.StorePath{library}
		if _, _, err := c.Publish(t.Context(), cache, p, nil, indextest.Unchecked()); err != nil {
			t.Fatal(err)
		}
	}}
	if _, err := ix.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	for p := range c.AllPaths(t.Context(), cache) {
		t.Errorf("%s is still there", p.Info.Path)
	}
}

// One that is cut off says what it has deleted, has done so with the logs of that, has left nothing that lacks a reference, and can be gone on with.
func TestDeletionCutOff(t *testing.T) {
	c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	library, err := pushReferring(t.Context(), c, cache, "library")
	if err != nil {
		t.Fatal(err)
	}
	const many = 20 * 100
	fillReferring(t, c, cache, many, library)
	if err := c.write(t.Context(), func(x *change) error { // each has the log of a derivation of its own
		return errors.Join(x.exec("UPDATE paths SET deriver = printf('%032d-user.drv', id) WHERE name = 'user'"),
			x.exec("INSERT INTO files (cache, key, content) SELECT cache, 'log/' || deriver, x'00' FROM paths WHERE name = 'user'"))
	}); err != nil {
		t.Fatal(err)
	}
	logs := func() (n int) {
		t.Helper()
		for _, err := range c.AllFiles(t.Context(), cache, "log/") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	count := func() int64 {
		t.Helper()
		n, err := c.CountIn(context.Background(), cache)
		if err != nil {
			t.Error(err)
		}
		return n.Paths
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for count() == many+1 {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	d := &index.Deletion{Cache: cache, Paths: []nix.PathHash{library.Hash()}, Referrers: index.DeleteReferrers}
	gone, err := index.Of(c).Delete(ctx, d)
	if !errors.Is(err, context.Canceled) || gone == nil {
		t.Fatalf("cut off: %+v, %v", gone, err)
	}
	left := count()
	if left+int64(len(gone.Paths)) != many+1 {
		t.Errorf("%d are gone, %d left", len(gone.Paths), left)
	}
	if n := logs(); int64(n) != left-1 {
		t.Errorf("%d logs are left, of %d paths", n, left-1)
	}
	if lack := lacking(t, c, cache); len(lack) > 0 {
		t.Error(strings.Join(lack, "\n"))
	}
	if _, err := index.Of(c).Delete(t.Context(), d); err != nil || count() != 0 || logs() != 0 {
		t.Errorf("gone on with: %d left, with %d logs, %v", count(), logs(), err)
	}
}

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"firn/internal/catalog"
	"firn/internal/catalog/catalogtest"
	"firn/internal/depot/index"
	"firn/internal/depot/index/indextest"
	"firn/internal/memo"
)

func TestCatalog(t *testing.T) {
	open := func(t testing.TB, clock *catalogtest.Clock) *Catalog {
		c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{Now: clock.Now})
		t.Cleanup(func() { checkFile(t, c) })
		return c
	}
	catalogtest.Test(t, func(t testing.TB, clock *catalogtest.Clock) catalogtest.Catalog {
		return catalogtest.Of(open(t, clock))
	})
	indextest.Test(t, func(t testing.TB, clock *catalogtest.Clock) (catalogtest.Catalog, index.Index) {
		c := open(t, clock)
		return catalogtest.Of(c), index.Of(c)
	})
}

func TestOpen(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("modes and odd names", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "a b?c%20#d.db")
		c := openAt(t, path, Options{})
		if _, err := addCache(t.Context(), c, "main"); err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{"", "-wal", "-shm"} {
			info, err := os.Stat(path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != 0o600 {
				t.Errorf("mode of %s is %v", path+suffix, info.Mode())
			}
		}
	})
	t.Run("newer", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "catalog.db")
		c, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.write(t.Context(), func(x *change) error {
			return x.exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)")
		}); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), path, Options{}); err == nil || !strings.Contains(err.Error(), "written by a newer firn") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("something else", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "catalog.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), path, Options{}); err == nil || !strings.Contains(err.Error(), "not a database") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no directory", func(t *testing.T) {
		if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "x", "catalog.db"), Options{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("twice", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "catalog.db")
		a := openAt(t, path, Options{})
		b, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		before := a.Version(t.Context())
		if _, err := addCache(t.Context(), b, "main"); err != nil {
			t.Fatal(err)
		}
		if after := a.Version(t.Context()); before.Hit(after) || after.Freshness != memo.Current {
			t.Error("the version stays")
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if a.Version(t.Context()).Freshness != memo.Current {
			t.Error("closing one catalog takes the version from the other")
		}
	})
	t.Run("closed", func(t *testing.T) {
		c, err := Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := addCache(t.Context(), c, "main"); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("write: error %v", err)
		}
		if err := c.Check(t.Context()); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("read: error %v", err)
		}
		if c.Version(t.Context()).Freshness != memo.Unknown {
			t.Error("a closed catalog has a version")
		}
	})
}

// While another process is writing, reading goes on, and writing is refused after a while; later all is well.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := openAt(t, path, Options{Wait: 20 * time.Millisecond})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	if err := push(t.Context(), c, cache, "one"); err != nil {
		t.Fatal(err)
	}
	other, err := sql.Open("sqlite", dataSource(path, time.Second, "_txlock=immediate"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "UPDATE caches SET priority = 5"); err != nil {
		t.Fatal(err)
	}
	_, p := indextest.Sample("one", cache)
	if _, err := c.Path(t.Context(), cache, p.Info.Path.Hash()); err != nil {
		t.Errorf("read: %v", err)
	}
	if err := push(t.Context(), c, cache, "two"); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("write: error %v", err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := push(t.Context(), c, cache, "two"); err != nil {
		t.Errorf("write: %v", err)
	}
}

// Where another process writes without a break, others have their turn.
func TestBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c, other := openAt(t, path, Options{}), openAt(t, path, Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	var transactions atomic.Int64
	var writing sync.WaitGroup
	for range 2 { // so that one waits while the other is written
		writing.Go(func() {
			for ; !done.Load(); transactions.Add(1) {
				if err := other.write(context.Background(), func(*change) error {
					time.Sleep(20 * time.Millisecond)
					return nil
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 3 {
		for was := transactions.Load(); transactions.Load() < was+3 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		if err := push(t.Context(), c, cache, fmt.Sprint(i)); err != nil {
			t.Error(err)
		}
	}
	done.Store(true)
	writing.Wait()
}

// A full disk fails what is under way, and nothing else.
func TestFull(t *testing.T) {
	c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	setPages := func(n int) {
		t.Helper()
		if err := c.write(t.Context(), func(x *change) error {
			_, err := x.get(fmt.Sprintf("PRAGMA max_page_count = %d", n), nil, new(int64))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	var pages int
	for round := range 3 {
		if err := c.queryRow(t.Context(), "PRAGMA page_count").scan(&pages, nil); err != nil {
			t.Fatal(err)
		}
		setPages(pages + 40)
		var mu sync.Mutex
		var good []string
		var group sync.WaitGroup
		for i := range 16 {
			group.Go(func() {
				for j := 0; ; j++ {
					name := fmt.Sprintf("p%d-%d-%d", round, i, j)
					if err := push(t.Context(), c, cache, name); err != nil {
						if !errors.Is(err, catalog.ErrFull) {
							t.Error(err)
						}
						return
					}
					mu.Lock()
					good = append(good, name)
					mu.Unlock()
				}
			})
		}
		group.Wait()
		setPages(1 << 30)
		if err := push(t.Context(), c, cache, fmt.Sprint("after", round)); err != nil {
			t.Fatal(err)
		}
		for _, name := range good {
			_, p := indextest.Sample(name, cache)
			if _, err := c.Path(t.Context(), cache, p.Info.Path.Hash()); err != nil {
				t.Error(err)
			}
		}
		if len(good) == 0 {
			t.Error("nothing was written")
		}
	}
	checkFile(t, c)
}

// An iteration has no transaction open while it is used.
func TestIterations(t *testing.T) {
	c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	const many = page + 50
	for i := range many {
		group.Go(func() {
			if err := push(t.Context(), c, cache, fmt.Sprint("p", i)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	idle := func() {
		t.Helper()
		if used := c.reads.Stats().InUse; used != 0 {
			t.Errorf("%d connections in use", used)
		}
	}
	seen := 0
	for p, err := range c.AllPaths(t.Context(), cache) {
		if err != nil {
			t.Fatal(err)
		}
		idle()
		if err := deleteOne(c, cache, p.Info.Path.Hash()); err != nil {
			t.Fatal(err)
		}
		seen++
	}
	if seen != many {
		t.Errorf("%d paths, want %d", seen, many)
	}
	seen = 0
	for _, err := range c.AllNARs(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		idle()
		seen++
	}
	if seen != many {
		t.Errorf("%d NARs, want %d", seen, many)
	}
}

// A sweep goes on with deleting a cache where that was cut off, and nobody sees the cache meanwhile.
func TestHalfDeleted(t *testing.T) {
	c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{})
	var caches []catalog.CacheID
	for _, name := range []string{"a", "b"} {
		cache, err := addCache(t.Context(), c, name)
		if err != nil {
			t.Fatal(err)
		}
		caches = append(caches, cache)
		for i := range 5 {
			if err := push(t.Context(), c, cache, fmt.Sprint("p", i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.PutFile(t.Context(), cache, &index.File{Key: "log/x"}); err != nil {
			t.Fatal(err)
		}
	}
	// As far as DeleteCache goes in its first transaction.
	if err := c.write(t.Context(), func(x *change) error {
		return x.exec("UPDATE caches SET name = NULL WHERE id = ?", int64(caches[0]))
	}); err != nil {
		t.Fatal(err)
	}
	if all, err := c.AllCaches(t.Context()); err != nil || len(all) != 1 || all[0].Name != "b" {
		t.Errorf("caches %v, %v", all, err)
	}
	if err := c.PutFile(t.Context(), caches[0], &index.File{Key: "log/y"}); !errors.Is(err, catalog.ErrGone) {
		t.Errorf("put into a deleted cache: %v", err)
	}
	if err := c.DeleteCache(t.Context(), caches[0]); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("delete it again: %v", err)
	}
	if _, err := addCache(t.Context(), c, "a"); err != nil {
		t.Error(err)
	}
	for more := true; more; {
		var err error
		if _, more, err = c.Sweep(t.Context(), time.Now().Add(-time.Hour), 2); err != nil {
			t.Fatal(err)
		}
	}
	var left int
	if err := c.queryRow(t.Context(), "SELECT (SELECT count(*) FROM paths) + (SELECT count(*) FROM uploads) + (SELECT count(*) FROM files) + (SELECT count(*) FROM caches)").
		scan(&left, nil); err != nil || left != 5+5+1+2 {
		t.Errorf("%d records left, %v", left, err)
	}
	checkFile(t, c)
}

// What a catalog adds to recipes and listings stays small: the second generation of a store that differs in hashes only
// has a path, an upload, a NAR, a pack, and two packs that it refers to, but hardly any chunk of its own.
func TestSize(t *testing.T) {
	const paths, recipeSize, listingSize = 720, 2000, 600
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := openAt(t, path, Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	size := func() (pages int64) {
		t.Helper()
		if err := c.queryRow(t.Context(), "PRAGMA page_count").scan(&pages, nil); err != nil {
			t.Fatal(err)
		}
		return pages * 4096
	}
	empty := size()
	var group sync.WaitGroup
	queue := make(chan int)
	for range 16 {
		group.Go(func() {
			for i := range queue {
				n, p := indextest.Sample(fmt.Sprintf("a-name-of-usual-length-%d", i), cache)
				n.Recipe, n.Listing = make([]byte, recipeSize), make([]byte, listingSize)
				n.Pack.Name = fmt.Sprintf("%032d", i)
				n.Packs = []string{n.Pack.Name, n.Pack.Name}
				n.Chunks = nil
				id, _, err := c.AddNAR(t.Context(), n)
				if err != nil {
					t.Error(err)
				}
				p.NAR = id
				if _, _, err := c.Publish(t.Context(), cache, p, nil, indextest.Unchecked()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range paths {
		queue <- i
	}
	close(queue)
	group.Wait()
	each := (size() - empty) / paths
	t.Logf("%d bytes a path", each)
	if each > 2*(recipeSize+listingSize) {
		t.Errorf("%d bytes a path with a recipe of %d and a listing of %d", each, recipeSize, listingSize)
	}
}

// A catalog of an older version is brought up to date, but only when that is allowed, and by one of
// several that try.
func TestOlder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	openAt(t, path, Options{}).Close()
	first, err := migrations.ReadFile("migrations/00001_first.sql")
	if err != nil {
		t.Fatal(err)
	}
	steps := fstest.MapFS{
		"00001_first.sql":  {Data: first},
		"00002_second.sql": {Data: []byte("-- +goose Up\nCREATE TABLE second (x INTEGER) STRICT;\n")},
	}
	refusal := errors.New("not under a server")
	if _, err := Open(t.Context(), path, Options{steps: steps, Older: func() (bool, error) { return false, refusal }}); !errors.Is(err, refusal) {
		t.Errorf("error %v, want %v", err, refusal)
	}
	var asked atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			c, err := Open(t.Context(), path, Options{steps: steps, Older: func() (bool, error) { return asked.Add(1) > 2, nil }})
			if err != nil {
				t.Error(err)
				return
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if asked.Load() < 3 {
		t.Errorf("it was brought up to date after %d questions", asked.Load())
	}
	if _, err := Open(t.Context(), path, Options{}); err == nil || !strings.Contains(err.Error(), "a newer firn") {
		t.Errorf("a catalog of a newer version: %v", err)
	}
}

package registry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/depot"
	"firn/internal/depot/blob/dir"
	"firn/internal/depot/index"
	"firn/internal/registry"
	"firn/nix"
)

// A tester is a server's state, and a second process that changes it.
type tester struct {
	*testing.T
	path  string
	admin *sqlite.Catalog
	log   *bytes.Buffer
}

func newTester(t *testing.T) *tester {
	path := filepath.Join(t.TempDir(), "catalog.db")
	return &tester{t, path, openCatalog(t, path), &bytes.Buffer{}}
}

func openCatalog(t *testing.T, path string) *sqlite.Catalog {
	t.Helper()
	c, err := sqlite.Open(t.Context(), path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// open opens the directory as a server does.
func (t *tester) open(opts registry.Options) (*registry.Registry, error) {
	t.Helper()
	cat := openCatalog(t.T, t.path)
	blobs, err := dir.Open(filepath.Join(filepath.Dir(t.path), "packs"), dir.Options{Make: true})
	if err != nil {
		t.Fatal(err)
	}
	d := depot.New(cat, index.Of(cat), blobs, depot.Options{})
	t.Cleanup(func() { d.Close() })
	var storeDir nix.StoreDir
	if opts.Local != nil {
		storeDir = opts.Local.StoreDir()
	}
	if err := registry.Prepare(t.Context(), cat, d, storeDir); err != nil {
		return nil, err
	}
	opts.Logger = slog.New(slog.NewTextHandler(t.log, nil))
	return registry.New(t.Context(), cat, d, opts)
}

func (t *tester) mustOpen(opts registry.Options) *registry.Registry {
	t.Helper()
	d, err := t.open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// add makes a cache as the other process.
func (t *tester) add(name string, edit func(*catalog.Cache)) *catalog.Cache {
	t.Helper()
	r := registry.Record(name)
	if edit != nil {
		edit(r)
	}
	if err := registry.Check(r); err != nil {
		t.Fatal(err)
	}
	if err := t.admin.AddCache(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

func (t *tester) set(r *catalog.Cache, edit func(*catalog.Cache)) *catalog.Cache {
	t.Helper()
	changed := *r
	edit(&changed)
	if err := t.admin.SetCache(t.Context(), r, &changed); err != nil {
		t.Fatal(err)
	}
	return &changed
}

// named returns the cache of this name, nil if there is none.
func (t *tester) named(d cache.Registry, name string) *cache.Cache {
	t.Helper()
	c, err := d.ByName(t.Context(), name)
	if err != nil && !errors.Is(err, cache.ErrNotFound) {
		t.Fatal(err)
	}
	return c
}

func (t *tester) wantHost(d cache.Registry, host, want string) {
	t.Helper()
	c, err := d.ByHost(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name() != want {
		t.Errorf("host %q leads to %s, want %s", host, c.Name(), want)
	}
}

func newKey(t *testing.T, name string) nix.SecretKey {
	t.Helper()
	key, err := nix.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// The first start makes main, later ones and others at the same moment find it.
func TestMainCache(t0 *testing.T) {
	t := newTester(t0)
	key := newKey(t0, "own-1")
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			d, err := t.open(registry.Options{Keys: []nix.SecretKey{key}, Priority: 7})
			if err != nil {
				t.Error(err)
				return
			}
			c, err := d.ByHost(t.Context(), "whatever:5000")
			if err != nil {
				t.Error(err)
				return
			}
			if c.Name() != cache.Main || c.Info().Priority != 7 || !slices.Equal(c.PublicKeys(), []nix.PublicKey{key.Public()}) || !c.Keeps() {
				t.Errorf("main is %s with %+v and keys %v", c.Name(), c.Info(), c.PublicKeys())
			}
		})
	}
	group.Wait()
	records, err := t.admin.AllCaches(t.Context())
	if err != nil || len(records) != 1 || !slices.Equal(records[0].Sources, []string{"local", "depot"}) || len(records[0].Keys) != 0 {
		t.Fatalf("the records are %v, %v", records, err)
	}

	// The keys of the record sign too, where they have names of their own.
	other := newKey(t0, "other-1")
	t.set(records[0], func(r *catalog.Cache) { r.Keys = []nix.SecretKey{newKey(t0, "own-1"), other} })
	d := t.mustOpen(registry.Options{Keys: []nix.SecretKey{key}})
	if got := t.named(d, cache.Main).PublicKeys(); !slices.Equal(got, []nix.PublicKey{key.Public(), other.Public()}) {
		t.Errorf("main is signed by %v", got)
	}
}

// What another process changes is seen at the next request.
func TestChanges(t0 *testing.T) {
	t := newTester(t0)
	d := t.mustOpen(registry.Options{})
	main := t.named(d, cache.Main)
	if c := t.named(d, "team"); c != nil {
		t.Error("there is a cache that nobody has made")
	}
	key := newKey(t0, "team-1")
	r := t.add("team", func(r *catalog.Cache) {
		r.Private, r.Priority, r.Keys, r.Hosts = true, 41, []nix.SecretKey{key}, []string{"team.example.org"}
		r.StoreDir = "/other/store"
	})
	team := t.named(d, "team")
	if team == nil {
		t.Fatal("a cache that was made is not there")
	}
	if !team.Private() || team.Info().Priority != 41 || team.Info().StoreDir != "/other/store" || !slices.Equal(team.PublicKeys(), []nix.PublicKey{key.Public()}) {
		t.Errorf("it has %+v and keys %v", team.Info(), team.PublicKeys())
	}
	for _, host := range []string{"team.example.org", "TEAM.Example.org:8080", "team.example.org."} {
		t.wantHost(d, host, "team")
	}
	for _, host := range []string{"", "example.org", "team.example.org.evil", "[::1]:80", "::1", ":"} {
		t.wantHost(d, host, cache.Main)
	}

	// A change replaces that cache, and no other.
	r = t.set(r, func(r *catalog.Cache) { r.Private, r.Hosts = false, nil })
	all, err := d.All(t.Context())
	if err != nil || len(all) != 2 || all[0] != main || all[1] == team || all[1].Private() {
		t.Errorf("after a change there are %v, %v", all, err)
	}
	t.wantHost(d, "team.example.org", cache.Main)
	if t.named(d, "team") != all[1] {
		t.Error("a cache that did not change is another one")
	}

	if err := t.admin.DeleteCache(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	if all, err := d.All(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("after the deletion there are %v, %v", all, err)
	}
	if c := t.named(d, "team"); c != nil {
		t.Error("a cache that was deleted is there")
	}
}

func TestSources(t0 *testing.T) {
	t := newTester(t0)
	local := cachetest.NewMemory(cachetest.NewPath(t, nix.DefaultStoreDir, "hello", "hello\n"))
	d := t.mustOpen(registry.Options{Local: local})
	t.add("both", func(r *catalog.Cache) { r.Sources = []string{"depot", "local"} })
	t.add("kept", nil)
	t.add("store", func(r *catalog.Cache) { r.Sources = []string{"local"} })
	t.add("elsewhere", func(r *catalog.Cache) { r.Sources, r.StoreDir = []string{"local", "depot"}, "/other/store" })
	for name, want := range map[string]struct {
		local, keeps bool
	}{"main": {true, true}, "both": {true, true}, "kept": {false, true}, "store": {true, false}, "elsewhere": {false, true}} {
		c := t.named(d, name)
		if c == nil {
			t.Fatalf("there is no cache %s", name)
		}
		if has := slices.Contains(t.sources(c), local.Name()); has != want.local || c.Keeps() != want.keeps {
			t.Errorf("cache %s has the local store: %t, keeps: %t, want %+v", name, has, c.Keeps(), want)
		}
	}
	if !strings.Contains(t.log.String(), "cache=elsewhere store=/nix/store want=/other/store") {
		t.Errorf("it was not logged that a cache goes without the local store:\n%s", t.log)
	}

	// Without a local store they do without.
	d = t.mustOpen(registry.Options{})
	if c := t.named(d, "store"); len(t.sources(c)) != 0 || c.Keeps() {
		t.Errorf("without a local store, the cache of it has %v", t.sources(c))
	}
}

// The store directory of main is that of the local store, for as long as nothing else was pushed to it.
func TestStoreDir(t0 *testing.T) {
	t := newTester(t0)
	local := cachetest.NewMemory()
	if got := t.named(t.mustOpen(registry.Options{}), cache.Main).Info().StoreDir; got != nix.DefaultStoreDir {
		t.Errorf("without a local store it is %s", got)
	}
	records, err := t.admin.AllCaches(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.set(records[0], func(r *catalog.Cache) { r.StoreDir = "/other/store" })
	d := t.mustOpen(registry.Options{Local: local})
	c := t.named(d, cache.Main)
	if got := c.Info().StoreDir; got != nix.DefaultStoreDir || len(t.sources(c)) != 1 {
		t.Errorf("with a local store it is %s, of %v", got, t.sources(c))
	}

	t.set(records[0], func(r *catalog.Cache) { r.StoreDir = "/other/store" })
	p := cachetest.NewPath(t, "/other/store", "hello", "hello\n")
	push(t, t.named(t.mustOpen(registry.Options{}), cache.Main), p)
	if _, err := t.open(registry.Options{Local: local}); err == nil ||
		err.Error() != "prepare cache main: it keeps paths of /other/store, and the store directory of this machine is /nix/store: serve another store with --store, set NIX_STORE_DIR, or use another state directory with --state" {
		t.Errorf("a store of another directory than what was pushed: %v", err)
	}
}

func push(t *tester, c *cache.Cache, p cachetest.Path) {
	t.Helper()
	received, err := c.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(p.NAR)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Publish(t.Context(), p.Info, received); err != nil {
		t.Fatal(err)
	}
}

// What one cache has cannot be had through another, and goes with it.
func TestApart(t0 *testing.T) {
	t := newTester(t0)
	d := t.mustOpen(registry.Options{})
	r := t.add("team", func(r *catalog.Cache) { r.Private = true })
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "hello", "hello\n")
	push(t, t.named(d, "team"), p)
	if _, err := t.named(d, "team").NARInfo(t.Context(), p.Info.Path.Hash()); err != nil {
		t.Error(err)
	}
	if _, err := t.named(d, cache.Main).NARInfo(t.Context(), p.Info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("main: %v", err)
	}
	if err := t.admin.DeleteCache(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	t.add("team", nil)
	if _, err := t.named(d, "team").NARInfo(t.Context(), p.Info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("a new cache of an old name: %v", err)
	}
}

// While the catalog cannot be read, the caches stay as they were.
func TestUnreadable(t0 *testing.T) {
	t := newTester(t0)
	cat := openCatalog(t.T, t.path)
	f := &failing{Catalog: cat}
	blobs, err := dir.Open(t.TempDir(), dir.Options{Make: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Prepare(t.Context(), f, depot.New(f, index.Of(f), blobs, depot.Options{}), ""); err != nil {
		t.Fatal(err)
	}
	d, err := registry.New(t.Context(), f, depot.New(f, index.Of(f), blobs, depot.Options{}), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.add("team", nil)
	f.set(catalog.ErrUnavailable)
	t.wantHost(d, "example.org", cache.Main)
	if c := t.named(d, "team"); c != nil {
		t.Error("a cache is there that could not be read")
	}
	f.set(nil)
	for t.named(d, "team") == nil { // a moment
		if t.Context().Err() != nil {
			t.Fatal("the caches are never read again")
		}
	}

	f.set(catalog.ErrUnavailable)
	if _, err := registry.New(t.Context(), f, depot.New(f, index.Of(f), blobs, depot.Options{}), registry.Options{}); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("opened without the catalog: %v", err)
	}
}

type failing struct {
	*sqlite.Catalog
	mu  sync.Mutex
	err error
}

func (f *failing) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) AllCaches(ctx context.Context) ([]*catalog.Cache, error) {
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f.Catalog.AllCaches(ctx)
}

func TestCheck(t *testing.T) {
	key := newKey(t, "k-1")
	for _, test := range []struct {
		edit func(*catalog.Cache)
		want string
	}{
		{func(r *catalog.Cache) {}, ""},
		{func(r *catalog.Cache) { r.Name = "metrics" }, `name of a cache: "metrics" is reserved: the server answers something else there`},
		{func(r *catalog.Cache) { r.Sources = nil }, "a cache has at least one source, local or depot"},
		{func(r *catalog.Cache) { r.Sources = []string{"upstream"} }, `there is no source named "upstream"; there are local and depot`},
		{func(r *catalog.Cache) { r.Sources = []string{"depot", "depot"} }, "the source depot is there twice"},
		{func(r *catalog.Cache) { r.Priority = 1 << 16 }, "the priority is 65536, want 0 to 65535"},
		{func(r *catalog.Cache) { r.Hosts = []string{"a.example", "b_c.example"} }, ""},
		{func(r *catalog.Cache) { r.Hosts = []string{"a.example", "a.example"} }, "the host a.example is there twice"},
		{func(r *catalog.Cache) { r.Hosts = []string{"A.example"} }, `"A.example" is not a host name in lower case and without a port, such as cache.example.org`},
		{func(r *catalog.Cache) { r.Hosts = []string{"a:80"} }, `"a:80" is not a host name in lower case and without a port, such as cache.example.org`},
		{func(r *catalog.Cache) { r.Hosts = []string{""} }, `"" is not a host name in lower case and without a port, such as cache.example.org`},
		{func(r *catalog.Cache) { r.Hosts = []string{"a b"} }, `"a b" is not a host name in lower case and without a port, such as cache.example.org`},
		{func(r *catalog.Cache) { r.Hosts = make([]string, 65) }, "it has 65 hosts and 0 keys, want at most 64 and 16"},
		{func(r *catalog.Cache) { r.Keys = []nix.SecretKey{key, key} }, "two keys are named k-1, and clients tell keys apart by their names"},
	} {
		r := registry.Record("team")
		test.edit(r)
		var got string
		if err := registry.Check(r); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%+v: %s\nwant %s", r, got, test.want)
		}
	}
}

func BenchmarkByHost(b *testing.B) {
	cat, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "catalog.db"), sqlite.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer cat.Close()
	blobs, err := dir.Open(b.TempDir(), dir.Options{Make: true})
	if err != nil {
		b.Fatal(err)
	}
	if err := registry.Prepare(b.Context(), cat, depot.New(cat, index.Of(cat), blobs, depot.Options{}), ""); err != nil {
		b.Fatal(err)
	}
	d, err := registry.New(b.Context(), cat, depot.New(cat, index.Of(cat), blobs, depot.Options{}), registry.Options{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := d.ByHost(b.Context(), "cache.example.org:5000"); err != nil {
			b.Fatal(err)
		}
	}
}

// A signature of another algorithm under the name of a key of any cache is refused in all: clients
// of both would fail at it.
func TestKeysOfOthers(t0 *testing.T) {
	t := newTester(t0)
	d := t.mustOpen(registry.Options{Keys: []nix.SecretKey{newKey(t0, "own-1")}})
	t.add("team", func(r *catalog.Cache) { r.Keys = []nix.SecretKey{newKey(t0, "team-1")} })
	t.named(d, "team")
	var sigs []nix.Signature
	for _, name := range []string{"own-1", "team-1", "ml-dsa-1"} {
		sig, err := nix.NewSignature(name, make([]byte, 2420))
		if err != nil {
			t.Fatal(err)
		}
		sigs = append(sigs, sig)
	}
	for _, name := range []string{"main", "team"} {
		if left := t.named(d, name).Others(sigs, nil); !slices.Equal(left, sigs[2:]) {
			t.Errorf("the cache %s takes %v", name, left)
		}
	}
}

// sources returns the names of the sources of a cache that are there.
func (t *tester) sources(c *cache.Cache) []string {
	t.Helper()
	p, err := c.Presence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p.Sources
}

package registry_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/internal/registry"
	"firn/nix"
)

// push pushes a path that refers to others.
func (t *tester) push(c *cache.Cache, name string, refs ...cachetest.Path) cachetest.Path {
	t.Helper()
	p := cachetest.NewPath(t, nix.DefaultStoreDir, name, name)
	info := *p.Info
	info.CA = nix.ContentAddress{}
	for _, ref := range refs {
		info.References = append(info.References, ref.Info.Path)
	}
	p.Info = &info
	received, err := c.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(p.NAR)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Publish(t.Context(), &info, received); err != nil {
		t.Fatal(err)
	}
	return p
}

func (t *tester) announced(c *cache.Cache, p cachetest.Path) bool {
	t.Helper()
	_, err := c.NARInfo(t.Context(), p.Info.Path.Hash())
	if err != nil && !errors.Is(err, cache.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// The store keeps what paths of any cache refer to, and what was pushed and is damaged, and nothing
// else. What leads to what is damaged is not announced where the store does not have that.
func TestTick(t0 *testing.T) {
	t := newTester(t0)
	one, two := cachetest.NewPath(t, nix.DefaultStoreDir, "one", "1"), cachetest.NewPath(t, nix.DefaultStoreDir, "two", "2")
	store := cachetest.NewMemory(one, two)
	d := t.mustOpen(registry.Options{Local: store})
	t.add("team", func(r *catalog.Cache) { r.Sources = []string{catalog.SourceLocal, catalog.SourceDepot} })
	t.add("depot", func(r *catalog.Cache) { r.Sources = []string{catalog.SourceDepot} })
	main, team, only := t.named(d, cache.Main), t.named(d, "team"), t.named(d, "depot")

	want := func(what string, want ...string) {
		t.Helper()
		if err := d.Tick(t.Context()); err != nil {
			t.Error(err)
		}
		if got := store.Kept(); !slices.Equal(got, want) {
			t.Errorf("%s: kept are %v, want %v", what, got, want)
		}
	}
	want("at first")
	a, b := t.push(main, "a", one), t.push(team, "b", one, two)
	t.push(only, "lib")
	want("after pushes", "one", "two")
	remove := func(name string, p cachetest.Path) {
		t.Helper()
		r, err := registry.Find(t.Context(), t.admin, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := index.Of(t.admin).Delete(t.Context(), &index.Deletion{Cache: r.ID, Paths: []nix.PathHash{p.Info.Path.Hash()}}); err != nil {
			t.Fatal(err)
		}
	}
	remove("team", b)
	want("after one was deleted", "one")
	remove(cache.Main, a)
	want("after both were deleted")

	// What was pushed is damaged.
	lib := t.push(main, "lib")
	app := t.push(main, "app", lib)
	n, err := t.admin.NAR(t.Context(), [32]byte(lib.Info.NARHash.Sum()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := t.admin.SetFaults(t.Context(), []index.NARID{n.ID}, index.Whole, index.Damaged); err != nil {
		t.Fatal(err)
	}
	want("with lib damaged")
	if t.announced(main, lib) || t.announced(main, app) {
		t.Error("what is damaged is announced, or what refers to it")
	}
	if !strings.Contains(t.log.String(), lib.Info.Path.String()) {
		t.Errorf("the log says\n%s", t.log)
	}
	store.Add(lib)
	want("with lib in the store too", "lib")
	if !t.announced(main, lib) || !t.announced(main, app) {
		t.Error("with lib in the store, not all is announced")
	}
	store.Remove(lib.Info.Path)
	want("with lib damaged again")
	t.push(main, "lib")
	want("with lib pushed again")
	if !t.announced(main, lib) || !t.announced(main, app) {
		t.Error("with lib pushed again, not all is announced")
	}
}

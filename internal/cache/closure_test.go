package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// leaning is a cache with a store, whose paths may go, and a sink.
type leaning struct {
	*pushed
	store *cachetest.Memory
	log   *bytes.Buffer
}

func newLeaning(t *testing.T, opts cache.Options, paths ...cachetest.Path) *leaning {
	t.Helper()
	l := &leaning{store: cachetest.NewMemory(paths...), log: &bytes.Buffer{}}
	opts.Logger = slog.New(slog.NewTextHandler(l.log, nil))
	l.pushed = newPushed(t, opts, l.store)
	return l
}

// tree returns a path that refers to others.
func tree(t testing.TB, name string, refs ...cachetest.Path) cachetest.Path {
	t.Helper()
	return refersTo(cachetest.NewTree(t, nix.DefaultStoreDir, name, map[string]string{"name": name}), refs...)
}

// announced returns the names of those of the paths that have a narinfo. It waits while that is not
// what is wanted: what is missing is not looked for with every change where that takes long, such
// as on a machine with too much to do.
func (l *leaning) wantAnnounced(what string, all []cachetest.Path, want ...string) {
	l.Helper()
	var got []string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got = nil
		for _, p := range all {
			_, err := l.NARInfo(l.Context(), p.Info.Path.Hash())
			if err == nil {
				got = append(got, p.Info.Path.Name())
			} else if !errors.Is(err, cache.ErrNotFound) {
				l.Fatal(err)
			}
		}
		if slices.Equal(got, want) || time.Now().After(end) {
			break
		}
	}
	if !slices.Equal(got, want) {
		l.Errorf("%s: announced are %v, want %v\n%s", what, got, want, l.log)
	}
	// All who ask are answered alike.
	var listed []string
	for p, err := range l.Paths(l.Context()) {
		if err != nil {
			l.Fatal(err)
		}
		listed = append(listed, p.Path.Name())
	}
	for _, p := range all {
		name := p.Info.Path.Name()
		if has, err := l.Has(l.Context(), p.Info.Path); err != nil || has != slices.Contains(want, name) {
			l.Errorf("%s: Has of %s: %v, %v", what, name, has, err)
		}
		if slices.Contains(listed, name) != slices.Contains(want, name) {
			l.Errorf("%s: listed are %v", what, listed)
		}
	}
}

// incomplete returns the paths that are not announced, and what they lack.
func (l *leaning) incomplete() (all []string) {
	l.Helper()
	for r, err := range l.Incomplete(l.Context()) {
		if err != nil {
			l.Fatal(err)
		}
		all = append(all, r.From.Name()+" lacks "+r.To.Name())
	}
	slices.Sort(all)
	return all
}

// What only the store has of the references of a pushed path is kept there. When it goes all the
// same, nothing that leads to it is announced until it is there again.
func TestMissingReferences(t *testing.T) {
	lib := hello(t)
	app := tree(t, "app", lib)
	top := tree(t, "top", app)
	alone := tree(t, "alone")
	all := []cachetest.Path{lib, app, top, alone}
	l := newLeaning(t, cache.Options{}, lib)
	for _, p := range []cachetest.Path{alone, app, top} {
		l.publish(l.upload(p))
	}
	if got := l.store.Kept(); !slices.Equal(got, []string{"hello.txt"}) {
		t.Errorf("kept are %v", got)
	}
	l.wantAnnounced("at first", all, "hello.txt", "app", "top", "alone")
	if got := l.incomplete(); got != nil {
		t.Errorf("at first: %v", got)
	}

	// It goes, and comes back to the store.
	l.store.Remove(lib.Info.Path)
	l.wantAnnounced("without lib", all, "alone")
	l.wantAnnounced("without lib, once more", all, "alone")
	if got, want := l.incomplete(), []string{"app lacks hello.txt", "top lacks hello.txt"}; !slices.Equal(got, want) {
		t.Errorf("without lib: %v, want %v", got, want)
	}
	if text := l.log.String(); strings.Count(text, lib.Info.Path.String()) != 1 || !strings.Contains(text, app.Info.Path.String()) {
		t.Errorf("the log says\n%s", text)
	}
	l.wantRefused(l.upload(tree(t, "more", top)), cache.ErrInvalid, "more refers to what is not in this cache: "+top.Info.Path.Base())
	l.wantRefused(l.upload(app), cache.ErrInvalid, lib.Info.Path.Base()+"; push that first")
	l.wantRefused(l.upload(top), cache.ErrInvalid, app.Info.Path.Base()+"; push that first")
	l.store.Add(lib)
	l.wantAnnounced("with lib back", all, "hello.txt", "app", "top", "alone")

	// It goes again, and is pushed.
	l.store.Remove(lib.Info.Path)
	l.wantAnnounced("without lib again", all, "alone")
	l.publish(l.upload(lib))
	for _, p := range []cachetest.Path{app, top} { // at once, as a client does
		if l.publish(l.upload(p)) {
			t.Errorf("%s was not there before", p.Info.Path)
		}
	}
	l.wantAnnounced("with lib pushed", all, "hello.txt", "app", "top", "alone")
	l.publish(l.upload(tree(t, "more", top)))

	// The other way round: what the store has with all that it refers to is announced, whatever
	// became of what was pushed.
	l = newLeaning(t, cache.Options{}, lib)
	l.publish(l.upload(app))
	l.publish(l.upload(top))
	l.store.Remove(lib.Info.Path)
	l.store.Add(lib, app)
	l.wantAnnounced("with app in the store", all, "hello.txt", "app", "top")
	l.store.Remove(lib.Info.Path)
	l.store.Remove(app.Info.Path)
	l.wantAnnounced("without both", all)
}

// A cache that allows missing references announces paths in spite of them, and one of which sources
// were left out cannot tell.
func TestMissingReferencesAllowed(t *testing.T) {
	lib := hello(t)
	app := tree(t, "app", lib)
	for name, opts := range map[string]cache.Options{"allowed": {AllowMissingReferences: true}, "left out": {SourcesLeftOut: true}} {
		l := newLeaning(t, opts, lib)
		l.publish(l.upload(app))
		if got := l.store.Kept(); len(got) != 1 {
			t.Errorf("%s: kept are %v", name, got)
		}
		l.store.Remove(lib.Info.Path)
		l.wantAnnounced(name, []cachetest.Path{lib, app}, "app")
		if got := l.incomplete(); got != nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A source that cannot tell whether it has something does not make others miss it, nor is that
// remembered.
func TestMissingReferencesUnsure(t *testing.T) {
	lib := hello(t)
	app := tree(t, "app", lib)
	l := newLeaning(t, cache.Options{}, lib)
	l.publish(l.upload(app))
	l.store.Fail(errors.New("disk on fire"))
	wantNARInfo(t, l.Cache, app.Info.Path.Hash())
	l.store.Fail(nil)
	l.store.Remove(lib.Info.Path)
	l.wantAnnounced("without lib", []cachetest.Path{lib, app})
	l.store.Fail(errors.New("disk on fire"))
	if _, err := l.NARInfo(t.Context(), app.Info.Path.Hash()); err == nil {
		t.Error("it is announced when nothing can be told of what is missing")
	}
	l.store.Fail(nil)
	l.store.Add(lib)
	l.wantAnnounced("with lib", []cachetest.Path{lib, app}, "hello.txt", "app")
}

// stuck is a store that cannot tell of paths at times, though it knows that nothing has changed.
type stuck struct {
	*cachetest.Memory
	now atomic.Bool
}

func (s *stuck) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	if s.now.Load() {
		return nil, errors.New("the database is locked")
	}
	return s.Memory.PathInfo(ctx, hash)
}

// What a source could not tell is asked again, though nothing has changed since.
func TestMissingReferencesAskedAgain(t *testing.T) {
	lib := hello(t)
	app := tree(t, "app", lib)
	store := &stuck{Memory: cachetest.NewMemory(lib)}
	c := newPushed(t, cache.Options{}, store)
	c.publish(c.upload(app))
	wantNARInfo(t, c.Cache, app.Info.Path.Hash())
	store.now.Store(true)
	store.Remove(lib.Info.Path)
	if err := c.CheckReferences(t.Context()); err != nil {
		t.Fatal(err)
	}
	store.now.Store(false)
	if err := c.CheckReferences(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, c.Cache, app.Info.Path.Hash())
}

// A path that is published again, without what is missing, is announced, and so is what refers to
// it.
func TestPublishedAgainWithout(t *testing.T) {
	lib := hello(t)
	app, other := tree(t, "app", lib), tree(t, "other", lib)
	top := tree(t, "top", app)
	all := []cachetest.Path{lib, app, top, other}
	l := newLeaning(t, cache.Options{}, lib)
	for _, p := range []cachetest.Path{app, top, other} {
		l.publish(l.upload(p))
	}
	l.store.Remove(lib.Info.Path)
	l.wantAnnounced("without lib", all)
	l.sink.Remove(app.Info.Path)
	l.publish(l.upload(tree(t, "app")))
	l.wantAnnounced("with app that does not refer to lib", all, "app", "top")

	// By another process, that is noticed with the next tick.
	l.sink.Remove(other.Info.Path)
	again := newCache(t, cache.Options{Sink: cache.SinkOf(l.sink)}, l.store, l.sink)
	alone := tree(t, "other")
	n := l.upload(alone)
	if _, err := put(t, again, n); err != nil {
		t.Fatal(err)
	}
	if _, err := l.NARInfo(t.Context(), alone.Info.Path.Hash()); err != nil && !errors.Is(err, cache.ErrNotFound) {
		t.Error(err)
	}
	if err := l.CheckReferences(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.wantAnnounced("with other that does not refer to lib", all, "app", "top", "other")
}

// lossy is a sink that has lost much: to tell what takes it long.
type lossy struct {
	*cachetest.Memory
	listed atomic.Int32
}

func (l *lossy) WithheldPaths(ctx context.Context) iter.Seq2[nix.StorePath, error] {
	l.listed.Add(1)
	time.Sleep(30 * time.Millisecond)
	return l.Memory.WithheldPaths(ctx)
}

// Where much is missing, what is pushed again does not wait each time until all of that is listed.
func TestPublishWhereMuchIsMissing(t *testing.T) {
	sink := &lossy{Memory: cachetest.NewMemory()}
	store := cachetest.NewMemory()
	p := &pushed{T: t, Cache: newCache(t, cache.Options{Sink: cache.SinkOf(sink)}, store, sink), sink: sink.Memory}
	last := tree(t, "p0")
	p.publish(p.upload(last))
	before := sink.listed.Load()
	const paths = 20
	for i := range paths {
		next := tree(t, fmt.Sprint("p", i+1), last)
		p.publish(p.upload(next))
		last = next
	}
	if n := sink.listed.Load() - before; n > paths/4 {
		t.Errorf("what is missing was listed %d times for %d paths", n, paths)
	}
	// One that seems to be missing is looked for at once, whatever was told before.
	lib := tree(t, "lib")
	store.Add(lib)
	app := tree(t, "app", lib)
	p.publish(p.upload(app))
	store.Remove(lib.Info.Path)
	if err := p.CheckReferences(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.wantRefused(p.upload(tree(t, "top", app)), cache.ErrInvalid, app.Info.Path.Base())
	p.publish(p.upload(lib))
	p.publish(p.upload(tree(t, "top", app)))
}

// Long chains and wide closures are walked without recursion, and each path of them once.
func TestMissingReferencesFarAway(t *testing.T) {
	lib := hello(t)
	l := newLeaning(t, cache.Options{}, lib)
	chain := []cachetest.Path{tree(t, "p0", lib)}
	for i := range 300 {
		chain = append(chain, tree(t, fmt.Sprint("p", i+1), chain[max(0, i-2):]...))
	}
	for _, p := range chain {
		l.publish(l.upload(p))
	}
	other := tree(t, "other")
	l.publish(l.upload(other))
	l.store.Remove(lib.Info.Path)
	l.wantAnnounced("without lib", []cachetest.Path{chain[300], chain[7], chain[0], other}, "other")
	asked := l.sink.Asked()
	l.wantAnnounced("once more", []cachetest.Path{chain[300], chain[7], chain[0], other}, "other")
	if more := l.sink.Asked() - asked; more > 5000 {
		t.Errorf("the sink was asked %d times", more)
	}
}

// Where the store cannot keep a path, the sink takes it in with all that it refers to. Where that
// may only not work now, nothing is published.
func TestTakeIn(t *testing.T) {
	base := tree(t, "base")
	lib := tree(t, "lib", base)
	lib.Info.References = append(lib.Info.References, lib.Info.Path)
	app := tree(t, "app", lib)
	l := newLeaning(t, cache.Options{}, base, lib)
	l.store.FailKeep(fmt.Errorf("later: %w", cache.ErrUnavailable))
	if _, err := put(l, l.Cache, l.upload(app)); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Publish: %v, want ErrUnavailable", err)
	}
	l.wantAnnounced("before", []cachetest.Path{base, lib, app}, "base", "lib")
	l.store.FailKeep(errors.New("no daemon"))
	l.publish(l.upload(app))
	l.publish(l.upload(tree(t, "second", lib)))
	l.store.Remove(base.Info.Path)
	l.store.Remove(lib.Info.Path)
	l.wantAnnounced("after the store has lost all", []cachetest.Path{base, lib, app}, "base", "lib", "app")
	if n := strings.Count(l.log.String(), "no daemon"); n != 1 {
		t.Errorf("it was logged %d times\n%s", n, l.log)
	}
	if l.store.Open() != 0 {
		t.Errorf("%d NARs are still open", l.store.Open())
	}
}

// going is a store that loses a path at the moment at which it is to be kept.
type going struct{ *cachetest.Memory }

func (g going) Keep(ctx context.Context, path nix.StorePath) (func(), error) {
	g.Remove(path)
	return g.Memory.Keep(ctx, path)
}

func TestGoneBeforeKept(t *testing.T) {
	lib := hello(t)
	c := newPushed(t, cache.Options{}, going{cachetest.NewMemory(lib)})
	c.wantRefused(c.upload(tree(t, "app", lib)), cache.ErrInvalid, lib.Info.Path.Base()+"; push that first")
	wantMissing(t, c.Cache, tree(t, "app").Info.Path.Hash())
}

// What a derivation was built to is gone with it, and so is what is not announced.
func TestRealisationOfMissing(t *testing.T) {
	lib := hello(t)
	app := tree(t, "app", lib)
	drv, err := nix.DefaultStoreDir.ParseBase(strings.Repeat("0", 32) + "-app.drv")
	if err != nil {
		t.Fatal(err)
	}
	l := newLeaning(t, cache.Options{}, lib)
	l.publish(l.upload(app))
	want := func(what string, out nix.StorePath, there bool) {
		t.Helper()
		l.wantAnnounced(what, nil) // that it has noticed
		id := nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{1}), Output: out.Name()}
		if _, err := l.Realisation(t.Context(), id); (err == nil) != there || err != nil && !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("%s: realisation of %s: %v", what, out, err)
		}
		if _, err := l.BuildTrace(t.Context(), drv, out.Name()); (err == nil) != there || err != nil && !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("%s: build trace of %s: %v", what, out, err)
		}
	}
	for _, out := range []nix.StorePath{lib.Info.Path, app.Info.Path} {
		id := nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{1}), Output: out.Name()}
		if err := l.PutRealisation(t.Context(), &nix.Realisation{ID: id, OutPath: out}); err != nil {
			t.Fatal(err)
		}
		if err := l.PutBuildTrace(t.Context(), &nix.BuildTrace{Drv: drv, Output: out.Name(), OutPath: out}); err != nil {
			t.Fatal(err)
		}
		want("at first", out, true)
	}
	l.store.Remove(lib.Info.Path)
	if err := l.CheckReferences(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("without lib", lib.Info.Path, false)
	want("without lib", app.Info.Path, false)
	id := nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{2}), Output: "out"}
	if err := l.PutRealisation(t.Context(), &nix.Realisation{ID: id, OutPath: app.Info.Path}); !errors.Is(err, cache.ErrInvalid) {
		t.Errorf("PutRealisation: %v, want ErrInvalid", err)
	}
	l.store.Add(lib)
	if err := l.CheckReferences(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("with lib", lib.Info.Path, true)
	want("with lib", app.Info.Path, true)
}

package cache_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// largePaths is a source of paths with many references, which it makes again whenever it is asked.
type largePaths struct {
	base  nix.PathInfo
	names int   // references
	err   error // instead of a path
	asked atomic.Int32
	turns chan struct{} // as many at once as a database has readers
}

func (l *largePaths) Name() string           { return "large paths" }
func (l *largePaths) StoreDir() nix.StoreDir { return nix.DefaultStoreDir }
func (l *largePaths) OpenNAR(context.Context, *nix.PathInfo) (cache.NAR, error) {
	return nil, cache.ErrNotFound
}

func (l *largePaths) PathInfo(_ context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	l.asked.Add(1)
	l.turns <- struct{}{}
	defer func() { <-l.turns }()
	if l.err != nil {
		return nil, l.err
	}
	info := l.base
	var err error
	if info.Path, err = nix.DefaultStoreDir.ParseBase(hash.String() + "-large"); err != nil {
		return nil, err
	}
	info.References = cachetest.LongReferences(l.names)
	return &info, nil
}

// gated has large paths whose compressed NARs are looked at only once the gate is open.
type gated struct {
	*largePaths
	gate chan struct{}
	held atomic.Int32 // paths that wait there
}

func (*gated) Compression() nix.Compression { return nix.Zstd }
func (g *gated) StatCompressed(context.Context, *nix.PathInfo) (int64, string, error) {
	g.held.Add(1)
	<-g.gate
	return 1, "", nil
}
func (*gated) OpenCompressed(context.Context, *nix.PathInfo) (cache.NAR, string, error) {
	return nil, "", cache.ErrNotFound
}

// However many large narinfos are looked up at once, only as many are in memory as all caches may
// have of them together. The others wait, hold nothing, and have an answer when there is memory; or
// an error if there is none for too long, or if by then the source does not answer, or has a larger
// path in that place. None takes memory along: all are served later.
func TestLargeNARInfosAtOnce(t0 *testing.T) {
	const paths, later, names = 32, 4, 10_000 // of 2.4 MB each
	for name, change := range map[string]func(*gated){
		"soon":  nil,
		"never": func(*gated) { time.Sleep(time.Hour) }, // no clock is waited for
		"fails": func(g *gated) { g.err = cache.ErrUnavailable },
		"grows": func(g *gated) { g.names++ },
	} {
		t0.Run(name, func(t0 *testing.T) {
			synctest.Test(t0, func(t *testing.T) {
				source := &gated{largePaths: &largePaths{base: *hello(t).Info, names: names, turns: make(chan struct{}, 4)}, gate: make(chan struct{})}
				source.base.CA = nix.ContentAddress{}
				looks := cache.NewLookMemory()
				caches := []*cache.Cache{newCache(t, cache.Options{Looks: looks}, source), newCache(t, cache.Options{Looks: looks}, source)}
				before := heap()
				var group sync.WaitGroup
				var served, unavailable atomic.Int32
				look := func(i int) {
					group.Go(func() {
						text, err := caches[i%2].NARInfo(t.Context(), nix.PathHash{0: byte(i + 1)})
						switch {
						case errors.Is(err, cache.ErrUnavailable):
							unavailable.Add(1)
						case err != nil || len(text) < names*230:
							t.Errorf("narinfo %d: %d bytes, %v", i, len(text), err)
						default:
							served.Add(1)
						}
					})
				}
				for i := range paths {
					look(i)
				}
				synctest.Wait()
				held := source.held.Load()
				if most := int32(2 * nix.MaxNARInfoSize / (names * 230)); held < most/2 || held > most {
					t.Errorf("%d large narinfos are held at once, want some %d", held, most)
				}
				// One takes 3 MB before it is made.
				if live, most := heap()-before, int64(paths+held)/2*3e6; live > most {
					t.Errorf("%d MiB are in memory, more than %d", live>>20, most>>20)
				}
				if change != nil {
					change(source)
				}
				synctest.Wait()
				close(source.gate)
				group.Wait()
				if waited := unavailable.Load(); (waited > 0) != (change != nil) || waited > paths-held || served.Load()+waited != paths {
					t.Errorf("%d narinfos are served, %d are not, and %d were held", served.Load(), waited, held)
				}
				if n := source.asked.Load(); n > 2*paths {
					t.Errorf("the source was asked %d times for %d paths", n, paths)
				}
				served.Store(0)
				source.err = nil
				for i := range later {
					look(i)
				}
				group.Wait()
				if n := served.Load(); n != later {
					t.Errorf("%d of %d are served later", n, later)
				}
			})
		})
	}
}

// heap returns how many bytes are alive.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// unstattable has large paths whose compressed NARs cannot be looked at now.
type unstattable struct{ *largePaths }

func (*unstattable) Compression() nix.Compression { return nix.Zstd }
func (*unstattable) StatCompressed(context.Context, *nix.PathInfo) (int64, string, error) {
	return 0, "", cache.ErrUnavailable
}
func (*unstattable) OpenCompressed(context.Context, *nix.PathInfo) (cache.NAR, string, error) {
	return nil, "", cache.ErrUnavailable
}

// The memory of a large narinfo is given back once where its NAR cannot be looked at, and another
// source is asked.
func TestLargeNARInfoOfUnavailableNAR(t *testing.T) {
	source := &largePaths{base: *hello(t).Info, names: 1000, turns: make(chan struct{}, 1)}
	source.base.CA = nix.ContentAddress{}
	c := newCache(t, cache.Options{}, &unstattable{source})
	if _, err := c.NARInfo(t.Context(), nix.PathHash{0: 1}); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("of the only source: %v, want ErrUnavailable", err)
	}
	c = newCache(t, cache.Options{}, &unstattable{source}, source)
	if text, err := c.NARInfo(t.Context(), nix.PathHash{0: 1}); err != nil || len(text) < 1000*230 {
		t.Errorf("of the second source: %d bytes, %v", len(text), err)
	}
}

// A path whose narinfo is larger than clients read is not there.
func TestTooLargeNARInfo(t *testing.T) {
	source := &largePaths{base: *hello(t).Info, turns: make(chan struct{}, 1)}
	source.base.CA = nix.ContentAddress{}
	for names, want := range map[int]error{nix.MaxNARInfoSize / 240: nil, nix.MaxNARInfoSize / 230: cache.ErrNotFound} {
		source.names = names
		if _, err := newCache(t, cache.Options{}, source).NARInfo(t.Context(), nix.PathHash{0: 1}); !errors.Is(err, want) {
			t.Errorf("with %d references: %v, want %v", names, err, want)
		}
	}
}

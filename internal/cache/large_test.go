package cache_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// largePaths is a source of paths with many references, which it makes again whenever it is asked.
type largePaths struct {
	base  nix.PathInfo
	names int // references
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
	info := l.base
	var err error
	if info.Path, err = nix.DefaultStoreDir.ParseBase(hash.String() + "-large"); err != nil {
		return nil, err
	}
	info.References = cachetest.LongReferences(l.names)
	return &info, nil
}

// However many large narinfos are looked up at once, what they take in memory is bounded, and none
// fails.
func TestLargeNARInfosAtOnce(t *testing.T) {
	const paths, names = 64, 10_000 // of 2.4 MB each
	source := &largePaths{base: *hello(t).Info, names: names, turns: make(chan struct{}, 4)}
	source.base.CA = nix.ContentAddress{}
	looks := cache.NewLookMemory()
	caches := []*cache.Cache{newCache(t, cache.Options{Looks: looks}, source), newCache(t, cache.Options{Looks: looks}, source)}
	live := cachetest.HeapWhile(func() {
		var group sync.WaitGroup
		for i := range paths {
			group.Go(func() {
				text, err := caches[i%2].NARInfo(t.Context(), nix.PathHash{0: byte(i + 1)})
				if err != nil || len(text) < names*230 {
					t.Errorf("narinfo %d: %d bytes, %v", i, len(text), err)
				}
			})
		}
		group.Wait()
	})
	if most := int64(256 << 20); live > most {
		t.Errorf("%d MiB were in memory, more than %d", live>>20, most>>20)
	}
	if n := source.asked.Load(); n > 2*paths {
		t.Errorf("the source was asked %d times for %d paths", n, paths)
	}
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

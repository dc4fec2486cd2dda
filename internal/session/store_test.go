package session

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/protocol"
)

// readerOf returns a store for somebody who may read a cache that has these paths.
func readerOf(tb testing.TB, paths ...cachetest.Path) *store {
	tb.Helper()
	return readerOfSource(tb, cachetest.NewMemory(paths...))
}

func readerOfSource(tb testing.TB, source cache.Source) *store {
	tb.Helper()
	c, err := cache.New([]cache.Source{source}, cache.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return reader(c)
}

// reader returns a store for somebody who may read a cache.
func reader(c *cache.Cache) *store {
	return &store{Options: Options{
		Name:   "main",
		Cache:  func(context.Context) (*cache.Cache, error) { return c, nil },
		Who:    func(context.Context) (cache.Principal, error) { return cache.Anybody, nil },
		Logger: slog.New(slog.DiscardHandler),
	}, dir: nix.DefaultStoreDir}
}

// numbered returns store paths of which there is nothing.
func numbered(tb testing.TB, n int) (paths []nix.StorePath) {
	tb.Helper()
	for i := range n {
		p, err := nix.DefaultStoreDir.ParseBase(fmt.Sprintf("%032d-missing", i))
		if err != nil {
			tb.Fatal(err)
		}
		paths = append(paths, p)
	}
	return paths
}

// A closure is of what is there: a cache that allows that lacks some of what its paths refer to.
func TestClosure(t *testing.T) {
	path := func(name string, refs ...nix.StorePath) cachetest.Path {
		p := cachetest.NewPath(t, nix.DefaultStoreDir, name, name)
		p.Info.References, p.Info.CA = nix.SortPaths(refs), nix.ContentAddress{}
		return p
	}
	missing := numbered(t, 2)
	a := path("a", missing...)
	b := path("b", a.Info.Path, missing[1])
	c := path("c", b.Info.Path)
	b.Info.References = nix.SortPaths(append(b.Info.References, b.Info.Path)) // and itself
	s := readerOf(t, a, b, c, path("other"))
	for _, test := range []struct{ of, want []nix.StorePath }{
		{nil, nil},
		{[]nix.StorePath{a.Info.Path}, []nix.StorePath{a.Info.Path}},
		{[]nix.StorePath{c.Info.Path, a.Info.Path, c.Info.Path}, []nix.StorePath{a.Info.Path, b.Info.Path, c.Info.Path}},
	} {
		got, err := s.Closure(t.Context(), test.of)
		if err != nil || !slices.Equal(nix.SortPaths(got), nix.SortPaths(test.want)) {
			t.Errorf("the closure of %v is %v, %v, want %v", test.of, got, err, test.want)
		}
	}
	for _, of := range [][]nix.StorePath{{missing[1]}, {a.Info.Path, missing[0]}, {missing[0], a.Info.Path}} {
		if got, err := s.Closure(t.Context(), of); !errors.Is(err, protocol.ErrNotFound) {
			t.Errorf("the closure of %v is %v, %v", of, got, err)
		}
	}
}

// counted is a source that counts the questions that it is asked.
type counted struct {
	*cachetest.Memory
	questions int
}

func (c *counted) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	c.questions++
	return c.Memory.PathInfo(ctx, hash)
}

func (c *counted) References(ctx context.Context, hashes []nix.PathHash) iter.Seq2[cache.Referrer, error] {
	c.questions++
	return c.Memory.References(ctx, hashes)
}

// A closure of 3,000 paths, and which of 3,000 are valid, takes as many questions as there are hundreds.
func TestQuestions(t *testing.T) {
	store, sink := &counted{Memory: cachetest.NewMemory()}, &counted{Memory: cachetest.NewMemory()}
	var paths []nix.StorePath
	var tops []nix.StorePath
	for i := range 3000 {
		p := cachetest.NewPath(t, nix.DefaultStoreDir, fmt.Sprint(i), fmt.Sprint(i))
		if p.Info.CA = (nix.ContentAddress{}); i%50 == 49 {
			p.Info.References, tops = nix.SortPaths(paths[i-49:i]), append(tops, p.Info.Path)
		}
		paths = append(paths, p.Info.Path)
		if i%2 == 0 {
			store.Add(p)
		} else {
			sink.Add(p)
		}
	}
	c, err := cache.New([]cache.Source{store, sink}, cache.Options{Sink: cache.SinkOf(sink)})
	if err != nil {
		t.Fatal(err)
	}
	s := reader(c)
	most := 2 * (3000/256 + 3) // of two sources
	all, err := s.Closure(t.Context(), tops)
	if err != nil || len(all) != 3000 {
		t.Errorf("the closure has %d paths, %v", len(all), err)
	}
	if n := store.questions + sink.questions; n > most {
		t.Errorf("the closure took %d questions, want %d at most", n, most)
	}
	store.questions, sink.questions = 0, 0
	valid, err := s.ValidPaths(t.Context(), append(numbered(t, 3), paths...))
	if err != nil || !slices.Equal(valid, paths) {
		t.Errorf("%d are valid, %v", len(valid), err)
	}
	if n := store.questions + sink.questions; n > most {
		t.Errorf("which are valid took %d questions, want %d at most", n, most)
	}
}

// A large closure takes room, and gives it back.
func TestRoomForClosure(t *testing.T) {
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "a", "a")
	p.Info.References, p.Info.CA = numbered(t, 3*pathsPerStep), nix.ContentAddress{}
	s := readerOf(t, p)
	for free, want := range []error{cache.ErrUnavailable, cache.ErrUnavailable, cache.ErrUnavailable, nil} {
		left := free
		s.Memory = func() (done func(), ok bool) {
			if left == 0 {
				return nil, false
			}
			left--
			return func() { left++ }, true
		}
		if _, err := s.Closure(t.Context(), []nix.StorePath{p.Info.Path}); !errors.Is(err, want) || left != free {
			t.Errorf("with %d: %v, and there are %d in the end", free, err, left)
		}
	}
}

// BenchmarkClosureMissing asks for the closure of a path that refers to many that are not there: the time for each should not grow with their number.
func BenchmarkClosureMissing(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := cachetest.NewPath(b, nix.DefaultStoreDir, "a", "a")
			p.Info.References, p.Info.CA = numbered(b, n), nix.ContentAddress{}
			s := readerOf(b, p)
			for b.Loop() {
				if all, err := s.Closure(b.Context(), []nix.StorePath{p.Info.Path}); err != nil || len(all) != 1 {
					b.Fatal(len(all), err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/reference")
		})
	}
}

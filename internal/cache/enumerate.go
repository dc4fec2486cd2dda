package cache

import (
	"context"
	"iter"

	"firn/nix"
)

// Enumerator is a Source that can list all that it has.
type Enumerator interface {
	Source

	// Paths iterates over all paths, once each, in any order. One that is published or deleted at the
	// same time may be there or not. It ends after the first error. The caller may take as long as it
	// likes between two items.
	Paths(ctx context.Context) iter.Seq2[*nix.PathInfo, error]

	// Files iterates over the names of build logs, realisations and build traces that begin with prefix, as a client asks for them:
	// log/<derivation>, realisations/<id>.doi and build-trace-v2/<derivation>/<output>.doi. Otherwise it is as Paths.
	Files(ctx context.Context, prefix string) iter.Seq2[string, error]
}

// Paths iterates over the paths of all sources that can list them, but those that
// [Cache.Incomplete] names. A path that two have is there twice.
func (c *Cache) Paths(ctx context.Context) iter.Seq2[*nix.PathInfo, error] {
	return list(c, func(s Enumerator) iter.Seq2[*nix.PathInfo, error] {
		if !c.isSink(s) {
			return s.Paths(ctx)
		}
		return func(yield func(*nix.PathInfo, error) bool) {
			for info, err := range s.Paths(ctx) {
				var lacks nix.StorePath
				if err == nil {
					lacks, _, _, err = c.lacking(ctx, info)
				}
				if lacks.IsZero() && !yield(info, err) {
					return
				}
			}
		}
	})
}

// Files iterates over the names of the files of all sources that can list them, as [Enumerator] says.
// A file that two have is there twice.
func (c *Cache) Files(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return list(c, func(s Enumerator) iter.Seq2[string, error] { return s.Files(ctx, prefix) })
}

// list iterates over what the sources that are an Enumerator have, one after the other.
func list[T any](c *Cache, of func(Enumerator) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, s := range c.sources {
			able, ok := s.(Enumerator)
			if !ok {
				continue
			}
			for item, err := range of(able) {
				if !yield(item, err) || err != nil {
					return
				}
			}
		}
	}
}

// Pushed returns what was published of a path in the sink of this cache, whatever the other sources
// have. ErrNotFound if nothing was.
func (c *Cache) Pushed(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	a, err := first(c, func(s Source) (*nix.PathInfo, error) {
		if !c.isSink(s) {
			return nil, ErrNotFound
		}
		return s.PathInfo(ctx, hash)
	})
	return a.value, err
}

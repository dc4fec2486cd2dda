package depot

import (
	"context"
	"iter"

	"firn/nix"
)

// Paths iterates over what is published in the cache, without what is damaged.
func (p *View) Paths(ctx context.Context) iter.Seq2[*nix.PathInfo, error] {
	return func(yield func(*nix.PathInfo, error) bool) {
		for path, err := range p.d.index.AllPaths(ctx, p.id) {
			if err != nil {
				yield(nil, failure("list paths", err))
				return
			}
			if !yield(&path.Info, nil) {
				return
			}
		}
	}
}

// Files iterates over the names of logs, realisations and build traces, which are their keys.
func (p *View) Files(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for key, err := range p.d.index.AllFiles(ctx, p.id, prefix) {
			if err != nil {
				yield("", failure("list files", err))
				return
			}
			if !yield(key, nil) {
				return
			}
		}
	}
}

package cachetest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"firn/internal/cache"
	"firn/nix"
)

var (
	_ cache.Keeper     = (*Memory)(nil)
	_ cache.Enumerator = (*Memory)(nil)
)

// Keep implements [cache.Keeper]. Remove removes what is kept all the same.
func (m *Memory) Keep(_ context.Context, path nix.StorePath) (done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cannotKeep != nil {
		return nil, m.cannotKeep
	}
	if _, ok := m.paths[path.Hash()]; !ok {
		return nil, fmt.Errorf("keep %s: %w", path, cache.ErrNotFound)
	}
	m.kept[path] = true
	return func() {}, nil
}

// KeepOnly implements [cache.Keeper].
func (m *Memory) KeepOnly(ctx context.Context, needed func(context.Context) ([]nix.StorePath, error)) error {
	paths, err := needed(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.kept)
	for _, path := range paths {
		if _, ok := m.paths[path.Hash()]; ok {
			m.kept[path] = true
		}
	}
	return nil
}

// FailKeep makes Keep fail with err, until it is nil.
func (m *Memory) FailKeep(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cannotKeep = err
}

// Kept returns the names of the paths that are kept, in order.
func (m *Memory) Kept() (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for path := range m.kept {
		names = append(names, path.Name())
	}
	slices.Sort(names)
	return names
}

// DanglingReferences implements [cache.Publisher].
func (m *Memory) DanglingReferences(context.Context) iter.Seq2[cache.Reference, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []cache.Reference
	for ref, by := range m.elsewhere {
		i := slices.IndexFunc(by, func(p nix.StorePath) bool { _, ok := m.paths[p.Hash()]; return ok })
		if _, ok := m.paths[ref.Hash()]; !ok && i >= 0 {
			all = append(all, cache.Reference{From: by[i], To: ref})
		}
	}
	return func(yield func(cache.Reference, error) bool) {
		for _, r := range all {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// WithheldPaths implements [cache.Publisher]: nothing is.
func (m *Memory) WithheldPaths(context.Context) iter.Seq2[nix.StorePath, error] {
	return func(func(nix.StorePath, error) bool) {}
}

// Paths implements [cache.Enumerator].
func (m *Memory) Paths(context.Context) iter.Seq2[*nix.PathInfo, error] {
	return func(yield func(*nix.PathInfo, error) bool) {
		m.mu.Lock()
		all := slices.Collect(maps.Values(m.paths))
		m.mu.Unlock()
		for _, p := range all {
			if !yield(p.Info, nil) {
				return
			}
		}
	}
}

// Files implements [cache.Enumerator].
func (m *Memory) Files(_ context.Context, prefix string) iter.Seq2[string, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for drv := range m.logs {
		names = append(names, "log/"+drv.Base())
	}
	for id := range m.realisations {
		names = append(names, "realisations/"+id.String()+".doi")
	}
	for key := range m.traces {
		drv, output, _ := strings.Cut(key, "!")
		names = append(names, "build-trace-v2/"+drv+"/"+output+".doi")
	}
	return func(yield func(string, error) bool) {
		for _, name := range names {
			if strings.HasPrefix(name, prefix) && !yield(name, nil) {
				return
			}
		}
	}
}

package catalogtest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"

	"firn/internal/catalog"
	"firn/nix"
)

// DeletePaths removes paths.
func (m *Memory) DeletePaths(_ context.Context, d *catalog.Deletion) (*catalog.Deleted, error) {
	defer m.lock()()
	r := m.caches[d.Cache]
	if r == nil {
		return nil, fmt.Errorf("delete paths: %w: the cache", catalog.ErrNotFound)
	}
	search := catalog.NewSearch(d)
	for again := true; again; {
		again = false
		for _, p := range r.paths {
			found, err := search.Show(p.Info.Path, p.Info.References)
			if err != nil {
				return nil, fmt.Errorf("delete paths: %w", err)
			}
			again = again || found
		}
	}
	if err := search.Err(); err != nil {
		return nil, fmt.Errorf("delete paths: %w", err)
	}
	all := make(map[nix.PathHash]bool)
	for _, hash := range search.Order() {
		all[hash] = true
	}
	byHash := func(a, b nix.PathHash) int { return bytes.Compare(a[:], b[:]) }
	var gone catalog.Deleted
	for _, hash := range slices.SortedFunc(maps.Keys(all), byHash) {
		if r.paths[hash] == nil {
			return nil, fmt.Errorf("delete paths: %w: %s", catalog.ErrNotFound, hash)
		}
		gone.Paths = append(gone.Paths, r.paths[hash].Info.Path)
	}
	kept := make(map[catalog.NARID]bool)
	for _, other := range m.caches {
		for hash, p := range other.paths {
			if other != r || !all[hash] {
				kept[p.NAR] = true
			}
		}
	}
	for hash := range all {
		if id := r.paths[hash].NAR; !kept[id] {
			kept[id] = true
			gone.FileBytes += m.nars[id].FileSize
		}
	}
	if d.DryRun {
		return &gone, nil
	}
	m.deleteFiles(r, all)
	for hash := range all {
		m.deletePath(r, hash)
	}
	m.changed()
	return &gone, nil
}

// deleteFiles removes what belongs to paths that go.
func (m *Memory) deleteFiles(r *room, gone map[nix.PathHash]bool) {
	maps.DeleteFunc(r.files, func(_ string, f *catalog.File) bool { return gone[f.Path.Hash()] })
	stay := make(map[nix.StorePath]bool)
	for hash, p := range r.paths {
		if !gone[hash] {
			stay[p.Info.Deriver] = true
		}
	}
	for hash := range gone {
		for _, drv := range []nix.StorePath{r.paths[hash].Info.Path, r.paths[hash].Info.Deriver} {
			if !stay[drv] {
				delete(r.files, catalog.LogKey(drv))
			}
		}
	}
}

package catalogtest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"firn/internal/catalog"
	"firn/nix"
)

// Publish makes a path visible.
func (m *Memory) Publish(_ context.Context, cache catalog.CacheID, p *catalog.Path, debug []catalog.DebugInfo, b catalog.Basis) (there *catalog.Path, added bool, err error) {
	defer m.lock()()
	r := m.caches[cache]
	if r == nil {
		return nil, false, fmt.Errorf("publish %s: %w: the cache", p.Info.Path, catalog.ErrGone)
	}
	hash := p.Info.Path.Hash()
	old := r.paths[hash]
	withheld := old != nil && old.NAR != p.NAR && m.nars[old.NAR].Fault != catalog.Whole
	if old != nil && !withheld {
		if old.NAR == p.NAR {
			if err := m.sign(old, p.Info.Signatures); err != nil {
				return nil, false, fmt.Errorf("publish %s: %w", p.Info.Path, err)
			}
		}
		return m.there(old), false, nil
	}
	if len(p.Info.Signatures) > mostSignatures {
		return nil, false, fmt.Errorf("publish %s: %w: too many signatures", p.Info.Path, catalog.ErrConflict)
	}
	n := m.nars[p.NAR]
	if n == nil || n.Fault != catalog.Whole {
		return nil, false, fmt.Errorf("publish %s: %w: the NAR", p.Info.Path, catalog.ErrGone)
	}
	changed := b.Visited == nil && (r.awaited[hash] || old != nil)
	for visited := range b.Visited {
		changed = changed || r.paths[visited] != nil && r.rows[visited] > b.Paths
	}
	for _, ref := range p.Info.References {
		changed = changed || ref != p.Info.Path && r.lacks(b, ref)
	}
	if changed {
		return nil, false, fmt.Errorf("publish %s: %w", p.Info.Path, catalog.ErrChanged)
	}
	if withheld {
		m.deletePath(r, hash)
	}
	path := new(*p)
	path.Elsewhere = nil
	path.Info.NARHash, path.Info.NARSize = nix.SHA256Sum(n.Hash), n.Size
	if path.Info.RegistrationTime.IsZero() {
		path.Info.RegistrationTime = m.now()
	}
	path.Info.RegistrationTime = path.Info.RegistrationTime.Truncate(time.Second).UTC()
	path.Published = m.now().Truncate(time.Second).UTC()
	m.lastRow++
	r.paths[hash], r.rows[hash] = path, m.lastRow
	for _, ref := range p.Info.References {
		if r.paths[ref.Hash()] == nil {
			r.awaited[ref.Hash()] = true
		}
	}
	for _, ref := range p.Elsewhere {
		to := ref.Hash()
		if r.dangling[to] == nil {
			r.dangling[to] = make(map[nix.PathHash]nix.StorePath)
		}
		r.dangling[to][hash] = ref
	}
	for _, d := range debug {
		d.Path = hash
		r.debug[d.BuildID] = append(r.debug[d.BuildID], d)
	}
	m.changed()
	return m.there(path), true, nil
}

// lacks reports whether a path is not there that may have been deleted since a basis.
func (r *room) lacks(b catalog.Basis, path nix.StorePath) bool {
	return r.paths[path.Hash()] == nil && !b.Partial && b.Deletions != r.deletions
}

// there is a path with what it says of its NAR now.
func (m *Memory) there(p *catalog.Path) *catalog.Path {
	there, n := new(*p), m.nars[p.NAR]
	there.FileSize, there.Tag = n.FileSize, n.Tag
	return there
}

// sign adds the signatures that a path does not have.
func (m *Memory) sign(p *catalog.Path, sigs []nix.Signature) error {
	all := slices.Clone(p.Info.Signatures)
	for _, s := range sigs {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	if len(all) > mostSignatures {
		return fmt.Errorf("%w: too many signatures", catalog.ErrConflict)
	}
	p.Info.Signatures = all
	m.changed()
	return nil
}

// An endorsed is signatures of a path that another source has.
type endorsed struct {
	nar  catalog.Sum
	sigs []nix.Signature
}

// Endorse keeps signatures of a path that another source has.
func (m *Memory) Endorse(_ context.Context, cache catalog.CacheID, hash nix.PathHash, nar catalog.Sum, sigs []nix.Signature) error {
	defer m.lock()()
	r := m.caches[cache]
	if r == nil {
		return fmt.Errorf("sign %s: %w: the cache", hash, catalog.ErrGone)
	}
	var all []nix.Signature
	if e := r.endorsed[hash]; e.nar == nar {
		all = slices.Clone(e.sigs)
	}
	for _, s := range sigs {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	if len(all) > mostSignatures {
		return fmt.Errorf("sign %s: %w: too many signatures", hash, catalog.ErrConflict)
	}
	r.endorsed[hash] = endorsed{nar, all}
	m.changed()
	return nil
}

// Endorsements returns what was pushed of a path.
func (m *Memory) Endorsements(_ context.Context, cache catalog.CacheID, hash nix.PathHash, nar catalog.Sum) (sigs []nix.Signature, fields []nix.Field, err error) {
	defer m.lock()()
	r := m.room(cache)
	if p := r.paths[hash]; p != nil && m.nars[p.NAR].Hash == nar {
		sigs, fields = slices.Clone(p.Info.Signatures), p.Info.Extra
	}
	if e := r.endorsed[hash]; e.nar == nar {
		sigs = append(sigs, e.sigs...)
	}
	return sigs, fields, nil
}

// Basis returns what Publish will compare.
func (m *Memory) Basis(_ context.Context, cache catalog.CacheID, hash nix.PathHash) (catalog.Basis, error) {
	defer m.lock()()
	r := m.room(cache)
	return catalog.Basis{Paths: m.lastRow, Deletions: r.deletions, Dangling: r.awaited[hash] || r.paths[hash] != nil}, nil
}

// DanglingReferences iterates over references to what is not published.
func (m *Memory) DanglingReferences(_ context.Context, cache catalog.CacheID) iter.Seq2[*catalog.DanglingReference, error] {
	return func(yield func(*catalog.DanglingReference, error) bool) {
		unlock := m.lock()
		r := m.room(cache)
		var all []*catalog.DanglingReference
		for ref, by := range r.dangling {
			if len(by) == 0 || r.paths[ref] != nil {
				continue
			}
			first := slices.MinFunc(slices.Collect(maps.Keys(by)), func(a, b nix.PathHash) int { return bytes.Compare(a[:], b[:]) })
			all = append(all, &catalog.DanglingReference{Path: by[first], By: r.paths[first].Info.Path})
		}
		unlock()
		slices.SortFunc(all, func(a, b *catalog.DanglingReference) int {
			x, y := a.Path.Hash(), b.Path.Hash()
			return bytes.Compare(x[:], y[:])
		})
		for _, d := range all {
			if !yield(d, nil) {
				return
			}
		}
	}
}

// WithheldPaths iterates over paths that are withheld.
func (m *Memory) WithheldPaths(ctx context.Context, cache catalog.CacheID) iter.Seq2[nix.StorePath, error] {
	return func(yield func(nix.StorePath, error) bool) {
		for p, err := range m.AllPaths(ctx, cache, nix.PathHash{}, true) {
			if !yield(p.Info.Path, err) {
				return
			}
		}
	}
}

// References returns what paths refer to.
func (m *Memory) References(_ context.Context, cache catalog.CacheID, hashes []nix.PathHash) iter.Seq2[catalog.Referrer, error] {
	return func(yield func(catalog.Referrer, error) bool) {
		if len(hashes) > mostAtOnce {
			yield(catalog.Referrer{}, fmt.Errorf("look up references of %d paths at once, at most %d", len(hashes), mostAtOnce))
			return
		}
		unlock := m.lock()
		all := m.room(cache).paths
		var found []catalog.Referrer
		for _, hash := range hashes {
			if p := all[hash]; p != nil {
				found = append(found, catalog.Referrer{Path: p.Info.Path, References: p.Info.References, Withheld: m.nars[p.NAR].Fault != catalog.Whole})
			}
		}
		unlock()
		for _, r := range found {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// Path returns a published path.
func (m *Memory) Path(_ context.Context, cache catalog.CacheID, hash nix.PathHash) (*catalog.Path, error) {
	defer m.lock()()
	p := m.room(cache).paths[hash]
	if p == nil || m.nars[p.NAR].Fault != catalog.Whole {
		return nil, fmt.Errorf("look up %s: %w", hash, catalog.ErrNotFound)
	}
	return m.there(p), nil
}

// Withhold changes the faults of NARs.
func (m *Memory) Withhold(_ context.Context, nars []catalog.NARID, from, to catalog.Fault) (changed int64, err error) {
	if len(nars) > mostAtOnce {
		return 0, fmt.Errorf("withhold %d NARs at once, at most %d", len(nars), mostAtOnce)
	}
	defer m.lock()()
	for _, id := range nars {
		if n := m.nars[id]; n != nil && n.Fault == from {
			n.Fault = to
			changed++
		}
	}
	m.changed()
	return changed, nil
}

// AllPaths iterates over paths.
func (m *Memory) AllPaths(_ context.Context, cache catalog.CacheID, after nix.PathHash, withheld bool) iter.Seq2[*catalog.Path, error] {
	return func(yield func(*catalog.Path, error) bool) {
		unlock := m.lock()
		var all []*catalog.Path
		for hash, p := range m.room(cache).paths {
			if (m.nars[p.NAR].Fault != catalog.Whole) == withheld && (after == (nix.PathHash{}) || bytes.Compare(hash[:], after[:]) > 0) {
				all = append(all, m.there(p))
			}
		}
		unlock()
		slices.SortFunc(all, func(a, b *catalog.Path) int {
			x, y := a.Info.Path.Hash(), b.Info.Path.Hash()
			return bytes.Compare(x[:], y[:])
		})
		for _, p := range all {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// DeletePath removes a path.
func (m *Memory) DeletePath(_ context.Context, cache catalog.CacheID, hash nix.PathHash) error {
	defer m.lock()()
	r := m.room(cache)
	if r.paths[hash] == nil {
		return fmt.Errorf("delete %s: %w", hash, catalog.ErrNotFound)
	}
	m.deletePath(r, hash)
	return nil
}

func (m *Memory) deletePath(r *room, hash nix.PathHash) {
	p := r.paths[hash]
	delete(r.paths, hash)
	r.awaited[hash] = true
	for _, by := range r.dangling {
		delete(by, hash)
	}
	r.deletions++
	for id, all := range r.debug {
		r.debug[id] = slices.DeleteFunc(all, func(d catalog.DebugInfo) bool { return d.Path == hash })
	}
	if !r.publishes(p.NAR) {
		for _, u := range r.uploads {
			if u.NAR == p.NAR {
				u.at = m.now()
			}
		}
	}
	m.changed()
}

// DebugInfo returns the debug info of a build ID.
func (m *Memory) DebugInfo(_ context.Context, cache catalog.CacheID, buildID string) (*catalog.DebugInfo, error) {
	defer m.lock()()
	r := m.room(cache)
	for _, d := range r.debug[buildID] {
		if m.nars[r.paths[d.Path].NAR].Fault == catalog.Whole {
			return &d, nil
		}
	}
	return nil, fmt.Errorf("look up debug info: %w", catalog.ErrNotFound)
}

// Count returns what is kept.
func (m *Memory) Count(_ context.Context, cache *catalog.CacheID) (catalog.Counts, error) {
	defer m.lock()()
	var c catalog.Counts
	if cache != nil {
		c.Caches = 1
		nars := make(map[catalog.NARID]catalog.Fault)
		for _, p := range m.room(*cache).paths {
			n := m.nars[p.NAR]
			c.Paths++
			c.NARBytes += n.Size
			c.FileBytes += n.FileSize
			nars[p.NAR] = n.Fault
		}
		c.NARs = int64(len(nars))
		for _, fault := range nars {
			withheld(&c, fault)
		}
		return c, nil
	}
	c.Caches, c.NARs, c.Chunks, c.Packs = int64(len(m.caches)), int64(len(m.nars)), int64(len(m.chunks)), int64(len(m.packs))
	published := make(map[catalog.NARID]bool)
	for _, r := range m.caches {
		c.Paths += int64(len(r.paths))
		for _, p := range r.paths {
			published[p.NAR] = true
		}
	}
	for id, n := range m.nars {
		c.NARBytes += n.Size
		c.FileBytes += n.FileSize
		if !published[id] {
			c.Unpublished += n.FileSize
		}
		withheld(&c, n.Fault)
	}
	for name, p := range m.packs {
		if m.refers(name) {
			c.Reclaimable += p.dead
		} else {
			c.Reclaimable += p.size
		}
		c.PackBytes += p.size
	}
	return c, nil
}

func withheld(c *catalog.Counts, fault catalog.Fault) {
	if fault != catalog.Whole {
		c.Withheld++
	}
	if fault == catalog.Missing {
		c.Missing++
	}
}

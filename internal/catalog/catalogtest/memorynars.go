package catalogtest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"firn/internal/catalog"
)

// Chunks returns those of the given chunks that there are.
func (m *Memory) Chunks(_ context.Context, cache catalog.CacheID, hashes []catalog.Sum) ([]catalog.Chunk, error) {
	if len(hashes) > mostAtOnce {
		return nil, fmt.Errorf("look up %d chunks at once, at most %d", len(hashes), mostAtOnce)
	}
	defer m.lock()()
	var there []catalog.Chunk
	for _, hash := range hashes {
		c, ok := m.chunks[hash]
		if nar, used := m.uses[use{hash, cache}]; used {
			c.Led = m.room(cache).leads(nar)
		}
		if ok && !m.retired(c) && !slices.Contains(there, c) {
			there = append(there, c)
		}
	}
	return there, nil
}

// AddNAR adds a NAR with all that belongs to it.
func (m *Memory) AddNAR(_ context.Context, n *catalog.NewNAR) (id catalog.NARID, added bool, err error) {
	defer m.lock()()
	if n.Upload != nil && m.caches[n.Upload.Cache] == nil {
		return 0, false, fmt.Errorf("add NAR: %w: the cache", catalog.ErrGone)
	}
	id, there := m.narIDs[n.Hash]
	if !there || m.nars[id].Fault != catalog.Whole {
		for _, name := range n.Packs {
			if m.packs[name] == nil && (n.Pack == nil || n.Pack.Name != name) {
				return 0, false, fmt.Errorf("add NAR: %w: pack %s", catalog.ErrGone, name)
			}
		}
		for _, c := range n.Built {
			if at, ok := m.chunks[c.Hash]; !ok || at.Pack != c.Pack || at.Offset != c.Offset {
				return 0, false, fmt.Errorf("add NAR: %w: a chunk in pack %s", catalog.ErrGone, c.Pack)
			}
		}
		if !there {
			id = catalog.NARID(m.draw())
		}
		m.keep(id, n)
		added = true
	}
	if n.Upload != nil {
		m.upload(n.Upload, id)
	}
	m.changed()
	return id, added, nil
}

// keep puts a NAR under an ID.
func (m *Memory) keep(id catalog.NARID, n *catalog.NewNAR) {
	if n.Pack != nil && m.packs[n.Pack.Name] == nil {
		m.packs[n.Pack.Name] = &pack{size: n.Pack.Size}
	}
	for _, name := range n.Packs {
		p := m.packs[name]
		p.loose = time.Time{}
		if p.retired {
			p.left++
		}
	}
	for _, c := range n.Chunks {
		if at, there := m.chunks[c.Hash]; !there || m.retired(at) {
			m.chunks[c.Hash] = c
		}
	}
	if old := m.nars[id]; old != nil {
		m.leave(old)
	}
	k := &kept{NAR: n.NAR, listing: n.Listing, at: m.now()}
	k.ID, k.Fault = id, catalog.Whole
	m.nars[id], m.narIDs[n.Hash] = k, id
}

func (m *Memory) upload(u *catalog.Upload, id catalog.NARID) {
	up := &made{Upload: *u, at: m.now()}
	up.NAR, up.Uses = id, nil
	for _, hash := range u.Uses {
		if _, there := m.chunks[hash]; there {
			m.uses[use{hash, u.Cache}] = id
		}
	}
	m.caches[u.Cache].uploads[u.Name] = up
}

// ForgetChunks forgets chunks of a pack.
func (m *Memory) ForgetChunks(_ context.Context, pack string, offsets []int64) error {
	defer m.lock()()
	m.forget(func(c catalog.Chunk) bool {
		return c.Pack == pack && (offsets == nil || slices.Contains(offsets, c.Offset))
	})
	m.changed()
	return nil
}

// forget removes chunks.
func (m *Memory) forget(which func(catalog.Chunk) bool) {
	maps.DeleteFunc(m.chunks, func(_ catalog.Sum, c catalog.Chunk) bool { return which(c) })
	maps.DeleteFunc(m.uses, func(u use, _ catalog.NARID) bool {
		_, there := m.chunks[u.chunk]
		return !there
	})
}

// NAR returns what is kept under a NAR hash.
func (m *Memory) NAR(_ context.Context, hash catalog.Sum) (*catalog.NAR, error) {
	defer m.lock()()
	k := m.nars[m.narIDs[hash]]
	if k == nil {
		return nil, fmt.Errorf("look up NAR: %w", catalog.ErrNotFound)
	}
	return new(k.NAR), nil
}

// Leads reports whether something of a cache leads to a NAR.
func (m *Memory) Leads(_ context.Context, cache catalog.CacheID, nar catalog.NARID) (bool, error) {
	defer m.lock()()
	return m.room(cache).leads(nar), nil
}

func (r *room) leads(nar catalog.NARID) bool {
	for _, u := range r.uploads {
		if u.NAR == nar {
			return true
		}
	}
	return r.publishes(nar)
}

func (r *room) publishes(nar catalog.NARID) bool {
	for _, p := range r.paths {
		if p.NAR == nar {
			return true
		}
	}
	return false
}

// Listing returns the listing of a NAR.
func (m *Memory) Listing(_ context.Context, hash catalog.Sum) ([]byte, error) {
	defer m.lock()()
	k := m.nars[m.narIDs[hash]]
	if k == nil {
		return nil, fmt.Errorf("look up listing: %w", catalog.ErrNotFound)
	}
	return k.listing, nil
}

// AddUpload adds a name for a NAR.
func (m *Memory) AddUpload(_ context.Context, u *catalog.Upload) error {
	defer m.lock()()
	if m.caches[u.Cache] == nil || m.nars[u.NAR] == nil {
		return fmt.Errorf("add upload %s: %w", u.Name, catalog.ErrGone)
	}
	m.upload(u, u.NAR)
	m.changed()
	return nil
}

// Upload returns what a client sent under a name.
func (m *Memory) Upload(_ context.Context, cache catalog.CacheID, name string) (*catalog.Upload, error) {
	defer m.lock()()
	u := m.room(cache).uploads[name]
	if u == nil {
		return nil, fmt.Errorf("look up upload %s: %w", name, catalog.ErrNotFound)
	}
	there := new(u.Upload)
	there.NARHash, there.NARSize = m.nars[u.NAR].Hash, m.nars[u.NAR].Size
	there.Published = m.room(cache).publishes(u.NAR)
	return there, nil
}

// AllNARs iterates over all NARs.
func (m *Memory) AllNARs(_ context.Context, after catalog.NARID, withheld bool) iter.Seq2[*catalog.NAR, error] {
	return func(yield func(*catalog.NAR, error) bool) {
		unlock := m.lock()
		var all []*catalog.NAR
		for _, id := range slices.Sorted(maps.Keys(m.nars)) {
			if id > after && (!withheld || m.nars[id].Fault != catalog.Whole) {
				n := new(m.nars[id].NAR)
				n.Recipe, n.Packs, n.Tag = nil, nil, ""
				all = append(all, n)
			}
		}
		unlock()
		for _, n := range all {
			if !yield(n, nil) {
				return
			}
		}
	}
}

// Sweep forgets what nothing leads to.
func (m *Memory) Sweep(_ context.Context, before time.Time, limit int) (packs []string, more bool, err error) {
	defer m.lock()()
	uploads, nars := limit, limit
	for _, r := range m.caches {
		maps.DeleteFunc(r.uploads, func(_ string, u *made) bool {
			if !u.at.Before(before) || r.publishes(u.NAR) {
				return false
			}
			uploads--
			return uploads >= 0
		})
	}
	maps.DeleteFunc(m.nars, func(id catalog.NARID, k *kept) bool {
		if !k.at.Before(before) || m.leads(id) {
			return false
		}
		if nars--; nars < 0 {
			return false
		}
		delete(m.narIDs, k.Hash)
		m.leave(k)
		return true
	})
	packs, more = m.sweepPacks(before, limit)
	m.changed()
	return packs, more || uploads < 0 || nars < 0, nil
}

func (m *Memory) leads(nar catalog.NARID) bool {
	for _, r := range m.caches {
		if r.leads(nar) {
			return true
		}
	}
	return false
}

func (m *Memory) sweepPacks(before time.Time, limit int) (gone []string, more bool) {
	used := make(map[string]bool)
	for _, k := range m.nars {
		for _, name := range k.Packs {
			used[name] = true
		}
	}
	for name, p := range m.packs {
		switch {
		case used[name]:
			p.loose = time.Time{}
		case p.loose.IsZero():
			p.loose = m.now()
		case !p.loose.Before(before):
			p.retired = p.retired || p.loose.Before(before.Add(m.now().Sub(before)/2))
		case len(gone) == limit:
			more = true
		default:
			gone = append(gone, name)
			delete(m.packs, name)
			m.forget(func(c catalog.Chunk) bool { return c.Pack == name })
		}
	}
	return gone, more
}

// KnownPacks returns those of the given names that are packs.
func (m *Memory) KnownPacks(_ context.Context, names []string) (known []string, err error) {
	if len(names) > mostAtOnce {
		return nil, fmt.Errorf("look up %d packs at once, at most %d", len(names), mostAtOnce)
	}
	defer m.lock()()
	for _, name := range names {
		if m.packs[name] != nil {
			known = append(known, name)
		}
	}
	return known, nil
}

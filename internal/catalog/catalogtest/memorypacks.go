package catalogtest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"

	"firn/internal/catalog"
)

// leave notes that a NAR does not refer to its packs any more.
func (m *Memory) leave(n *kept) {
	for _, name := range n.Packs {
		if p := m.packs[name]; p != nil {
			p.left++
		}
	}
}

// refers reports whether a NAR refers to a pack.
func (m *Memory) refers(pack string) bool {
	for _, k := range m.nars {
		if slices.Contains(k.Packs, pack) {
			return true
		}
	}
	return false
}

// ThinPacks returns packs that NARs have left.
func (m *Memory) ThinPacks(_ context.Context, limit int) (thin []catalog.ThinPack, err error) {
	defer m.lock()()
	for _, name := range slices.Sorted(maps.Keys(m.packs)) {
		if p := m.packs[name]; p.left > 0 && len(thin) < limit && m.refers(name) {
			thin = append(thin, catalog.ThinPack{Pack: catalog.Pack{Name: name, Size: p.size}, Left: p.left})
		}
	}
	return thin, nil
}

// AllPacks iterates over all packs.
func (m *Memory) AllPacks(context.Context) iter.Seq2[catalog.Pack, error] {
	return func(yield func(catalog.Pack, error) bool) {
		unlock := m.lock()
		var all []catalog.Pack
		for _, name := range slices.Sorted(maps.Keys(m.packs)) {
			all = append(all, catalog.Pack{Name: name, Size: m.packs[name].size})
		}
		unlock()
		for _, p := range all {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// NARsIn iterates over the NARs that refer to a pack.
func (m *Memory) NARsIn(_ context.Context, pack string) iter.Seq2[*catalog.NAR, error] {
	return func(yield func(*catalog.NAR, error) bool) {
		unlock := m.lock()
		var all []*catalog.NAR
		for _, id := range slices.Sorted(maps.Keys(m.nars)) {
			if n := m.nars[id]; slices.Contains(n.Packs, pack) {
				all = append(all, new(n.NAR))
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

// Examined notes what of a pack is nobody's.
func (m *Memory) Examined(_ context.Context, t catalog.ThinPack, dead int64) error {
	defer m.lock()()
	if p := m.packs[t.Name]; p != nil && p.left == t.Left {
		p.left, p.dead, p.examined = 0, dead, true
		p.retired = p.retired && !m.refers(t.Name)
		m.changed()
	}
	return nil
}

// Rewritten returns what waits of packs that were written anew.
func (m *Memory) Rewritten(context.Context) (size int64, err error) {
	defer m.lock()()
	for name, p := range m.packs {
		if p.examined && p.left == 0 && !m.refers(name) {
			size += p.size
		}
	}
	return size, nil
}

// MoveFrames makes a move.
func (m *Memory) MoveFrames(_ context.Context, v *catalog.Move) (moved []catalog.NARID, err error) {
	if len(v.NARs) > mostAtOnce {
		return nil, fmt.Errorf("move %d NARs at once, at most %d", len(v.NARs), mostAtOnce)
	}
	defer m.lock()()
	for _, n := range v.NARs {
		k := m.nars[n.ID]
		if k == nil || !bytes.Equal(k.Recipe, n.Was) || n.Index >= len(k.Packs) || k.Packs[n.Index] != v.From {
			continue
		}
		k.Packs = slices.Clone(k.Packs)
		k.Packs[n.Index], k.Recipe, k.Tag = v.To.Name, n.Recipe, n.Tag
		moved = append(moved, n.ID)
	}
	if m.packs[v.From] == nil || len(moved) == 0 {
		return nil, fmt.Errorf("move frames of pack %s: %w", v.From, catalog.ErrGone)
	}
	if m.packs[v.To.Name] == nil {
		m.packs[v.To.Name] = &pack{size: v.To.Size}
	}
	m.packs[v.To.Name].left++
	for _, c := range v.Chunks {
		if at, ok := m.chunks[c.Hash]; ok && at.Pack == v.From && at.Offset == c.From {
			at.Pack, at.Offset = v.To.Name, c.To
			m.chunks[c.Hash] = at
		}
	}
	m.forget(func(c catalog.Chunk) bool {
		return c.Pack == v.From && slices.ContainsFunc(v.Chunks, func(k catalog.MovedChunk) bool { return k.From == c.Offset })
	})
	m.packs[v.From].retired = true
	m.changed()
	return moved, nil
}

// retired reports whether what was needed of the pack of a chunk was moved.
func (m *Memory) retired(c catalog.Chunk) bool {
	return m.packs[c.Pack] != nil && m.packs[c.Pack].retired
}

package depot

import (
	"firn/internal/catalog"
	"firn/internal/depot/index"
)

// maxRelocations is how often a NAR is told again where its chunks lie. Each time takes a pack that
// is rewritten just then.
const maxRelocations = 3

// relocate asks again where the chunks lie that were there when the NAR came in, as their pack may
// have been rewritten in the meantime. It reports whether some lie elsewhere now. A chunk that is
// not found may be where it was: no NAR needed it when the others were moved.
func (p *packing) relocate(id catalog.CacheID) (bool, error) {
	type old struct {
		pack string
		off  int64
	}
	moved := make(map[old]index.Chunk)
	now := make(map[catalog.Sum]index.Chunk, len(p.reused))
	for asked := p.reused; len(asked) > 0; {
		some := asked[:min(len(asked), maxAsked)]
		asked = asked[len(some):]
		sums := make([]catalog.Sum, len(some))
		for i, c := range some {
			sums[i] = c.Hash
		}
		found, err := p.d.index.FindChunks(p.ctx, id, sums)
		if err != nil {
			return false, failure("look up chunks", err)
		}
		for _, c := range found {
			now[c.Hash] = c
		}
	}
	for i, was := range p.reused {
		is, ok := now[was.Hash]
		if !ok {
			continue
		}
		if is.Size != was.Size {
			return false, nil
		}
		if is.Pack != was.Pack || is.Offset != was.Offset {
			moved[old{was.Pack, was.Offset}] = is
			p.reused[i] = is
		}
	}
	if len(moved) == 0 {
		return false, nil
	}
	packs := p.packs
	p.packs, p.indices = nil, nil // packs without a frame of the NAR are left out
	for i := range p.frames {
		f := &p.frames[i]
		name := packs[f.pack]
		if c, ok := moved[old{name, f.off}]; ok {
			name, f.off, f.length = c.Pack, c.Offset, int32(c.Length)
		}
		f.pack = p.index(name)
	}
	return true, nil
}

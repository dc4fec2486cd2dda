package depot

import (
	"context"
	"fmt"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot/index"
)

// packing is the third stage of an ingest: it writes the frames of a NAR to a pack, and notes where
// all frames lie.
type packing struct {
	d   *Depot
	ctx context.Context

	frames  []place
	packs   []string // that have them
	indices map[string]int32
	chunks  []index.Chunk // new ones
	reused  []index.Chunk // those that were kept already
	uses    []catalog.Sum // chunks that nothing of the cache has led to so far

	to      *newPack // nil: nothing was written
	own     int32    // its index in packs; less than 0: no frame is in it
	written int64    // bytes of frames in it
}

// write notes where the frames of a batch lie, and writes those that are new. It takes the batches
// in order.
func (p *packing) write(b *batch) error {
	for i := range b.shares {
		if err := p.writeShare(&b.shares[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *packing) writeShare(s *share) error {
	if len(s.out)+len(s.unseen) > 0 && p.to == nil {
		p.to = &newPack{d: p.d, users: 1, done: make(chan struct{})}
	}
	var end int64
	if len(s.out) > 0 {
		if err := p.to.frames.begin(p.ctx, p.d); err != nil {
			return err
		}
		p.own, end = p.index(p.to.frames.name), p.to.frames.size
	}
	for i := range s.pieces {
		t := &s.pieces[i]
		at := place{size: int32(len(t.data)), sum: t.sum}
		if t.shared && (t.isNew() || t.isUnseen()) {
			p.uses = append(p.uses, t.sum)
		}
		switch {
		case t.known != nil:
			at.pack, at.off, at.length = p.index(t.known.Pack), t.known.Offset, int32(t.known.Length)
			p.reused = append(p.reused, *t.known)
		case t.like >= 0:
			at = p.frames[t.like]
		default:
			at.pack, at.off, at.length = p.own, end, int32(t.length)
			end += int64(t.length)
			if t.shared {
				p.chunks = append(p.chunks, index.Chunk{Hash: t.sum, Pack: p.to.frames.name, Offset: at.off, Length: int64(at.length), Size: int64(at.size)})
			}
		}
		p.frames = append(p.frames, at)
	}
	if len(s.unseen) > 0 {
		if err := p.to.dummy.begin(p.ctx, p.d); err != nil {
			return err
		}
		if err := p.to.dummy.write(s.unseen); err != nil {
			return err
		}
	}
	if len(s.out) == 0 {
		return nil
	}
	p.written += int64(len(s.out))
	return p.to.frames.write(s.out)
}

// index returns the index of a pack among those of the NAR.
func (p *packing) index(pack string) int32 {
	i, ok := p.indices[pack]
	if !ok {
		if p.indices == nil {
			p.indices = make(map[string]int32)
		}
		i = int32(len(p.packs))
		p.packs = append(p.packs, pack)
		p.indices[pack] = i
	}
	return i
}

// commit makes the frames of a NAR of so many bytes durable, if they are all of it.
func (p *packing) commit(size int64) error {
	for _, f := range p.frames {
		size -= int64(f.size)
	}
	if size != 0 {
		return fmt.Errorf("%w: the frames and the NAR differ by %d bytes", cache.ErrUnavailable, size)
	}
	if p.to == nil {
		return nil
	}
	return p.d.sharing.commit(p.ctx, p.to)
}

// pack returns the pack that has the new frames, or nil if there are none.
func (p *packing) pack() *index.Pack {
	if p.own < 0 {
		return nil
	}
	return &index.Pack{Name: p.to.frames.name, Size: p.to.frames.size}
}

// close removes what was written, unless a record may need it.
func (p *packing) close() {
	if p.to != nil {
		p.d.sharing.leave(p.ctx, p.to)
	}
}

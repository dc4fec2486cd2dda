package depot

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot/blob"
)

// packing is the third stage of an ingest: it writes the frames of a NAR to a pack, and notes where
// all frames lie.
type packing struct {
	d   *Depot
	ctx context.Context

	frames  []place
	packs   []string // that have them
	indices map[string]int32
	chunks  []catalog.Chunk // new ones
	reused  []catalog.Chunk // those that were kept already
	uses    []catalog.Sum   // chunks that nothing of the cache has led to so far

	pack  newPack
	own   int32   // index of the pack in packs
	dummy newPack // of frames that are thrown away
}

// A newPack is a pack that is being written. It begins with its first frame.
type newPack struct {
	w    blob.Writer // nil: nothing was written
	name string
	size int64
}

func newPackName() string { return strings.ToLower(rand.Text()) + ".pack" }

// begin begins the pack, unless it is begun.
func (p *newPack) begin(ctx context.Context, d *Depot) error {
	if p.w != nil {
		return nil
	}
	p.name = newPackName()
	d.packs.pin([]string{p.name}) // until it is in a record, however old it is by then
	w, err := d.blobs.Create(ctx, p.name)
	if err != nil {
		d.packs.unpin([]string{p.name})
		return fmt.Errorf("create pack: %w", d.unavailable(ctx, err))
	}
	p.w = w
	return nil
}

func (p *newPack) write(frames []byte) error {
	if _, err := p.w.Write(frames); err != nil {
		return fmt.Errorf("write pack: %w: %w", cache.ErrUnavailable, err)
	}
	p.size += int64(len(frames))
	return nil
}

// commit makes the pack durable.
func (p *newPack) commit(ctx context.Context) error { return commit(ctx, p.w) }

func commit(ctx context.Context, w blob.Writer) error {
	if err := w.Commit(ctx); err != nil {
		return fmt.Errorf("commit pack: %w: %w", cache.ErrUnavailable, err)
	}
	return nil
}

// close removes the pack unless it was committed.
func (p *newPack) close(d *Depot) {
	if p.w != nil {
		p.w.Abort()
		d.packs.unpin([]string{p.name})
	}
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
	if len(s.out) > 0 {
		if err := p.pack.begin(p.ctx, p.d); err != nil {
			return err
		}
		p.own = p.index(p.pack.name)
	}
	end := p.pack.size
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
				p.chunks = append(p.chunks, catalog.Chunk{Hash: t.sum, Pack: p.pack.name, Offset: at.off, Length: int64(at.length), Size: int64(at.size)})
			}
		}
		p.frames = append(p.frames, at)
	}
	if len(s.unseen) > 0 {
		if err := p.dummy.begin(p.ctx, p.d); err != nil {
			return err
		}
		if err := p.dummy.write(s.unseen); err != nil {
			return err
		}
	}
	if len(s.out) == 0 {
		return nil
	}
	return p.pack.write(s.out)
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

// commit makes the frames of a NAR of so many bytes durable, if they are all of it. The dummy is
// committed only where no other pack is: the upload of a piece that is not new takes as long then
// as that of a new one.
func (p *packing) commit(size int64) error {
	for _, f := range p.frames {
		size -= int64(f.size)
	}
	switch {
	case size != 0:
		return fmt.Errorf("%w: the frames and the NAR differ by %d bytes", cache.ErrUnavailable, size)
	case p.pack.w != nil:
		return p.pack.commit(p.ctx)
	case p.dummy.w != nil:
		return p.dummy.commit(p.ctx)
	}
	return nil
}

// close removes what was written, unless it was committed.
func (p *packing) close() {
	p.pack.close(p.d)
	p.dummy.close(p.d)
}

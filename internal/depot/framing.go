package depot

import (
	"context"
	"crypto/sha256"
	"hash"
	"slices"
	"sync"

	"firn/internal/catalog"
	"firn/internal/depot/index"
)

// maxAsked is how many chunks a catalog is asked for at once.
const maxAsked = 256

// framing is the second stage of an ingest: it hashes the NAR and its pieces, finds out which
// pieces are kept already, and makes frames of the others.
type framing struct {
	d     *Depot
	ctx   context.Context
	cache catalog.CacheID // that the NAR comes to
	hash  hash.Hash       // of the NAR

	numbered int                 // frames so far
	first    map[catalog.Sum]int // the number of the first frame of each piece that is shared
}

func newFraming(d *Depot, ctx context.Context, id catalog.CacheID) framing {
	return framing{d: d, ctx: ctx, cache: id, hash: sha256.New(), first: map[catalog.Sum]int{}}
}

// sum returns the NAR hash, after the last batch.
func (f *framing) sum() catalog.Sum { return catalog.Sum(f.hash.Sum(nil)) }

// identify hashes the bytes of a batch, and finds out which pieces need a frame. It takes the
// batches in order.
func (f *framing) identify(b *batch) error {
	var hashing sync.WaitGroup
	if b.cut >= minShare {
		hashing.Go(func() { f.hash.Write(b.buf[:b.cut]) })
	} else {
		f.hash.Write(b.buf[:b.cut])
	}
	defer hashing.Wait()
	b.divide(cap(f.d.coders.working))
	f.d.coders.each(b.shares, func(s *share) {
		for i := range s.pieces {
			p := &s.pieces[i]
			p.sum = sha256.Sum256(p.data)
		}
	})
	if err := f.lookUp(b.pieces); err != nil {
		return err
	}
	f.number(b.pieces)
	return nil
}

// lookUp finds out which pieces are kept already.
func (f *framing) lookUp(pieces []piece) error {
	var shared []*piece
	for i := range pieces {
		if pieces[i].shared {
			shared = append(shared, &pieces[i])
		}
	}
	for asked := range slices.Chunk(shared, maxAsked) {
		sums := make([]catalog.Sum, len(asked))
		for i, p := range asked {
			sums[i] = p.sum
		}
		chunks, err := f.d.index.FindChunks(f.ctx, f.cache, sums)
		if err != nil {
			return failure("look up chunks", err)
		}
		if chunks, err = f.d.intactChunks(f.ctx, chunks); err != nil {
			return err
		}
		found := make(map[catalog.Sum]*index.Chunk, len(chunks))
		for i := range chunks {
			found[chunks[i].Hash] = &chunks[i]
		}
		for _, p := range asked {
			if c := found[p.sum]; c != nil && c.Size == int64(len(p.data)) {
				p.known = c
			}
		}
	}
	return nil
}

// number numbers the frames, and finds the pieces that the NAR has more than once.
func (f *framing) number(pieces []piece) {
	for i := range pieces {
		number := f.numbered
		f.numbered++
		p := &pieces[i]
		if !p.shared || p.known != nil && p.known.Led {
			continue
		}
		if first, ok := f.first[p.sum]; ok {
			p.like = first
		} else {
			f.first[p.sum] = number
		}
	}
}

// compress makes the frames of a batch, of several batches at once.
//
// A piece that only other caches have is compressed too, and the frame is thrown away, so that the
// time of an upload does not reveal that the piece is there.
func (f *framing) compress(b *batch) error {
	f.d.coders.each(b.shares, func(s *share) {
		e := f.d.coders.encoder()
		defer f.d.coders.putEncoder(e)
		for i := range s.pieces {
			switch p := &s.pieces[i]; {
			case p.isNew():
				before := len(s.out)
				s.out = e.EncodeAll(p.data, s.out)
				p.length = len(s.out) - before
			case p.isUnseen():
				s.unseen = e.EncodeAll(p.data, s.unseen)
			}
		}
	})
	return nil
}

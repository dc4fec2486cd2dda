package depot

import (
	"context"
	"sync"

	"firn/internal/catalog"
	"firn/internal/chunk"
	"firn/internal/depot/index"
)

const (
	// smallBuffer is how many bytes of a NAR are read before it counts as large. Two thirds of all
	// NARs are small.
	smallBuffer = 64 << 10
	// largeBuffer is the size in bytes of the other buffers. The end of a buffer that is too short
	// to be cut moves to the next one, so much shorter ones would have more of it copied.
	largeBuffer = 2 << 20

	// maxLarge bounds the uploads of large NARs at once, each of which has a large buffer. More
	// have to wait.
	maxLarge = 64
	// Beside that, up to maxExtra buffers let those uploads read on while they compress.
	minExtra, maxExtra = 4, 16

	// minShare is how many bytes are worth a goroutine of their own, about 100 µs of hashing.
	minShare = 128 << 10
)

// A batch goes through the stages of an ingest: a buffer with bytes of a NAR, from the beginning of
// a chunk on, and the pieces that they were cut into.
type batch struct {
	buf    []byte
	n      int     // how many bytes of the NAR are in buf
	pieces []piece // what they were cut into
	cut    int     // where the last piece ends
	shares []share // all of the pieces

	compressed sync.WaitGroup // is done when the new pieces are compressed
	passed     func()         // is called once the batch is through the last stage

	slot chan struct{} // of the pool, which holds something for this buffer; nil for a small one
}

// A piece is a part of a NAR that becomes one frame.
type piece struct {
	data   []byte       // in the buffer of its batch
	shared bool         // it is one chunk, and long enough to be looked up by its hash
	sum    catalog.Sum  // the hash of data
	known  *index.Chunk // the chunk that is kept already, or nil
	like   int          // the number of an earlier frame of the NAR with the same bytes, or -1
	length int          // of its frame, if it has one
}

func (p *piece) isNew() bool { return p.known == nil && p.like < 0 }

// isUnseen reports whether only other caches have it. It must cost this one as much as a new one.
func (p *piece) isUnseen() bool { return p.known != nil && !p.known.Led && p.like < 0 }

// A share is some of the pieces of a batch, of which one core makes frames.
type share struct {
	pieces []piece
	out    []byte // frames of new pieces, in order
	unseen []byte // frames of pieces that isUnseen, to be thrown away
}

// divide puts all pieces into at most so many shares of about the same size.
func (b *batch) divide(most int) {
	size := max(minShare, (b.cut+most-1)/most)
	b.shares = b.shares[:0]
	for rest := b.pieces; len(rest) > 0; {
		n, bytes := 0, 0
		for n < len(rest) && bytes < size {
			bytes += len(rest[n].data)
			n++
		}
		if len(b.shares) < cap(b.shares) {
			b.shares = b.shares[:len(b.shares)+1] // with the memory for its frames
		} else {
			b.shares = append(b.shares, share{})
		}
		s := &b.shares[len(b.shares)-1]
		s.pieces, s.out, s.unseen = rest[:n], s.out[:0], s.unseen[:0]
		rest = rest[n:]
	}
}

// reset makes the batch an empty one.
func (b *batch) reset() {
	b.n, b.cut, b.pieces, b.shares = 0, 0, b.pieces[:0], b.shares[:0]
}

// A bufferPool has the buffers of all uploads, and bounds how many there are.
type bufferPool struct {
	large chan struct{} // holds something for each upload that has a large buffer, and
	extra chan struct{} // for each further buffer of theirs

	smalls, larges sync.Pool // of *batch
}

func newBufferPool(cores int) *bufferPool {
	return &bufferPool{large: make(chan struct{}, maxLarge), extra: make(chan struct{}, min(max(minExtra, 2*cores), maxExtra))}
}

// small returns an empty batch with a small buffer.
func (p *bufferPool) small() *batch {
	if b, ok := p.smalls.Get().(*batch); ok {
		return b
	}
	return &batch{buf: make([]byte, smallBuffer)}
}

// first returns the large buffer that an upload is entitled to, once there is one for it.
func (p *bufferPool) first(ctx context.Context) (*batch, error) {
	select {
	case p.large <- struct{}{}:
		return p.get(p.large), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// another returns a further large buffer, or nil if there is none.
func (p *bufferPool) another() *batch {
	select {
	case p.extra <- struct{}{}:
		return p.get(p.extra)
	default:
		return nil
	}
}

func (p *bufferPool) get(slot chan struct{}) *batch {
	b, ok := p.larges.Get().(*batch)
	if !ok {
		b = &batch{buf: make([]byte, max(largeBuffer, 2*chunk.NeedSize))}
	}
	b.slot = slot
	return b
}

// put takes a buffer back.
func (p *bufferPool) put(b *batch) {
	b.reset()
	if b.slot == nil {
		p.smalls.Put(b)
		return
	}
	<-b.slot
	p.larges.Put(b)
}

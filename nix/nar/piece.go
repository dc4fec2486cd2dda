package nar

import (
	"context"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// blockSize is how many bytes are gathered for one write. Half as many cost more system calls, and twice as many
	// no longer lie in the second-level cache of a core when they are written.
	blockSize = 256 << 10
	// smallBlock is the size in bytes of a block if a larger one is not needed, or not available.
	smallBlock = 64 << 10
	// sendfileMin is the size in bytes from which on a file is not gathered, but lent to a writer that can read it:
	// about there, two copies cost as much as the system calls of a write of its own.
	sendfileMin = 128 << 10
	// sendfileMax is how many bytes of a file are lent at once: between two of them, a cancelled context is seen.
	sendfileMax = 16 << 20
	// maxBlocks bounds the blocks of full size in this process, 16 MiB in all; the collector lets the heap be twice as large.
	// A call that gets none uses one small block, so that slow readers do not hinder other calls.
	// Half of them may be used for reading ahead: with more calls than that, there is no core to spare for it.
	maxBlocks = 64

	// readAhead is how many blocks are read while one is being written, if reading is fast:
	// to keep two cores busy. Writing is then the slowest part, and more would gain nothing.
	readAhead = 1
	// slowRead is the least time that a block takes whose files come from a disk. That is mostly waiting,
	// so slowReadAhead blocks are then read at once.
	slowRead      = 2 * time.Millisecond
	slowReadAhead = 4
	// slowWrite is the rate, in bytes a second, below which a writer has use for neither full blocks nor reading ahead.
	slowWrite = 4 << 20
)

// reading is the state of one call that reads the NAR of a tree.
type reading struct {
	*Layout
	tree    *tree
	end     int64 // offset in the NAR
	fileMin int64 // contents of so many bytes are pieces of their own
}

// piece is a part of a NAR that is written at once: either gathered in a block, or contents of one file.
type piece struct {
	r        *reading
	off, end int64 // in the NAR
	file     *node // nil: it is gathered
	block    *block
	data     []byte     // of the block
	filled   chan error // not nil: a goroutine fills the block, and tells when it has
}

// pieces yields the bytes from off to end of the NAR of the tree at path, piece by piece in order. A piece is valid until the next one.
// Contents of fileMin bytes and more are left to the receiver of the piece, by [piece.lend].
func (l *Layout) pieces(ctx context.Context, path string, off, end, fileMin int64) iter.Seq2[*piece, error] {
	return func(yield func(*piece, error) bool) {
		if off == end {
			return
		}
		t, err := openTree(path, l.nodes[0].typ)
		if err != nil {
			yield(nil, err)
			return
		}
		defer t.close()
		r := &reading{l, t, end, fileMin}

		var queue [1 + slowReadAhead]piece // those planned, in a ring
		next, planned := 0, 0              // how many have been yielded, and planned
		defer func() {
			for ; next < planned; next++ {
				queue[next%len(queue)].release()
			}
		}()
		most, ahead := int64(blockSize), readAhead
		for off < end || next < planned {
			for off < end && (planned == next || planned-next <= ahead && most == blockSize) {
				p := &queue[planned%len(queue)]
				if !r.plan(p, off, most, planned > next) {
					break
				}
				off = p.end
				planned++
			}
			p := &queue[next%len(queue)]
			begun := time.Now()
			err := p.wait()
			filled := time.Now()
			if filled.Sub(begun) > slowRead {
				ahead = slowReadAhead
			}
			if err == nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if !yield(p, err) || err != nil {
				return
			}
			if most = blockSize; time.Since(filled).Seconds()*slowWrite > float64(max(p.end-p.off, smallBlock)) {
				most = smallBlock
			}
			p.release()
			next++
		}
	}
}

// plan sets p to the piece of the NAR that begins at off, of at most most bytes if it is gathered.
// With ahead, a goroutine fills the piece; plan returns false if it gets no block for that.
func (r *reading) plan(p *piece, off, most int64, ahead bool) bool {
	*p = piece{r: r, off: off}
	i := r.find(off)
	if n := &r.nodes[i]; r.lends(n) && off >= n.contents() && off < n.contents()+n.size {
		p.file, p.end = n, min(n.contents()+n.size, r.end)
		return true
	}
	p.end = min(off+most, r.end)
	for ; i < len(r.nodes) && r.nodes[i].start < p.end; i++ {
		if n := &r.nodes[i]; r.lends(n) && n.contents() >= off {
			p.end = min(p.end, n.contents())
		}
	}
	if p.end-off > smallBlock {
		limit := int64(maxBlocks)
		if ahead {
			limit /= 2
		}
		if p.block = blocks.full(limit); p.block == nil && ahead {
			return false
		}
	}
	if p.block == nil {
		p.block = blocks.small()
		p.end = min(p.end, off+smallBlock)
	}
	p.data = p.block.buf[:p.end-off]
	if ahead && len(p.data) > smallBlock {
		filled, block, data := make(chan error, 1), p.block, p.data
		p.filled = filled
		go func() { filled <- block.fill(r, data, off) }()
	}
	return true
}

// lends returns whether the contents of n are a piece of their own.
func (r *reading) lends(n *node) bool { return n.typ == TypeRegular && n.size >= r.fileMin }

// wait returns when the data of p is there.
func (p *piece) wait() error {
	switch {
	case p.block == nil:
		return nil
	case p.filled == nil:
		return p.block.fill(p.r, p.data, p.off)
	}
	err := <-p.filled
	p.filled = nil
	return err
}

// release gives back what p holds, once no goroutine works on it any more.
func (p *piece) release() {
	if p.filled != nil {
		<-p.filled
	}
	if p.block != nil {
		blocks.put(p.block)
	}
	*p = piece{}
}

// lend has w read the contents that p is.
func (p *piece) lend(ctx context.Context, w io.ReaderFrom) error {
	r, n := p.r, p.file
	rel := append(append(r.appendPath(nil, n.parent), r.name(n)...), 0)
	f, err := r.tree.open(rel)
	if err != nil {
		return readError(r.tree, rel, err)
	}
	defer f.Close()
	size, err := f.size()
	if err == nil && size != n.size {
		err = ErrChanged
	}
	if err == nil {
		err = f.seek(p.off - n.contents())
	}
	if err != nil {
		return readError(r.tree, rel, err)
	}
	for off := p.off; off < p.end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := io.LimitedReader{R: f, N: min(p.end-off, sendfileMax)}
		sent, err := w.ReadFrom(&part)
		if err != nil {
			return err
		}
		if part.N > 0 {
			return readError(r.tree, rel, ErrChanged)
		}
		off += sent
	}
	return nil
}

// block is a buffer for gathered bytes, and what is needed to gather them.
type block struct {
	filler
	buf []byte // its capacity has one byte more
}

// blocks are the blocks of all calls in this process, because the memory of all of them together is bounded.
var blocks blockPool

type blockPool struct {
	fulls, smalls sync.Pool // of *block
	taken         atomic.Int64
}

// full returns a block of blockSize bytes, or nil if limit of them are taken.
func (p *blockPool) full(limit int64) *block {
	if p.taken.Add(1) > limit {
		p.taken.Add(-1)
		return nil
	}
	if b, ok := p.fulls.Get().(*block); ok {
		return b
	}
	return &block{buf: make([]byte, blockSize, blockSize+1)}
}

// small returns a block of smallBlock bytes.
func (p *blockPool) small() *block {
	if b, ok := p.smalls.Get().(*block); ok {
		return b
	}
	return &block{buf: make([]byte, smallBlock, smallBlock+1)}
}

func (p *blockPool) put(b *block) {
	b.filler = filler{rel: b.rel}
	if len(b.buf) == blockSize {
		p.taken.Add(-1)
		p.fulls.Put(b)
	} else {
		p.smalls.Put(b)
	}
}

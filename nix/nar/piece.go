package nar

import (
	"context"
	"io"
	"iter"
	"sync"
	"sync/atomic"
)

const (
	// blockSize is how many bytes are gathered for one write.
	blockSize = 256 << 10
	// smallBlock is the size in bytes of a block where a larger one is not needed, or not to be had.
	smallBlock = 64 << 10
	// sendfileMin is the size in bytes from which on a file is not gathered, but handed to a writer that can read it.
	sendfileMin = 128 << 10
	// sendfileMax is how many bytes of a file are handed over at once: between two of them, a cancelled context is seen.
	sendfileMax = 16 << 20
	// readAhead is how many blocks are read while one is being written.
	readAhead = 1
	// maxBlocks bounds the blocks of full size in this process, 32 MiB in all.
	// A call that gets none makes do with one small block, so that those who read slowly hinder nobody.
	maxBlocks = 128
)

// piece is a part of a NAR that is written at once: either gathered in a block, or contents of one file.
type piece struct {
	off, end int64

	block  *block
	data   []byte     // of the block
	filled chan error // tells of a block that is filled by a goroutine

	node int // the file
	tree *tree
	size int64 // of the whole file
	rel  []byte
}

// pieces yields the bytes from off to end of the NAR of the tree at path, piece by piece in order. A piece is valid until the next one.
// Contents that are fileMin bytes or more are pieces of their own.
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

		var queue [1 + readAhead]piece // those planned, in a ring
		head, planned := 0, 0          // how many have been yielded, and planned
		defer func() {
			for ; head < planned; head++ {
				queue[head%len(queue)].release()
			}
		}()
		for off < end || head < planned {
			for off < end && planned-head < len(queue) {
				p := &queue[planned%len(queue)]
				if !l.plan(p, t, off, end, fileMin, planned > head) {
					break
				}
				off = p.end
				planned++
			}
			p := &queue[head%len(queue)]
			err := p.wait(l, t)
			if err == nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			more := yield(p, err)
			p.release()
			head++
			if err != nil || !more {
				return
			}
		}
	}
}

// plan sets p to the piece of the NAR that begins at off, and ends at end at the latest.
// A piece ahead of its time is filled by a goroutine; there is none (false) where no block is to be had for it.
func (l *Layout) plan(p *piece, t *tree, off, end, fileMin int64, ahead bool) bool {
	*p = piece{off: off, tree: t}
	i := l.find(off)
	if n := &l.nodes[i]; n.typ == TypeRegular && n.size >= fileMin {
		if from := n.contents(); off >= from && off < from+n.size {
			p.node, p.end = i, min(from+n.size, end)
			return true
		}
	}
	most := min(end-off, blockSize)
	if most > smallBlock {
		if p.block = blocks.full(); p.block == nil {
			if ahead {
				return false
			}
			most = smallBlock
		}
	}
	p.end = off + most
	for ; i < len(l.nodes) && l.nodes[i].start < p.end; i++ {
		if n := &l.nodes[i]; n.typ == TypeRegular && n.size >= fileMin && n.contents() >= off {
			p.end = min(p.end, n.contents())
			break
		}
	}
	if p.block == nil {
		p.block = blocks.small()
	}
	p.data = p.block.buf[:p.end-off]
	if ahead && len(p.data) > smallBlock {
		p.filled = make(chan error, 1)
		go func() { p.filled <- p.block.fill(l, t, p.data, off) }()
	}
	return true
}

// wait returns when the data of p is there.
func (p *piece) wait(l *Layout, t *tree) error {
	switch {
	case p.block == nil:
		return nil
	case p.filled == nil:
		return p.block.fill(l, t, p.data, p.off)
	}
	err := <-p.filled
	p.filled = nil
	return err
}

// release gives back what p holds, and waits for who still works on it.
func (p *piece) release() {
	if p.filled != nil {
		<-p.filled
	}
	if p.block != nil {
		blocks.put(p.block)
	}
	*p = piece{}
}

// sendFile has w read the part of a file that p is.
func (p *piece) sendFile(ctx context.Context, l *Layout, w io.ReaderFrom) error {
	n := &l.nodes[p.node]
	rel := append(append(l.appendPath(nil, n.parent), l.name(n)...), 0)
	f, err := p.tree.open(rel)
	if err != nil {
		return readError(p.tree, rel, err)
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
		return readError(p.tree, rel, err)
	}
	for off := p.off; off < p.end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := &io.LimitedReader{R: f, N: min(p.end-off, sendfileMax)}
		sent, err := w.ReadFrom(part)
		off += sent
		if err != nil {
			return err
		}
		if part.N > 0 {
			return readError(p.tree, rel, ErrChanged)
		}
	}
	return nil
}

// block is room for gathered bytes, and what is needed to gather them.
type block struct {
	filler
	buf []byte // with room for one more byte behind it
}

// blocks are the blocks of all calls in this process: what it has to bound is the memory of all of them together.
var blocks blockPool

type blockPool struct {
	fulls, smalls sync.Pool // of *block
	taken         atomic.Int64
}

// full returns a block of blockSize bytes, or nil where too many are taken.
func (p *blockPool) full() *block {
	if p.taken.Add(1) > maxBlocks {
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

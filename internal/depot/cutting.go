package depot

import (
	"bufio"
	"context"
	"errors"
	"io"
	"sync"

	"firn/internal/cache"
	"firn/internal/chunk"
	"firn/nix"
	"firn/nix/nar"
)

const (
	// minShared is how many bytes a chunk has at least that is looked up, and kept to be found.
	// A shorter one would cost the catalog as much as it could save.
	minShared = 1 << 10

	// A NAR may have manyFrames frames, and one more for each sparse bytes of it: a bound on the
	// memory that it takes. Beyond that, which needs tens of thousands of references, only chunks
	// of coarse bytes and more are shared.
	manyFrames = 16 << 10
	sparse     = 32 << 10
	coarse     = 64 << 10
)

// cutting is the first stage of an ingest: it reads a NAR and cuts it into pieces.
// It is an io.Reader for its own parser, which tells it where the contents of files begin and end.
type cutting struct {
	d    *Depot
	ctx  context.Context
	src  io.Reader
	pass func(b *batch, passed func()) // passes a batch to the next stage

	known  bool  // the NAR is kept already, so it is only hashed
	failed error // what src failed with
	ended  bool  // src has
	size   int64 // of the NAR so far

	b      *batch // that is being filled
	served int    // bytes of it that the parser has read

	cutter *chunk.Cutter
	parsed int64 // bytes of the NAR of which it is known where contents of files begin and end
	taken  int64 // bytes that were cut
	cuts   int64 // pieces so far
}

func newCutting(d *Depot, ctx context.Context, dir nix.StoreDir, src io.Reader, pass func(*batch, func())) cutting {
	return cutting{d: d, ctx: ctx, src: src, pass: pass, b: d.buffers.small(), cutter: chunk.NewCutter(dir)}
}

// close gives back the last buffer, once its batch is through.
func (c *cutting) close() {
	if c.b != nil {
		c.d.buffers.put(c.b)
		c.b = nil
	}
}

// parsers are what NARs are read with.
var parsers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 32<<10) }}

// parse reads the NAR to its end and returns its listing. All batches but the last are passed on
// by then, and the last is not cut to its end.
func (c *cutting) parse() ([]byte, error) {
	buffered := parsers.Get().(*bufio.Reader)
	buffered.Reset(c)
	defer func() {
		buffered.Reset(nil)
		parsers.Put(buffered)
	}()
	l := lister{coders: c.d.coders}
	r := nar.NewReader(buffered)
	for {
		h, err := r.Next()
		if err == io.EOF {
			err = r.CheckEnd()
			if err == nil {
				c.parsed = c.size
				return l.end()
			}
		}
		if err == nil {
			c.parsed = r.Offset()
			if h.Type == nar.TypeRegular && !c.known {
				c.cutter.Contents(h.Offset, h.Size)
				c.parsed = h.Offset + h.Size
			}
			err = l.add(h)
		}
		if err == nil {
			continue
		}
		if c.failed != nil {
			return nil, c.failed
		}
		if wrong, ok := errors.AsType[*nar.FormatError](err); ok {
			return nil, cache.Refuse(cache.ErrInvalid, "this is no NAR that Nix would take: %v", wrong)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, cache.Refuse(cache.ErrInvalid, "this NAR ends too early: %v", err)
		}
		return nil, err
	}
}

// Read gives the next bytes of the NAR to the parser.
func (c *cutting) Read(p []byte) (int, error) {
	if c.served == c.b.n {
		if err := c.fill(); err != nil {
			if err != io.EOF {
				c.failed = err
			}
			return 0, err
		}
	}
	n := copy(p, c.b.buf[c.served:c.b.n])
	c.served += n
	return n, nil
}

// fill reads from src into the buffer.
func (c *cutting) fill() error {
	if c.ended {
		return io.EOF
	}
	if c.b.n == len(c.b.buf) {
		if err := c.next(); err != nil {
			return err
		}
	}
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	n, err := c.src.Read(c.b.buf[c.b.n:])
	c.b.n += n
	c.size += int64(n)
	if most := c.d.opts.MaxNARSize; c.size > most {
		return cache.Refuse(cache.ErrTooLarge, "this NAR has more than %d bytes", most)
	}
	if err == io.EOF {
		c.ended = true
		if n > 0 {
			err = nil
		}
	}
	return err
}

// next passes the full batch on, and goes on with a buffer that has space.
func (c *cutting) next() error {
	b := c.b
	if b.slot == nil { // the NAR is not small
		large, err := c.d.buffers.first(c.ctx)
		if err != nil {
			return err
		}
		large.n = copy(large.buf, b.buf[:b.n])
		c.b = large
		c.d.buffers.put(b)
		return nil
	}
	c.cut()
	rest := b.buf[b.cut:b.n]
	if next := c.d.buffers.another(); next != nil {
		next.n = copy(next.buf, rest)
		c.b = next
		c.pass(b, func() { c.d.buffers.put(b) })
	} else {
		passed := make(chan struct{})
		c.pass(b, func() { close(passed) })
		<-passed
		n := copy(b.buf, rest)
		b.reset()
		b.n = n
	}
	c.served = c.b.n
	return nil
}

// cut cuts what is in the buffer into pieces, as far as that can be told.
func (c *cutting) cut() {
	b := c.b
	if c.known {
		b.cut = b.n
		return
	}
	var open bool // the last piece may get more
	// The parser may not have seen the last bytes yet. It is at most its buffer behind.
	known := b.cut + int(min(c.parsed-c.taken, int64(b.n-b.cut)))
	for b.cut < known {
		n, references := c.cutter.Next(b.buf[b.cut:known], c.ended && known == b.n)
		if n == 0 {
			break
		}
		least := minShared
		if c.cuts > manyFrames+c.size/sparse {
			least = coarse
		}
		data := b.buf[b.cut : b.cut+n]
		b.cut += n
		c.taken += int64(n)
		if references || n < least {
			if last := len(b.pieces) - 1; open && len(b.pieces[last].data)+n <= chunk.MaxSize {
				p := &b.pieces[last]
				p.data = p.data[:len(p.data)+n]
				continue
			}
			open = true
			b.pieces = append(b.pieces, piece{data: data, like: -1})
		} else {
			open = false
			b.pieces = append(b.pieces, piece{data: data, like: -1, shared: true})
		}
		c.cuts++
	}
}

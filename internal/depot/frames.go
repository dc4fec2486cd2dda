package depot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"firn/internal/cache"
	"firn/internal/depot/blob"
)

const (
	// gatherSize is how many bytes of short extents are written at once.
	gatherSize = 64 << 10
	// longExtent is the length in bytes from which on a pack writes an extent itself, by sendfile
	// where it can. About there, two copies cost as much as the system calls of a write of its own.
	longExtent = 64 << 10
	// maxLent is how many bytes of a pack are sent at once. Between two of them, a cancelled
	// context is noticed.
	maxLent = 16 << 20
)

// frames is a compressed NAR: the extents of its packs, one after the other.
type frames struct{ opened }

// Size is the number of bytes of all frames.
func (f *frames) Size() int64 { return f.fileSize }

// WriteRange writes short extents together, and leaves long ones to their packs.
func (f *frames) WriteRange(ctx context.Context, w io.Writer, off, n int64) error {
	err := outside(off, n, f.fileSize)
	if err == nil && n > 0 {
		err = f.d.ready(ctx, f.recipe, f.at(off), f.at(off+n-1))
	}
	if err == nil && n > 0 {
		g := gatherer{d: f.d, w: w}
		err = g.write(ctx, f.recipe, off, n)
		g.close()
	}
	return f.describe(f.d.readFailure(ctx, f.hash, err))
}

// gatherer writes extents.
type gatherer struct {
	d    *Depot
	w    io.Writer
	b    *buffer // nil until it is needed
	n    int     // bytes in it
	pack *pack   // the one that was read last, or nil
}

func (g *gatherer) write(ctx context.Context, r *recipe, off, n int64) error {
	for i := r.at(off); n > 0; i++ {
		skip := off - r.extents[i].start
		part := min(r.length(i)-skip, n)
		if err := g.extent(ctx, r.packs[r.extents[i].pack], r.extents[i].off+skip, part); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return g.flush(ctx)
}

// extent writes n bytes of a pack from off on. It may leave some of them to flush.
func (g *gatherer) extent(ctx context.Context, name string, off, n int64) error {
	if g.pack == nil || g.pack.name != name {
		if g.pack != nil {
			g.d.packs.release(g.pack)
		}
		var err error
		if g.pack, err = g.d.packs.get(ctx, name); err != nil {
			return err
		}
	}
	if n >= longExtent {
		if err := g.flush(ctx); err != nil {
			return err
		}
		for n > 0 {
			part := min(n, maxLent)
			err := g.pack.WriteRange(ctx, g.w, off, part)
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("pack %s: %w", name, errShort) // than it was when it was opened
			}
			if err != nil {
				return err
			}
			if off, n = off+part, n-part; ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		return nil
	}
	if g.b == nil {
		g.b = gathers.Get().(*buffer)
	}
	for n > 0 {
		if g.n == len(g.b.buf) {
			if err := g.flush(ctx); err != nil {
				return err
			}
		}
		part := g.b.buf[g.n:min(int64(len(g.b.buf)), int64(g.n)+n)]
		if err := readFull(g.pack, part, off); err != nil {
			return err
		}
		g.n += len(part)
		off, n = off+int64(len(part)), n-int64(len(part))
	}
	return nil
}

// flush writes the bytes that were gathered.
func (g *gatherer) flush(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if g.n == 0 {
		return nil
	}
	_, err := g.w.Write(g.b.buf[:g.n])
	g.n = 0
	return err
}

func (g *gatherer) close() {
	if g.pack != nil {
		g.d.packs.release(g.pack)
	}
	if g.b != nil {
		gathers.Put(g.b)
	}
}

// errShort says that a pack is shorter than its frames need.
var errShort = errors.New("the pack is too short")

// readFull reads len(p) bytes at off.
func readFull(b blob.Blob, p []byte, off int64) error {
	n, err := b.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return errShort
	}
	return fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
}

package depot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"firn/nix/nar"
)

// plain is a NAR that is decompressed while it is sent.
type plain struct{ opened }

// Size is the NAR size.
func (p *plain) Size() int64 { return p.size }

// WriteRange decompresses the frames of a range. When the whole NAR is written for a cache for the
// first time, it is compared with its hash before its last bytes are written. That is so for each
// cache: the time that it takes, and the number of NARs that were compared, would else reveal that
// another cache has the NAR.
func (p *plain) WriteRange(ctx context.Context, w io.Writer, off, n int64) error {
	err := outside(off, n, p.size)
	if err == nil && n > 0 {
		err = p.d.ready(ctx, p.recipe, p.find(off).extent, p.find(off+n-1).extent)
	}
	if err == nil && n > 0 {
		err = p.write(ctx, w, off, n)
	}
	if errors.Is(err, nar.ErrMismatch) {
		p.damaged(ctx)
	}
	return p.describe(p.d.readFailure(ctx, p.hash, err))
}

func (p *plain) write(ctx context.Context, w io.Writer, off, n int64) error {
	r, err := p.d.readFrames(ctx, p.recipe, off)
	if err != nil {
		return err
	}
	defer r.close()
	hash := sha256.New()
	_, right := p.right.Load(p.cache)
	verify := off == 0 && n == p.size && !right
	for n > 0 {
		if err := r.next(ctx); err != nil {
			return err
		}
		skip := off - r.raw
		size := min(n, int64(len(r.frame))-skip)
		if verify {
			hash.Write(r.frame[skip : skip+size])
			if size == n {
				if [sha256.Size]byte(hash.Sum(nil)) != p.hash {
					return nar.ErrMismatch
				}
				p.right.Store(p.cache, true)
				p.d.right.Add(1)
			}
		}
		if err := r.send(ctx, w, int(skip), int(size)); err != nil {
			return err
		}
		off, n = off+size, n-size
	}
	return nil
}

// damaged withholds a NAR that was just found to have other bytes than it should.
func (p *plain) damaged(ctx context.Context) {
	p.d.wrong.Add(1)
	p.d.log.Error("a NAR is damaged, and not served any more: run firn verify", "nar_hash", fmt.Sprintf("%x", p.hash))
	ctx = context.WithoutCancel(ctx)
	if _, err := p.d.verifyNAR(ctx, p.hash, true, nil); err != nil {
		p.d.log.Error("could not withhold a damaged NAR", "nar_hash", fmt.Sprintf("%x", p.hash), "error", err)
	}
}

const (
	// readSize is how many bytes of a pack are read at once, if they are of more than one frame.
	readSize = 256 << 10
)

// A frameReader decompresses the frames of a NAR, one after the other.
type frameReader struct {
	d      *Depot
	recipe *recipe
	at     cursor // the next frame
	weight int64
	memory *reservation // of the memory of packed and data
	piece  *buffer      // of the frame, on its way to the client; nil before the first

	packed *buffer // nil, like data, when the reservation was reclaimed
	read   []byte  // frames from at on, as they are in the pack
	data   *buffer
	// frame is the contents of the current frame, in data. A slice of it must not be used once the
	// reservation was reclaimed.
	frame []byte
	raw   int64  // where the current frame begins in the NAR
	start cursor // the current frame
	pack  *pack
}

// packeds are buffers for frames as they are in packs, and datas for their contents.
var (
	packeds = sync.Pool{New: func() any { return &buffer{make([]byte, readSize)} }}
	datas   = sync.Pool{New: func() any { return &buffer{make([]byte, 0, readSize)} }}
)

// readFrames returns a reader of the frames from the one on that has the byte at off, once there is
// memory for it.
func (d *Depot) readFrames(ctx context.Context, r *recipe, off int64) (*frameReader, error) {
	weight := int64(2 * readSize)
	for _, f := range r.frames {
		weight = max(weight, int64(f.size)+int64(f.length))
	}
	fr := &frameReader{d: d, recipe: r, at: r.find(off), weight: weight}
	var err error
	if fr.memory, err = d.decoding.reserve(ctx, weight, fr.drop); err != nil {
		return nil, err
	}
	fr.fetch()
	return fr, nil
}

// fetch gets the buffers, for which there is a reservation.
func (r *frameReader) fetch() { r.packed, r.data = packeds.Get().(*buffer), datas.Get().(*buffer) }

// drop gives the buffers up.
func (r *frameReader) drop() {
	if r.packed == nil {
		return
	}
	if cap(r.packed.buf) == readSize {
		packeds.Put(r.packed)
	}
	if cap(r.data.buf) == readSize {
		datas.Put(r.data)
	}
	r.packed, r.data, r.read, r.frame = nil, nil, nil, nil
}

func (r *frameReader) close() {
	if r.pack != nil {
		r.d.packs.release(r.pack)
	}
	r.drop()
	r.memory.end()
	if r.piece != nil {
		gathers.Put(r.piece)
	}
}

// send writes n bytes of the current frame from skip on to a client, however slowly it takes them.
// While the client takes them, only a piece of the frame is sure to be in memory: the reservation
// may be reclaimed, and the frame is read again then.
func (r *frameReader) send(ctx context.Context, w io.Writer, skip, n int) error {
	if r.piece == nil {
		r.piece = gathers.Get().(*buffer)
	}
	start := r.start
	for n > 0 {
		part := r.piece.buf[:copy(r.piece.buf, r.frame[skip:skip+n])]
		r.memory.pause()
		_, err := w.Write(part)
		held := r.memory.resume()
		if err != nil {
			return err
		}
		skip, n = skip+len(part), n-len(part)
		if held {
			continue
		}
		if err := r.memory.renew(ctx, r.weight); err != nil {
			return err
		}
		r.fetch()
		if n == 0 {
			break
		}
		r.at = start
		if err := r.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// more reports whether there is another frame.
func (r *frameReader) more() bool { return r.at.frame < len(r.recipe.frames) }

// next makes the next frame the current one. It returns ErrMismatch if the frame cannot be
// decompressed to as many bytes as it should have. After a frame that it fails at, it goes on with
// the one behind it.
func (r *frameReader) next(ctx context.Context) error {
	f := r.recipe.frames[r.at.frame]
	r.raw, r.start = r.at.raw, r.at
	err := ctx.Err()
	if err != nil {
		err = context.Cause(ctx)
	} else if len(r.read) == 0 {
		err = r.fill(ctx)
	}
	r.recipe.advance(&r.at)
	if err != nil {
		return err
	}
	packed := r.read[:f.length]
	r.read = r.read[f.length:]
	z, err := r.d.coders.decoder()
	if err != nil {
		return err
	}
	defer r.d.coders.putDecoder(z)
	if cap(r.data.buf) < int(f.size) {
		r.data.buf = make([]byte, 0, f.size)
	}
	data, err := z.DecodeAll(packed, r.data.buf[:0])
	if err != nil {
		return fmt.Errorf("%w: decompress: %w", nar.ErrMismatch, err)
	}
	if len(data) != int(f.size) {
		return fmt.Errorf("%w: a frame of %d bytes has %d", nar.ErrMismatch, f.size, len(data))
	}
	r.frame = data
	return nil
}

// fill reads the next frame, and as many behind it as there is room for in the buffer.
func (r *frameReader) fill(ctx context.Context) error {
	e := r.at.extent
	name := r.recipe.packs[r.recipe.extents[e].pack]
	if r.pack == nil || r.pack.name != name {
		if r.pack != nil {
			r.d.packs.release(r.pack)
		}
		var err error
		if r.pack, err = r.d.packs.get(ctx, name); err != nil {
			return err
		}
	}
	n := 0
	for i := r.at.frame; i < r.recipe.last(e); i++ {
		length := int(r.recipe.frames[i].length)
		if n > 0 && n+length > len(r.packed.buf) {
			break
		}
		n += length
	}
	if n > len(r.packed.buf) {
		r.packed.buf = make([]byte, n)
	}
	if err := readFull(r.pack, r.packed.buf[:n], r.at.off); err != nil {
		return err
	}
	r.read = r.packed.buf[:n]
	return nil
}

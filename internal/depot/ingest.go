package depot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/chunk"
	"firn/internal/depot/blob"
	"firn/nix"
	"firn/nix/nar"
)

const (
	// minShared is how many bytes a chunk has at least that is looked up, and kept to be found.
	// A shorter one would cost the catalog as much as it could save.
	minShared = 1 << 10

	// A NAR may have manyFrames frames, and one more for each sparse bytes of it: a bound on the memory that it takes.
	// Beyond that, which needs tens of thousands of references, only chunks of coarse bytes and more are shared.
	manyFrames = 16 << 10
	sparse     = 32 << 10
	coarse     = 64 << 10

	// maxAsked is how many chunks a catalog is asked for at once.
	maxAsked = 256
)

// A piece is a part of a NAR that becomes one frame.
type piece struct {
	data   []byte // of a room
	shared bool   // it is one chunk, and long enough to be found by its hash; the others are not
	sum    catalog.Sum
	known  *catalog.Chunk // the chunk that there is already, or nil
	like   int            // number of an earlier frame of the NAR with the same bytes, or -1
	length int            // of its frame, if it has one
}

// An ingest is a NAR on its way in. It is an io.Reader of the NAR, for whoever parses it:
// what was read through it is also cut, hashed, compressed and written to a new pack, room by room.
// The rooms of a NAR do so at once, each on a goroutine, and wait for their turn where order matters.
type ingest struct {
	d     *Depot
	cache catalog.CacheID // that it comes to
	ctx   context.Context
	stop  context.CancelCauseFunc
	work  sync.WaitGroup

	// Of the goroutine that reads.
	src    io.Reader
	failed error // what src failed with
	ended  bool  // src has
	known  bool  // the NAR is kept already, so it is only hashed
	room   *room // that is being filled
	served int   // bytes of it that were read
	size   int64 // of the NAR so far
	cutter *chunk.Cutter
	parsed int64 // bytes of the NAR of which it is known where contents of files begin and end
	taken  int64 // bytes that were cut
	cuts   int64 // pieces so far
	last   turns

	hash hash.Hash // in turn

	// In the turn of claiming.
	claimed int
	seen    map[catalog.Sum]int // numbers of the frames that are shared

	// In the turn of writing.
	frames   []place
	packs    []string
	indices  map[string]int32
	chunks   []catalog.Chunk // new ones
	built    []catalog.Chunk // those that were there
	pack     blob.Writer     // nil: nothing was written
	packName string
	packSize int64
	own      int32         // index of the pack
	uses     []catalog.Sum // chunks that the cache had not led to
	decoy    decoy
}

// turns are closed when the rooms up to one have passed a stage.
type turns struct{ hashed, claimed, written chan struct{} }

// passed are the turns before the first.
var passed = func() turns {
	c := make(chan struct{})
	close(c)
	return turns{c, c, c}
}()

func newTurns() turns {
	return turns{make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

func (d *Depot) newIngest(ctx context.Context, id catalog.CacheID, dir nix.StoreDir, src io.Reader) *ingest {
	in := &ingest{d: d, cache: id, src: src, room: d.rooms.small(), cutter: chunk.NewCutter(dir), hash: sha256.New(), last: passed, own: -1}
	in.ctx, in.stop = context.WithCancelCause(ctx)
	return in
}

// close ends all work, and removes the pack unless that was committed.
func (in *ingest) close() {
	in.stop(context.Canceled)
	in.work.Wait()
	in.d.rooms.put(in.room)
	if in.pack != nil {
		in.pack.Abort()
	}
	if in.packName != "" {
		in.d.packs.unpin([]string{in.packName})
	}
	in.decoy.abort()
}

// Read gives the next bytes of the NAR.
func (in *ingest) Read(p []byte) (int, error) {
	if in.served == in.room.n {
		if err := in.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.room.buf[in.served:in.room.n])
	in.served += n
	return n, nil
}

// fill reads from src.
func (in *ingest) fill() error {
	if in.ended {
		return io.EOF
	}
	if in.room.n == len(in.room.buf) {
		if err := in.move(); err != nil {
			in.failed = err
			return err
		}
	}
	if in.ctx.Err() != nil {
		in.failed = context.Cause(in.ctx)
		return in.failed
	}
	n, err := in.src.Read(in.room.buf[in.room.n:])
	in.room.n += n
	in.size += int64(n)
	switch {
	case in.size > in.d.opts.MaxNARSize:
		in.failed = cache.Refuse(cache.ErrTooLarge, "this NAR has more than %d bytes", in.d.opts.MaxNARSize)
		return in.failed
	case err == io.EOF:
		in.ended = true
		if n == 0 {
			return io.EOF
		}
	case err != nil:
		in.failed = err
		return err
	}
	return nil
}

// move goes on to a room with space in it.
func (in *ingest) move() error {
	b := in.room
	if b.from == nil {
		large, err := in.d.rooms.first(in.ctx)
		if err != nil {
			return err
		}
		large.n = copy(large.buf, b.buf[:b.n])
		in.room = large
		in.d.rooms.put(b)
		return nil
	}
	if in.known {
		b.cut = b.n
	} else {
		in.cut(b)
	}
	rest := b.buf[b.cut:b.n]
	before, own := in.last, newTurns()
	in.last = own
	if next := in.d.rooms.another(); next != nil {
		next.n = copy(next.buf, rest)
		in.room = next
		in.work.Go(func() {
			in.settle(b, b.cut, before, own)
			in.d.rooms.put(b)
		})
	} else {
		in.settle(b, b.cut, before, own)
		n := copy(b.buf, rest)
		b.reset()
		b.n = n
	}
	in.served = in.room.n
	return nil
}

// cut cuts what is in a room into pieces, as far as that can be told.
func (in *ingest) cut(b *room) {
	var open bool // the last piece may get more
	// The parser may not have seen the last bytes yet. It is at most its buffer behind.
	known := b.cut + int(min(in.parsed-in.taken, int64(b.n-b.cut)))
	for b.cut < known {
		n, references := in.cutter.Next(b.buf[b.cut:known], in.ended && known == b.n)
		if n == 0 {
			break
		}
		least := minShared
		if in.cuts > manyFrames+in.size/sparse {
			least = coarse
		}
		data := b.buf[b.cut : b.cut+n]
		b.cut += n
		in.taken += int64(n)
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
		in.cuts++
	}
}

// finish begins to keep the rest of the NAR, once all of it was read.
func (in *ingest) finish() {
	b, before, own := in.room, in.last, newTurns()
	in.last = own
	if in.known {
		b.cut = b.n
	}
	in.work.Go(func() { in.settle(b, b.n, before, own) })
}

// settle hashes and keeps the bytes of a room before end. Only the last room is not cut that far yet: nobody else needs the cutter any more.
func (in *ingest) settle(b *room, end int, before, own turns) {
	var hashing sync.WaitGroup
	hashing.Go(func() {
		<-before.hashed
		in.hash.Write(b.buf[:end])
		close(own.hashed)
	})
	if b.cut < end {
		in.cut(b)
	}
	in.keep(b, before, own) // a failure has ended the work
	hashing.Wait()
}

// keep writes the frames of a room that are new. It closes own.claimed and own.written.
// If it fails, the work is ended before that: the room after this one must not be written as if this one were.
func (in *ingest) keep(b *room, before, own turns) (err error) {
	claimed := sync.OnceFunc(func() { close(own.claimed) })
	defer close(own.written)
	defer claimed()
	defer func() {
		if err != nil {
			in.stop(err)
		}
	}()
	if in.known {
		return nil
	}
	b.divide(cap(in.d.coders.working))
	in.d.coders.each(b.parts, func(t *part) {
		for i := range t.pieces {
			if p := &t.pieces[i]; p.shared {
				p.sum = sha256.Sum256(p.data)
			}
		}
	})
	if err := in.look(b.pieces); err != nil {
		return err
	}
	<-before.claimed
	in.claim(b.pieces)
	claimed()
	if in.ctx.Err() != nil {
		return context.Cause(in.ctx)
	}
	in.d.coders.each(b.parts, func(t *part) {
		e := in.d.coders.encoder()
		defer in.d.coders.putEncoder(e)
		for i := range t.pieces {
			switch p := &t.pieces[i]; {
			case p.isNew():
				before := len(t.out)
				t.out = e.EncodeAll(p.data, t.out)
				p.length = len(t.out) - before
			case p.isUnseen():
				t.unseen = e.EncodeAll(p.data, t.unseen)
			}
		}
	})
	<-before.written
	if in.ctx.Err() != nil {
		return context.Cause(in.ctx)
	}
	for i := range b.parts {
		if err := in.write(&b.parts[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *piece) isNew() bool { return p.known == nil && p.like < 0 }

// isUnseen reports whether only other caches have it: that must cost this one as much as if nobody had.
func (p *piece) isUnseen() bool { return p.known != nil && !p.known.Led && p.like < 0 }

// look finds out which pieces are kept already.
func (in *ingest) look(pieces []piece) error {
	sums := make([]catalog.Sum, 0, min(len(pieces), maxAsked))
	found := map[catalog.Sum]*catalog.Chunk{}
	ask := func() error {
		if len(sums) == 0 {
			return nil
		}
		chunks, err := in.d.catalog.Chunks(in.ctx, in.cache, sums)
		if err != nil {
			return failure("look up chunks", err)
		}
		if chunks, err = in.d.intactChunks(in.ctx, chunks); err != nil {
			return err
		}
		for i := range chunks {
			found[chunks[i].Hash] = &chunks[i]
		}
		sums = make([]catalog.Sum, 0, cap(sums))
		return nil
	}
	for i := range pieces {
		if pieces[i].shared {
			sums = append(sums, pieces[i].sum)
			if len(sums) == maxAsked {
				if err := ask(); err != nil {
					return err
				}
			}
		}
	}
	if err := ask(); err != nil || len(found) == 0 {
		return err
	}
	for i := range pieces {
		if p := &pieces[i]; p.shared {
			if c := found[p.sum]; c != nil && c.Size == int64(len(p.data)) {
				p.known = c
			}
		}
	}
	return nil
}

// claim numbers the frames, and finds those that are there twice.
func (in *ingest) claim(pieces []piece) {
	for i := range pieces {
		number := in.claimed
		in.claimed++
		p := &pieces[i]
		if !p.shared || p.known != nil && p.known.Led {
			continue
		}
		if first, ok := in.seen[p.sum]; ok {
			p.like = first
			continue
		}
		if in.seen == nil {
			in.seen = make(map[catalog.Sum]int)
		}
		in.seen[p.sum] = number
	}
}

// write notes where the frames of a part lie, and writes those that are new to the pack.
func (in *ingest) write(t *part) error {
	if len(t.out) > 0 && in.pack == nil {
		in.packName = newPackName()
		in.d.packs.pin([]string{in.packName}) // until it is in a record, however old it is by then
		w, err := in.d.blobs.Create(in.ctx, in.packName)
		if err != nil {
			return fmt.Errorf("create pack: %w", in.d.unavailable(in.ctx, err))
		}
		in.pack, in.own = w, in.index(in.packName)
	}
	end := in.packSize
	for i := range t.pieces {
		p := &t.pieces[i]
		at := place{size: int32(len(p.data))}
		if p.shared && (p.isNew() || p.isUnseen()) {
			in.uses = append(in.uses, p.sum)
		}
		switch {
		case p.known != nil:
			at.pack, at.off, at.length = in.index(p.known.Pack), p.known.Offset, int32(p.known.Length)
			in.built = append(in.built, *p.known)
		case p.like >= 0:
			at = in.frames[p.like]
		default:
			at.pack, at.off, at.length = in.own, end, int32(p.length)
			end += int64(p.length)
			if p.shared {
				in.chunks = append(in.chunks, catalog.Chunk{Hash: p.sum, Pack: in.packName, Offset: at.off, Length: int64(at.length), Size: int64(at.size)})
			}
		}
		in.frames = append(in.frames, at)
	}
	if err := in.decoy.write(in.ctx, in.d.blobs, t.unseen); err != nil {
		return err
	}
	if len(t.out) == 0 {
		return nil
	}
	if _, err := in.pack.Write(t.out); err != nil {
		return fmt.Errorf("write pack: %w: %w", cache.ErrUnavailable, err)
	}
	in.packSize += int64(len(t.out))
	return nil
}

// index returns the index of a pack among those of the NAR.
func (in *ingest) index(pack string) int32 {
	i, ok := in.indices[pack]
	if !ok {
		if in.indices == nil {
			in.indices = make(map[string]int32)
		}
		i = int32(len(in.packs))
		in.packs = append(in.packs, pack)
		in.indices[pack] = i
	}
	return i
}

// parsers are what NARs are read with.
var parsers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 32<<10) }}

// parse reads the NAR to its end and returns its listing.
func (in *ingest) parse() ([]byte, error) {
	buffered := parsers.Get().(*bufio.Reader)
	buffered.Reset(in)
	defer func() {
		buffered.Reset(nil)
		parsers.Put(buffered)
	}()
	l := lister{coders: in.d.coders}
	r := nar.NewReader(buffered)
	for {
		h, err := r.Next()
		if err == io.EOF {
			err = r.CheckEnd()
			if err == nil {
				in.parsed = in.size
				return l.end()
			}
		}
		if err == nil {
			in.parsed = r.Offset()
			if h.Type == nar.TypeRegular && !in.known {
				in.cutter.Contents(h.Offset, h.Size)
				in.parsed = h.Offset + h.Size
			}
			err = l.add(h)
		}
		if err == nil {
			continue
		}
		if in.failed != nil {
			return nil, in.failed
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

// sum returns the NAR hash, after finish.
func (in *ingest) sum() catalog.Sum {
	<-in.last.hashed
	return catalog.Sum(in.hash.Sum(nil))
}

// end waits until all of the NAR is written, after finish, and makes the pack durable.
func (in *ingest) end() error {
	in.work.Wait()
	if in.ctx.Err() != nil {
		return context.Cause(in.ctx) // what a room failed with
	}
	err := in.whole()
	if err == nil && in.pack != nil {
		err = commit(in.ctx, in.pack)
	} else if err == nil {
		err = in.decoy.commit(in.ctx)
	}
	return err
}

// whole checks that the frames are all of the NAR, once they are written.
func (in *ingest) whole() error {
	var size int64
	for _, f := range in.frames {
		size += int64(f.size)
	}
	if !in.known && size != in.size {
		return fmt.Errorf("%w: the frames have %d bytes of a NAR of %d", cache.ErrUnavailable, size, in.size)
	}
	return nil
}

package depot

import (
	"context"
	"sync"

	"firn/internal/chunk"
)

const (
	// smallRoom is how many bytes of a NAR are read before it counts as large. Two thirds of all NARs are small.
	smallRoom = 64 << 10
	// largeRoom is the size in bytes of the other rooms. The end of a room that is too short to be cut moves to the next one,
	// so much shorter ones would have more of it copied.
	largeRoom = 2 << 20

	// maxLarge bounds the uploads of large NARs at once, each of which has a large room. More have to wait.
	maxLarge = 64
	// Beside that, up to maxExtra rooms let those uploads read on while they compress.
	minExtra, maxExtra = 4, 16

	// leastPart is how many bytes are worth a goroutine of their own, about 100 µs of hashing.
	leastPart = 128 << 10
)

// rooms gives the uploads memory for the bytes of their NARs, and bounds what all of them have.
type rooms struct {
	large chan struct{} // holds something for each upload that has a large room, and
	extra chan struct{} // for each further room of theirs

	smalls, larges sync.Pool // of *room
}

func newRooms(cores int) *rooms {
	return &rooms{large: make(chan struct{}, maxLarge), extra: make(chan struct{}, min(max(minExtra, 2*cores), maxExtra))}
}

// A room has bytes of a NAR from the beginning of a chunk on, until they are kept.
type room struct {
	buf    []byte
	n      int     // how many bytes of the NAR are in it
	pieces []piece // what they were cut into, and
	cut    int     // the end of these
	parts  []part  // all of these

	from chan struct{} // what it holds something of; nil for a small one
}

// A part is some of the pieces of a room, of which one core makes frames.
type part struct {
	pieces []piece
	out    []byte // frames of new ones, in order
	unseen []byte // frames of those that are kept already, of which the cache may not know
}

// divide puts all pieces into at most so many parts of about the same size.
func (b *room) divide(most int) {
	size := max(leastPart, (b.cut+most-1)/most)
	b.parts = b.parts[:0]
	for rest := b.pieces; len(rest) > 0; {
		n, bytes := 0, 0
		for n < len(rest) && bytes < size {
			bytes += len(rest[n].data)
			n++
		}
		if len(b.parts) < cap(b.parts) {
			b.parts = b.parts[:len(b.parts)+1] // with the memory for its frames
		} else {
			b.parts = append(b.parts, part{})
		}
		t := &b.parts[len(b.parts)-1]
		t.pieces, t.out, t.unseen = rest[:n], t.out[:0], t.unseen[:0]
		rest = rest[n:]
	}
}

func (r *rooms) small() *room {
	if b, ok := r.smalls.Get().(*room); ok {
		return b
	}
	return &room{buf: make([]byte, smallRoom)}
}

// first returns the large room that an upload is entitled to, once there is one for it.
func (r *rooms) first(ctx context.Context) (*room, error) {
	select {
	case r.large <- struct{}{}:
		return r.get(r.large), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// another returns a further large room, or nil if there is none.
func (r *rooms) another() *room {
	select {
	case r.extra <- struct{}{}:
		return r.get(r.extra)
	default:
		return nil
	}
}

func (r *rooms) get(from chan struct{}) *room {
	b, ok := r.larges.Get().(*room)
	if !ok {
		b = &room{buf: make([]byte, max(largeRoom, 2*chunk.NeedSize))}
	}
	b.from = from
	return b
}

// put takes back a room.
func (r *rooms) put(b *room) {
	b.reset()
	if b.from == nil {
		r.smalls.Put(b)
		return
	}
	<-b.from
	r.larges.Put(b)
}

// reset makes the room an empty one.
func (b *room) reset() {
	b.n, b.cut, b.pieces, b.parts = 0, 0, b.pieces[:0], b.parts[:0]
}

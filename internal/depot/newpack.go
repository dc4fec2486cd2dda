package depot

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"

	"firn/internal/cache"
	"firn/internal/depot/blob"
	"firn/internal/depot/index"
)

func newPackName() string { return strings.ToLower(rand.Text()) + ".pack" }

// A packWriter writes a pack. It begins with the first frame.
type packWriter struct {
	w    blob.Writer // nil: nothing was written
	name string
	size int64
}

// begin begins the pack, unless it is begun. That does not end with ctx: other NARs may be in the
// pack, and one that leaves must not take them with it.
func (p *packWriter) begin(ctx context.Context, d *Depot) error {
	if p.w != nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	name := newPackName()
	d.packs.pin([]string{name}) // until it is in a record, however old it is by then
	w, err := d.blobs.Create(ctx, name)
	if err != nil {
		d.packs.unpin([]string{name})
		return fmt.Errorf("create pack: %w", d.unavailable(ctx, err))
	}
	p.w, p.name = w, name
	return nil
}

func (p *packWriter) write(frames []byte) error {
	if _, err := p.w.Write(frames); err != nil {
		return fmt.Errorf("write pack: %w: %w", cache.ErrUnavailable, err)
	}
	p.size += int64(len(frames))
	return nil
}

// close removes the pack unless it was committed.
func (p *packWriter) close(d *Depot) {
	if p.w != nil {
		p.w.Abort()
		d.packs.unpin([]string{p.name})
	}
}

// commit makes a pack durable.
func commit(ctx context.Context, w blob.Writer) error {
	if err := w.Commit(ctx); err != nil {
		return fmt.Errorf("commit pack: %w: %w", cache.ErrUnavailable, err)
	}
	return nil
}

// A newPack is a pack of new frames: of one large NAR, or of several NARs that came at the same
// time. Beside it is a dummy, of frames that are kept already but that only other caches lead to.
// It is written and thrown away: so an upload of these frames takes as long as one of new frames,
// and does not reveal that they are there.
type newPack struct {
	d      *Depot
	frames packWriter
	dummy  packWriter

	shared bool  // several NARs may be in it
	users  int   // how many are; guarded by the mutex of sharing
	needed bool  // a record of one of them may name it; guarded as well
	used   int64 // bytes of frames that came with such NARs; guarded as well

	done chan struct{} // is closed when it is committed, or that has failed
	err  error         // why it cannot be committed
}

// commit makes the pack durable. The dummy is committed only where no other frames are.
func (n *newPack) commit(ctx context.Context) error {
	switch {
	case n.err != nil:
	case n.frames.w != nil:
		n.err = commit(ctx, n.frames.w)
	case n.dummy.w != nil:
		n.err = commit(ctx, n.dummy.w)
	}
	close(n.done)
	return n.err
}

// sharing puts NARs into one pack that come while another pack is made durable. The system calls
// that make a pack durable cost most of what a small NAR costs, and a pack of many small NARs
// costs the catalog one row.
type sharing struct {
	committing chan struct{} // is held while a pack is made durable

	mu   sync.Mutex
	open *newPack // takes more NARs; nil: none

	// wasteful are packs to be examined, and their sizes: more than half of their bytes are of NARs
	// that were not added, such as of a client that went away or that another one was faster than.
	// The catalog does not know of these bytes. After a restart they stay until a NAR leaves the pack.
	wasteful map[string]int64
}

func newSharing() *sharing {
	return &sharing{committing: make(chan struct{}, 1), wasteful: make(map[string]int64)}
}

// write writes the only batch of a NAR to the open pack.
func (s *sharing) write(p *packing, b *batch) error {
	if !slices.ContainsFunc(b.shares, func(t share) bool { return len(t.out)+len(t.unseen) > 0 }) {
		return p.write(b) // which only notes where its frames lie
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = &newPack{d: p.d, shared: true, done: make(chan struct{})}
	}
	p.to = s.open
	p.to.users++
	err := p.write(b)
	if err != nil { // it may have a hole
		p.to.err = err
		s.open = nil
	}
	return err
}

// commit makes a pack durable, for all NARs in it.
func (s *sharing) commit(ctx context.Context, n *newPack) error {
	if !n.shared {
		return n.commit(ctx)
	}
	select {
	case <-n.done:
		return n.err
	case s.committing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.committing }()
	select {
	case <-n.done:
		return n.err
	default:
	}
	s.mu.Lock()
	if s.open == n {
		s.open = nil
	}
	s.mu.Unlock()
	return n.commit(context.WithoutCancel(ctx)) // other clients wait for it too
}

// need notes that a record may name the pack, so that it is not removed, and how many bytes of it
// came with the NAR of that record.
func (s *sharing) need(n *newPack, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.needed = true
	n.used += bytes
}

// waste returns the packs that are to be examined.
func (s *sharing) waste() (packs []index.ThinPack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, size := range s.wasteful {
		packs = append(packs, index.ThinPack{Pack: index.Pack{Name: name, Size: size}})
	}
	return packs
}

// examined notes that a pack was examined.
func (s *sharing) examined(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.wasteful, name)
}

// leave ends the use of a pack by a NAR. After the last, it is removed if no record needs it.
func (s *sharing) leave(ctx context.Context, n *newPack) {
	if !s.isLast(n) {
		return
	}
	select {
	case <-n.done:
		if n.err != nil {
			break
		}
		if n.frames.w == nil {
			n.d.discard(ctx, n.dummy.name)
		} else if !n.needed {
			n.d.discard(ctx, n.frames.name)
		}
	default:
	}
	n.frames.close(n.d)
	n.dummy.close(n.d)
}

// isLast reports whether a NAR that leaves a pack was the last one. No other joins it then.
func (s *sharing) isLast(n *newPack) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.users--
	if n.users > 0 {
		return false
	}
	if s.open == n {
		s.open = nil
	}
	if n.needed && 2*n.used < n.frames.size {
		s.wasteful[n.frames.name] = n.frames.size
	}
	return true
}

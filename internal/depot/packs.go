package depot

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"

	"firn/internal/cache"
	"firn/internal/depot/blob"
	"firn/internal/fairlimit"
)

// packs opens packs, and leaves the ones that were read last open for the next reader. Beside
// these, as many are open as are being read.
type packs struct {
	blobs   blob.Store
	maxIdle int // bounds the open packs that have no reader

	mu     sync.Mutex
	opened map[string]*pack
	idle   list.List // of *pack without a reader; the one read last is in front
	pinned map[string]int
	closed bool
}

// A pack is open for reading.
type pack struct {
	blob.Blob
	name    string
	readers int
	gone    bool          // not to be found any more
	idle    *list.Element // nil: it has a reader
}

func newPacks(blobs blob.Store) *packs {
	return &packs{blobs: blobs, maxIdle: fairlimit.OfProcess().IdlePacks, opened: make(map[string]*pack), pinned: make(map[string]int)}
}

var errClosed = errors.New("the depot is closed")

// get opens a pack, for release.
func (p *packs) get(ctx context.Context, name string) (*pack, error) {
	if o, err := p.reuse(name); o != nil || err != nil {
		return o, err
	}
	b, err := p.blobs.Open(ctx, name)
	if err != nil && !errors.Is(err, blob.ErrNotFound) {
		err = fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open pack %s: %w", name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	o := &pack{Blob: b, name: name, readers: 1}
	if p.opened[name] == nil && !p.closed {
		p.opened[name] = o
	} else {
		o.gone = true // another reader was faster
	}
	return o, nil
}

func (p *packs) reuse(name string) (*pack, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClosed
	}
	o := p.opened[name]
	if o != nil {
		if o.idle != nil {
			p.idle.Remove(o.idle)
			o.idle = nil
		}
		o.readers++
	}
	return o, nil
}

func (p *packs) release(o *pack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o.readers--
	switch {
	case o.readers > 0:
		return
	case o.gone || p.closed:
		o.Close()
		return
	}
	o.idle = p.idle.PushFront(o)
	if p.idle.Len() > p.maxIdle {
		p.end(p.idle.Back().Value.(*pack))
	}
}

// end closes a pack that has no reader.
func (p *packs) end(o *pack) {
	p.idle.Remove(o.idle)
	delete(p.opened, o.name)
	o.Close()
}

// pin keeps packs from being deleted, until unpin.
func (p *packs) pin(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		p.pinned[name]++
	}
}

func (p *packs) unpin(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		if p.pinned[name]--; p.pinned[name] == 0 {
			delete(p.pinned, name)
		}
	}
}

func (p *packs) isPinned(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pinned[name] > 0
}

// forget closes a pack that is to be deleted, unless it is pinned.
func (p *packs) forget(name string) (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pinned[name] > 0 {
		return false
	}
	p.drop(name)
	return true
}

// reopen makes the next get open a pack again.
func (p *packs) reopen(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(name)
}

// drop closes a pack once it has no reader. It is called with mu held.
func (p *packs) drop(name string) {
	o := p.opened[name]
	switch {
	case o == nil:
	case o.idle != nil:
		p.end(o)
	default:
		o.gone = true
		delete(p.opened, name)
	}
}

func (p *packs) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for p.idle.Len() > 0 {
		o := p.idle.Remove(p.idle.Front()).(*pack)
		delete(p.opened, o.name)
		errs = append(errs, o.Close())
	}
	return errors.Join(errs...)
}

package localstore

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/singleflight"

	"firn/nix"
	"firn/nix/nar"
)

// layoutKey names a tree: as long as a path has the same NAR hash, it has the same layout.
type layoutKey struct {
	path nix.StorePath
	hash nix.Hash
}

func keyOf(info *nix.PathInfo) layoutKey { return layoutKey{info.Path, info.NARHash} }

// plan is a layout that is kept.
type plan struct {
	*nar.Layout
	key layoutKey

	// valid is a version of the store at which the path was seen to be valid.
	// (Zero is one like any other; the first look at it only costs a query.)
	valid atomic.Uint64
}

// planOverhead is what the cache itself takes for a layout: map, list, plan and key. Bytes, estimated from above.
const planOverhead = 512

// layouts keeps the layouts that were used last. It is safe for concurrent use.
type layouts struct {
	limit int64 // bytes

	walks singleflight.Group

	mu     sync.Mutex
	size   int64 // bytes
	byKey  map[layoutKey]*list.Element
	recent *list.List // of *plan, the last used first
}

func newLayouts(limit int64) *layouts {
	return &layouts{limit: limit, byKey: map[layoutKey]*list.Element{}, recent: list.New()}
}

// get returns the layout of the tree at realPath, walking it if it is not kept. Who asks for a tree that is just
// being walked waits for that walk, which goes on even when the one that began it goes away.
func (l *layouts) get(ctx context.Context, key layoutKey, realPath string) (*plan, error) {
	if p := l.kept(key); p != nil {
		return p, nil
	}
	walk := l.walks.DoChan(key.path.String()+" "+key.hash.String(), func() (any, error) {
		if p := l.kept(key); p != nil {
			return p, nil
		}
		layout, err := nar.NewLayout(context.WithoutCancel(ctx), realPath)
		if err != nil {
			return nil, err
		}
		p := &plan{Layout: layout, key: key}
		l.keep(p)
		return p, nil
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case result := <-walk:
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.(*plan), nil
	}
}

func (l *layouts) kept(key layoutKey) *plan {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byKey[key]
	if e == nil {
		return nil
	}
	l.recent.MoveToFront(e)
	return e.Value.(*plan)
}

func (l *layouts) keep(p *plan) {
	if p.MemSize()+planOverhead > l.limit {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeLocked(p.key)
	l.byKey[p.key] = l.recent.PushFront(p)
	l.size += p.MemSize() + planOverhead
	for l.size > l.limit {
		l.removeLocked(l.recent.Back().Value.(*plan).key)
	}
}

// remove forgets a layout that turned out to be wrong.
func (l *layouts) remove(key layoutKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeLocked(key)
}

func (l *layouts) removeLocked(key layoutKey) {
	if e := l.byKey[key]; e != nil {
		delete(l.byKey, key)
		l.size -= l.recent.Remove(e).(*plan).MemSize() + planOverhead
	}
}

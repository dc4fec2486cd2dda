package localstore

import (
	"context"

	"golang.org/x/sync/singleflight"

	"firn/internal/memo"
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
}

// planOverhead is what the cache itself takes for a layout: map, list, plan and key. Bytes, estimated from above.
const planOverhead = 512

func (p *plan) cost() int64 { return p.MemSize() + planOverhead }

// layouts keeps the layouts that were used last. It is safe for concurrent use.
type layouts struct {
	walks singleflight.Group
	known *memo.Memo[layoutKey, *plan] // each at a version at which the path was valid; costs are bytes
}

// newLayouts returns layouts that take limit bytes.
func newLayouts(limit int64) *layouts {
	return &layouts{known: memo.New[layoutKey, *plan](limit)}
}

// get returns the layout of the tree at realPath, walking it if it is not kept. Who asks for a tree that is just
// being walked waits for that walk, which goes on even when the one that began it goes away.
func (l *layouts) get(ctx context.Context, key layoutKey, realPath string) (*plan, error) {
	if p, _, ok := l.known.Get(key); ok {
		return p, nil
	}
	walk := l.walks.DoChan(key.path.String()+" "+key.hash.String(), func() (any, error) {
		if p, _, ok := l.known.Get(key); ok {
			return p, nil
		}
		layout, err := nar.NewLayout(context.WithoutCancel(ctx), realPath)
		if err != nil {
			return nil, err
		}
		p := &plan{Layout: layout, key: key}
		l.put(p, memo.Version{})
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

// put keeps a layout, of a path that was valid at a version of the store or later; the zero Version if
// that is not known.
func (l *layouts) put(p *plan, at memo.Version) { l.known.Put(p.key, p, at, p.cost()) }

// remove forgets a layout that turned out to be wrong.
func (l *layouts) remove(key layoutKey) { l.known.Remove(key) }

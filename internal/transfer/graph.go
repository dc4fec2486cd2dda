package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"firn/nix"
)

// A graph is which paths there are and what they refer to, in some 100 bytes a path and 4 a reference:
// a cache of a million paths fits. It is used by one goroutine until it is run.
type graph struct {
	index map[nix.PathHash]uint32
	nodes []node
}

type node struct {
	hash  nix.PathHash
	known bool // added, and not only referred to
	state state
	refs  []uint32
}

// state of a path while the graph is run.
type state uint8

const (
	waiting state = iota
	done
	failed
)

func newGraph() *graph { return &graph{index: make(map[nix.PathHash]uint32)} }

// add adds a path with its references, but for itself. Of one that is there already, it changes nothing.
func (g *graph) add(hash nix.PathHash, refs []nix.PathHash) {
	at := g.at(hash)
	if g.nodes[at].known {
		return
	}
	list := make([]uint32, len(refs))
	for i, r := range refs {
		list[i] = g.at(r)
	}
	g.nodes[at].known, g.nodes[at].refs = true, list
}

// at returns the number of a path.
func (g *graph) at(hash nix.PathHash) uint32 {
	at, ok := g.index[hash]
	if !ok {
		at = uint32(len(g.nodes))
		g.index[hash] = at
		g.nodes = append(g.nodes, node{hash: hash})
	}
	return at
}

// has reports whether a path was added.
func (g *graph) has(hash nix.PathHash) bool {
	at, ok := g.index[hash]
	return ok && g.nodes[at].known
}

// order returns the paths that were added, references first. Where references form a cycle, one of them is left out of account.
func (g *graph) order() []uint32 {
	type frame struct {
		at   uint32
		next int // of its references
	}
	var (
		order   = make([]uint32, 0, len(g.nodes))
		visited = make([]bool, len(g.nodes))
		stack   []frame
	)
	for root := range g.nodes {
		if visited[root] {
			continue
		}
		visited[root] = true
		stack = append(stack, frame{at: uint32(root)})
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			n := &g.nodes[top.at]
			if top.next < len(n.refs) {
				ref := n.refs[top.next]
				top.next++
				if !visited[ref] {
					visited[ref] = true
					stack = append(stack, frame{at: ref})
				}
				continue
			}
			if n.known {
				order = append(order, top.at)
			}
			stack = stack[:len(stack)-1]
		}
	}
	return order
}

// errReference is why a path is not moved when one that it refers to was not.
var errReference = errors.New("a reference of it was not moved")

// run calls move for every path that was added, several at once, in an order in which references begin first.
// What must come after the references, move does when await has returned nil.
// What move fails with goes to tell, which returns an error to end it all.
func (g *graph) run(outer context.Context, workers int, move func(ctx context.Context, hash nix.PathHash, await func() error) error, tell func(nix.PathHash, error) error) error {
	var (
		mu      sync.Mutex
		changed = sync.NewCond(&mu)
	)
	group, ctx := errgroup.WithContext(outer)
	group.SetLimit(workers)
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		changed.Broadcast()
	})
	defer stop()

	begun := make([]bool, len(g.nodes)) // of this goroutine; a path waits for what has begun before it, so never for itself
	for _, at := range g.order() {
		n := &g.nodes[at]
		var earlier []uint32
		for _, ref := range n.refs {
			if begun[ref] {
				earlier = append(earlier, ref)
			}
		}
		begun[at] = true
		if ctx.Err() != nil {
			break
		}
		await := func() error {
			mu.Lock()
			defer mu.Unlock()
			for _, ref := range earlier {
				for g.nodes[ref].state == waiting {
					if err := ctx.Err(); err != nil {
						return context.Cause(ctx)
					}
					changed.Wait()
				}
				if g.nodes[ref].state == failed {
					return fmt.Errorf("%w: %s", errReference, g.nodes[ref].hash)
				}
			}
			return nil
		}
		group.Go(func() error {
			err := move(ctx, n.hash, await)
			mu.Lock()
			n.state = done
			if err != nil {
				n.state = failed
			}
			changed.Broadcast()
			mu.Unlock()
			switch {
			case err == nil:
				return nil
			case ctx.Err() != nil:
				return context.Cause(ctx)
			}
			return tell(n.hash, err)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return outer.Err()
}

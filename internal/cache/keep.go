package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"firn/nix"
	"firn/nix/nar"
)

// takeLimit is how long a path waits while others are copied into the sink. Nix itself waits longer
// for a server that says nothing, and what was copied by then is there when it tries again.
const takeLimit = 4 * time.Minute

// keep has a source keep a path that a path refers to which is about to be published. done is
// called when it is published. Where the source cannot keep it, the sink takes it in, and kept is
// false. ErrNotFound if it has gone.
func (c *Cache) keep(ctx context.Context, o other) (kept bool, done func(), err error) {
	keeper, ok := o.from.(Keeper)
	if !ok {
		return true, func() {}, nil // nothing goes from there by itself
	}
	done, err = keeper.Keep(ctx, o.path)
	if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
		return err == nil, done, err
	}
	if !c.warned.Swap(true) {
		c.log.Warn("what pushed paths refer to is copied into the depot, as it cannot be kept in the store of this machine; run the Nix daemon, or firn as root",
			"source", o.from.Name(), "error", err)
	}
	return false, nil, c.takeIn(ctx, o)
}

// takeIn has the sink take in a path of another source with all that it refers to.
func (c *Cache) takeIn(ctx context.Context, o other) error {
	wait, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	select { // others would copy the same
	case c.taking <- struct{}{}:
		defer func() { <-c.taking }()
	case <-wait.Done():
		return fmt.Errorf("copy %s: %w: %w", o.path, ErrUnavailable, context.Cause(wait))
	}
	type visit struct {
		info *nix.PathInfo
		next int // of its references
	}
	seen := map[nix.PathHash]bool{}
	var stack []visit
	enter := func(path nix.StorePath) error {
		hash := path.Hash()
		if seen[hash] {
			return nil
		}
		if len(seen) == maxClosure {
			return Refuse(ErrTooLarge, "References: they lead to more than %d paths", maxClosure)
		}
		seen[hash] = true
		err := c.sinkHas(ctx, hash)
		if err == nil || !errors.Is(err, ErrNotFound) {
			return err // it is there already, with all that it refers to
		}
		info, err := c.soundInfo(ctx, o.from, hash)
		if err == nil && info.Path != path {
			err = ErrNotFound
		}
		if err == nil {
			stack = append(stack, visit{info: info})
		}
		return err
	}
	if err := enter(o.path); err != nil {
		return fmt.Errorf("copy %s: %w", o.path, err)
	}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		var err error
		if refs := top.info.References; top.next < len(refs) {
			top.next++
			err = enter(refs[top.next-1])
		} else {
			err = c.copyIn(ctx, o.from, top.info)
			stack = stack[:len(stack)-1]
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", o.path, err)
		}
	}
	return nil
}

// copyIn has the sink take in one path, whose references it has.
func (c *Cache) copyIn(ctx context.Context, from Source, info *nix.PathInfo) error {
	n, err := from.OpenNAR(ctx, info)
	if err != nil {
		return err
	}
	defer n.Close()
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := n.WriteRange(ctx, w, 0, n.Size())
		w.CloseWithError(err)
		written <- err
	}()
	_, err = c.sink.Receive(ctx, Upload{NAR: r, NARHash: info.NARHash, NARSize: info.NARSize})
	r.CloseWithError(errors.New("it is not read any more"))
	wrong := <-written
	if errors.Is(wrong, nar.ErrMismatch) || errors.Is(wrong, nar.ErrChanged) {
		return fmt.Errorf("%w: %w", ErrNotFound, wrong) // it is damaged, or goes at this moment
	}
	if err != nil {
		return err
	}
	copied := *info
	copied.Signatures = slices.Clone(info.Signatures[:min(len(info.Signatures), maxSignatures)])
	return c.onBasis(ctx, copied.Path, func(b *Basis) error {
		missing, others, err := c.missingReferences(ctx, &copied)
		if err == nil && len(missing)+len(others) > 0 {
			err = fmt.Errorf("%w: what it refers to was deleted while it was copied", ErrUnavailable)
		}
		if err != nil {
			return err
		}
		return c.publishKeeping(ctx, &copied, b, nil)
	})
}

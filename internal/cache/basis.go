package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"firn/nix"
)

const (
	// maxVisited bounds how many store paths are visited to find a cycle, of some 50 bytes each: a
	// fifth of a second. The largest closures known, of whole systems with all that they were built
	// from, have some 50,000.
	maxVisited = 1 << 16

	// maxFollowed bounds how many references these have in all, most of them to the same paths: as
	// long again.
	maxFollowed = 64 * maxVisited

	// maxTries bounds how often a path is checked because others have changed what it depends on.
	// maxLookups bounds how many paths are visited in all these tries.
	maxTries   = 100
	maxLookups = 4 * maxVisited
)

// publishChecked publishes a path of which all is checked but its references.
func (c *Cache) publishChecked(ctx context.Context, info *nix.PathInfo) error {
	return c.onBasis(ctx, info.Path, func(b *Basis) error {
		if c.partial && len(c.sources) == 1 {
			return c.publishKeeping(ctx, info, b, nil) // whatever is missing, no other source has it
		}
		missing, others, err := c.missingReferences(ctx, info)
		if err != nil {
			return err
		}
		if len(missing) > 0 && !c.partial {
			return refuseMissing(info, missing)
		}
		return c.publishKeeping(ctx, info, b, others)
	})
}

func refuseMissing(info *nix.PathInfo, missing []nix.StorePath) error {
	return Refuse(ErrInvalid, "References: %s refers to what is not in this cache: %s; push that first", info.Path, bases(missing))
}

// onBasis calls do, which checks something and keeps it, again while others change in between what
// it has checked. No process waits for another: where something has changed, another process got
// ahead.
func (c *Cache) onBasis(ctx context.Context, path nix.StorePath, do func(*Basis) error) error {
	for try, lookups := 1, 0; ; try++ {
		b, err := c.sink.Basis(ctx, path.Hash())
		if err != nil {
			return fmt.Errorf("look up references to %s: %w", path, err)
		}
		b.Partial = c.partial
		err = do(&b)
		lookups += len(b.Visited)
		if !errors.Is(err, ErrChanged) || try == maxTries || lookups > maxLookups {
			return err
		}
	}
}

// An other is a path that a source has which is not the sink.
type other struct {
	path nix.StorePath
	from Source
}

// missingReferences returns the references of a path, other than itself, that are not in the cache,
// and those that other sources have and the sink has not.
//
// Only where one seems to be missing is it looked at once what published paths lack: that takes
// long where much is missing, and then much is pushed again.
func (c *Cache) missingReferences(ctx context.Context, info *nix.PathInfo) (missing []nix.StorePath, others []other, err error) {
	missing, others, err = c.referencesNotKept(ctx, info)
	if err != nil || len(missing) == 0 || !c.closures.checked {
		return missing, others, err
	}
	// What was pushed just now may be what was missing.
	if _, _, _, err := c.missingNow(ctx, true); err != nil {
		return nil, nil, fmt.Errorf("publish %s: %w", info.Path, err)
	}
	return c.referencesNotKept(ctx, info)
}

// referencesNotKept is missingReferences as far as is known.
func (c *Cache) referencesNotKept(ctx context.Context, info *nix.PathInfo) (missing []nix.StorePath, others []other, err error) {
	left := make(map[nix.PathHash]nix.StorePath, len(info.References))
	for _, ref := range info.References {
		if ref != info.Path {
			left[ref.Hash()] = ref
		}
	}
	err = c.eachIn(ctx, c.sinkFirst, slices.Collect(maps.Keys(left)), func(s Source, r Referrer) error {
		hash := r.Path.Hash()
		if left[hash] == r.Path {
			delete(left, hash)
			if !c.isSink(s) {
				others = append(others, other{r.Path, s})
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("publish %s: %w", info.Path, err)
	}
	return nix.SortPaths(slices.Collect(maps.Values(left))), others, nil
}

// sinkHas returns ErrNotFound unless the sink has a path, with all that it refers to.
func (c *Cache) sinkHas(ctx context.Context, hash nix.PathHash) error {
	_, done, _, err := c.pathInfo(ctx, c.sink.Source, hash)
	if err == nil {
		done()
	}
	return err
}

// visit returns all paths that a path leads to, there or not, and refuses it if one of these refers
// to it.
func (c *Cache) visit(ctx context.Context, info *nix.PathInfo) (map[nix.PathHash]bool, error) {
	own := info.Path.Hash()
	visited := make(map[nix.PathHash]bool)
	var next []nix.PathHash
	followed := 0
	follow := func(r Referrer) error {
		if followed += len(r.References); followed > maxFollowed {
			return Refuse(ErrTooLarge, "References: others refer to %s already, and it leads to more than %d references, too many to look for a cycle", info.Path, maxFollowed)
		}
		for _, ref := range r.References {
			switch h := ref.Hash(); {
			case h == own && r.Path != info.Path:
				return Refuse(ErrInvalid, "References: they make a cycle: %s refers to %s, and that leads to %s again", r.Path, ref, r.Path)
			case h == own || visited[h]:
			case len(visited) == maxVisited:
				return Refuse(ErrTooLarge, "References: others refer to %s already, and it leads to more than %d paths, too many to look for a cycle", info.Path, maxVisited)
			default:
				visited[h] = true
				next = append(next, h)
			}
		}
		return nil
	}
	err := follow(Referrer{Path: info.Path, References: info.References})
	for err == nil && len(next) > 0 {
		level := next
		next = nil
		err = c.references(ctx, level, follow)
	}
	if err != nil {
		return nil, fmt.Errorf("publish %s: %w", info.Path, err)
	}
	return visited, nil
}

// references calls do with the references of those paths that are in the cache.
// A path may come twice: one that the sink withholds may be in another source.
func (c *Cache) references(ctx context.Context, hashes []nix.PathHash, do func(Referrer) error) error {
	left := make(map[nix.PathHash]bool, len(hashes))
	for _, hash := range hashes {
		left[hash] = true
	}
	err := c.sinkReferences(ctx, hashes, func(r Referrer) error {
		if !r.Withheld {
			delete(left, r.Path.Hash())
		}
		return do(r)
	})
	if err != nil {
		return err
	}
	return c.eachIn(ctx, c.sinkFirst[1:], slices.Collect(maps.Keys(left)), func(_ Source, r Referrer) error { return do(r) })
}

// sinkReferences calls do with what the sink says of paths, withheld ones too.
func (c *Cache) sinkReferences(ctx context.Context, hashes []nix.PathHash, do func(Referrer) error) error {
	for batch := range slices.Chunk(hashes, maxBatch) {
		for r, err := range c.sink.References(ctx, batch) {
			if err == nil {
				err = do(r)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// publishKeeping makes a path visible, and has other sources keep what of its references only they
// have.
func (c *Cache) publishKeeping(ctx context.Context, info *nix.PathInfo, b *Basis, others []other) error {
	var elsewhere []nix.StorePath
	for _, o := range others {
		kept, done, err := c.keep(ctx, o)
		switch {
		case errors.Is(err, ErrNotFound) && c.partial: // it has gone just now
		case errors.Is(err, ErrNotFound):
			return refuseMissing(info, []nix.StorePath{o.path})
		case err != nil:
			return fmt.Errorf("publish %s: %w", info.Path, err)
		case kept:
			defer done()
			elsewhere = append(elsewhere, o.path)
		}
	}
	if b.Dangling {
		// A path to which no other refers closes no cycle.
		var err error
		if b.Visited, err = c.visit(ctx, info); err != nil {
			return err
		}
	}
	return c.publish(ctx, info, *b, elsewhere...)
}

// publish makes a path visible.
func (c *Cache) publish(ctx context.Context, info *nix.PathInfo, b Basis, elsewhere ...nix.StorePath) error {
	_, err := c.sink.Publish(ctx, info, b, elsewhere...)
	c.pushes.Add(1) // also when it failed: a catalog that is not answering may have done it
	c.closures.published(info.Path)
	if errors.Is(err, ErrNotFound) {
		return Refuse(ErrInvalid, "URL: the NAR of %s was removed again, as its narinfo came too late; push both once more", info.Path)
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", info.Path, err)
	}
	return nil
}

package cache

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"firn/nix"
)

// maxBatch is how many paths a source is asked for at once.
const maxBatch = 256

// A BatchSource is a Source that can look up many paths in one question.
type BatchSource interface {
	Source

	// References iterates over those of the given paths that are there, with what they refer to, in
	// any order. At most 256 are asked for at once. One is in memory at a time: each may have many
	// references.
	References(ctx context.Context, hashes []nix.PathHash) iter.Seq2[Referrer, error]
}

// A Referrer is a path with what it refers to.
type Referrer struct {
	Path       nix.StorePath
	References []nix.StorePath
	Withheld   bool // as its bytes did not verify
}

// References calls do with those of the given paths that the cache has, in any order, each once. do
// must not keep the references. How many questions the sources are asked does not grow with the paths,
// but for each few hundred of them.
func (c *Cache) References(ctx context.Context, hashes []nix.PathHash, do func(Referrer) error) error {
	return c.eachIn(ctx, c.sources, hashes, func(_ Source, r Referrer) error { return do(r) })
}

// Valid returns those of the paths that the cache has, as Has does of one.
func (c *Cache) Valid(ctx context.Context, paths []nix.StorePath) (map[nix.StorePath]bool, error) {
	hashes := make([]nix.PathHash, len(paths))
	for i, p := range paths {
		hashes[i] = p.Hash()
	}
	valid := make(map[nix.StorePath]bool, len(paths))
	err := c.References(ctx, hashes, func(r Referrer) error {
		valid[r.Path] = true
		return nil
	})
	return valid, err
}

// eachIn calls do with what the first of some sources that has a path knows of it. A source that could
// not tell does not hide the answer of a later one; but it is ErrUnavailable if none has the path and
// one could not tell.
func (c *Cache) eachIn(ctx context.Context, sources []Source, hashes []nix.PathHash, do func(Source, Referrer) error) error {
	for batch := range slices.Chunk(hashes, maxBatch) {
		if err := c.eachOf(ctx, sources, slices.Clone(batch), do); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) eachOf(ctx context.Context, sources []Source, left []nix.PathHash, do func(Source, Referrer) error) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var unsure error
	for _, s := range sources {
		if len(left) == 0 {
			return nil
		}
		found := make(map[nix.PathHash]bool, len(left))
		var failed error
		err := c.referencesIn(ctx, s, left, func(r Referrer) error {
			if hash := r.Path.Hash(); !found[hash] {
				found[hash] = true
				failed = do(s, r)
			}
			return failed
		})
		if failed != nil {
			return failed
		}
		if err != nil {
			unsure = errors.Join(unsure, fmt.Errorf("ask %s: %w", s.Name(), err))
		}
		left = slices.DeleteFunc(left, func(hash nix.PathHash) bool { return found[hash] })
	}
	if unsure != nil && len(left) > 0 {
		return fmt.Errorf("%w: %w", ErrUnavailable, unsure)
	}
	return nil
}

// referencesIn calls do with those of at most maxBatch paths that a source has, and that can be used:
// what they refer to is there as well.
func (c *Cache) referencesIn(ctx context.Context, s Source, hashes []nix.PathHash, do func(Referrer) error) error {
	batch, ok := s.(BatchSource)
	if !ok {
		return c.infosIn(ctx, s, hashes, do)
	}
	var suspects []nix.PathHash // not their references: they may be many
	check := false
	if c.isSink(s) {
		m, _, _, err := c.missingNow(ctx, false)
		if err != nil {
			return err
		}
		check = m != nil && len(m.refs) > 0
	}
	for r, err := range batch.References(ctx, hashes) {
		switch {
		case err != nil:
			return err
		case r.Withheld, r.Path.Dir() != c.info.StoreDir:
		case check:
			suspects = append(suspects, r.Path.Hash())
		default:
			if err := do(r); err != nil {
				return err
			}
		}
	}
	return c.infosIn(ctx, s, suspects, do)
}

// infosIn is referencesIn that asks for each path by itself.
func (c *Cache) infosIn(ctx context.Context, s Source, hashes []nix.PathHash, do func(Referrer) error) error {
	for _, hash := range hashes {
		info, done, _, err := c.pathInfo(ctx, s, hash)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		err = do(Referrer{Path: info.Path, References: info.References})
		done()
		if err != nil {
			return err
		}
	}
	return nil
}

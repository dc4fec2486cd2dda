package cache

import (
	"context"
	"fmt"

	"golang.org/x/sync/semaphore"

	"firn/nix"
)

const (
	// LargeInfo is from how many bytes on a narinfo is large: with some 800 references. Hardly any
	// is. A large one is not remembered, and those who hold one share memory for all together.
	LargeInfo = 64 << 10

	// lookMemory bounds the bytes of the large narinfos that all caches of a process look up at
	// once. Each takes some four times as much memory until it is made, and no client is waited for
	// until then.
	lookMemory = 2 * nix.MaxNARInfoSize
)

// LookMemory bounds the memory of large look-ups. Caches share one.
type LookMemory struct{ of *semaphore.Weighted }

// NewLookMemory returns a LookMemory for all caches of a process.
func NewLookMemory() *LookMemory { return &LookMemory{semaphore.NewWeighted(lookMemory)} }

// infoSize returns how many bytes the narinfo of a path info has, about.
func infoSize(info *nix.PathInfo) int64 {
	return int64((&nix.NARInfo{PathInfo: *info}).TextSize())
}

// heldInfo asks one source for a path, whatever that refers to. What it gives must be dropped when
// done is called.
//
// Only the answer tells whether it is large. Where there is no memory for it now, it is dropped,
// and the source asked again when there is: those who wait hold nothing.
func (c *Cache) heldInfo(ctx context.Context, s Source, hash nix.PathHash) (info *nix.PathInfo, done func(), err error) {
	if info, err = c.soundInfo(ctx, s, hash); err != nil {
		return nil, nil, err
	}
	done = func() {}
	if size := infoSize(info); size > LargeInfo {
		if size > nix.MaxNARInfoSize {
			c.log.Error("left out a path whose narinfo would be too large", "source", s.Name(), "path", info.Path.String(), "references", len(info.References))
			return nil, nil, ErrNotFound
		}
		if !c.looks.of.TryAcquire(size) {
			info = nil
			if err := c.looks.of.Acquire(ctx, size); err != nil {
				return nil, nil, fmt.Errorf("%w: too many large narinfos are looked up at once: %w", ErrUnavailable, err)
			}
			if info, err = c.soundInfo(ctx, s, hash); err == nil && infoSize(info) > size {
				err = fmt.Errorf("%w: %s was replaced just now", ErrUnavailable, info.Path)
			}
			if err != nil {
				c.looks.of.Release(size)
				return nil, nil, err
			}
		}
		done = func() { c.looks.of.Release(size) }
	}
	return info, done, nil
}

// withoutReferences returns a path info without its references, in which is what takes memory.
func withoutReferences(info *nix.PathInfo) *nix.PathInfo {
	short := *info
	short.References = nil
	return &short
}

package depot

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"firn/internal/cache"
	"firn/internal/depot/blob"
)

func newPackName() string { return strings.ToLower(rand.Text()) + ".pack" }

func commit(ctx context.Context, w blob.Writer) error {
	if err := w.Commit(ctx); err != nil {
		return fmt.Errorf("commit pack: %w: %w", cache.ErrUnavailable, err)
	}
	return nil
}

// A decoy is a pack that is thrown away: of frames that are kept already, but that only other caches lead to.
// Whoever uploads them waits for as long as if they were new, and so does not find out that they are there.
// It is committed only where there is no real pack to wait for.
type decoy struct {
	w    blob.Writer // nil: nothing was written
	name string
}

func (d *decoy) write(ctx context.Context, blobs blob.Store, frames []byte) error {
	if len(frames) == 0 {
		return nil
	}
	if d.w == nil {
		name := newPackName()
		w, err := blobs.Create(ctx, name)
		if err != nil {
			return fmt.Errorf("create pack: %w: %w", cache.ErrUnavailable, err)
		}
		d.w, d.name = w, name
	}
	if _, err := d.w.Write(frames); err != nil {
		return fmt.Errorf("write pack: %w: %w", cache.ErrUnavailable, err)
	}
	return nil
}

func (d *decoy) commit(ctx context.Context) error {
	if d.w == nil {
		return nil
	}
	return commit(ctx, d.w)
}

func (d *decoy) abort() {
	if d.w != nil {
		d.w.Abort()
	}
}

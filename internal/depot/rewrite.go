package depot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot/index"
)

const (
	// examineLimit is how many packs one tick examines.
	examineLimit = 64
	// rewriteLimit is how many bytes of packs one tick copies, or a pack more.
	rewriteLimit = 1 << 30
	// retryAfter is how long a pack that could not be copied is left alone. Others come first, and
	// the cause may be gone by then.
	retryAfter = 6 * time.Hour
	// A new pack leaves free at least a reservePart of the file system, or reserveMost bytes of a
	// large one. A disk that is nearly full is for uploads.
	reservePart, reserveMost = 20, 1 << 30 // bytes
	// moveLimit is how many NARs one transaction moves, as other writers wait for it. moveBytes is
	// how many bytes their recipes have; the last recipe may exceed it.
	moveLimit, moveBytes = 64, 4 << 20
)

// rewrite copies the frames that are still needed out of packs in which most are not.
//
// A pack is rewritten when more than half of its bytes are unreferenced, so no more is copied than
// is freed. The new pack is durable before the catalog names it. Then the NARs are moved, some at a
// time, and with the first of them the chunks, so that nothing new refers to the old pack. The old
// pack is removed like any pack that no NAR refers to, after the grace; clients may read it until
// then. A crash leaves a pack that no record names, or NARs of which some are moved. The next tick
// examines what is left.
//
// The old and the new pack are on the disk together until the grace is over. So packs are rewritten
// only while those that wait for that are not large. If a pack cannot be copied, it is left alone
// for a while, and the others are rewritten. If the catalog fails, rewriting ends.
func (d *Depot) rewrite(ctx context.Context) error {
	waiting, err := d.index.Rewritten(ctx)
	if err != nil {
		return failure("look up rewritten packs", err)
	}
	now, failed := d.opts.Now(), d.sweeps.failed
	maps.DeleteFunc(failed, func(_ string, until time.Time) bool { return !now.Before(until) })
	thin, err := d.index.ThinPacks(ctx, examineLimit+len(failed))
	if err != nil {
		return failure("look up thin packs", err)
	}
	thin = append(d.sharing.waste(), thin...)
	var copied int64
	var cramped bool
	var errs []error
	for _, p := range thin {
		if copied > rewriteLimit || waiting > d.opts.RewriteRoom {
			break
		}
		if _, ok := failed[p.Name]; ok {
			continue
		}
		n, err := d.examine(ctx, p)
		if copied += n; n > 0 {
			waiting += p.Size
		}
		if err != nil {
			if short := errors.Is(err, errCramped); !short || !cramped { // it is reported once, not for each pack
				errs = append(errs, fmt.Errorf("rewrite pack %s: %w", p.Name, err))
				cramped = cramped || short
			}
			if ctx.Err() != nil || !errors.Is(err, errNotCopied) {
				break
			}
			failed[p.Name] = now.Add(retryAfter)
		} else {
			d.sharing.examined(p.Name)
		}
	}
	return errors.Join(errs...)
}

var (
	// errUnsound says that a pack cannot be moved as it is.
	errUnsound = errors.New("it is damaged")
	// errCramped says that there is too little room on the disk to begin.
	errCramped = errors.New("there is no room to rewrite it")
	// errNotCopied says that reading the pack or writing the new one failed.
	errNotCopied = errors.New("it cannot be copied now")
)

// examine rewrites a pack if that is worth it, and returns how many bytes were copied, or may have
// been.
func (d *Depot) examine(ctx context.Context, p index.ThinPack) (int64, error) {
	live, err := d.live(ctx, p.Name)
	var size int64
	for _, f := range live {
		size += int64(f.length)
	}
	dead := max(0, p.Size-size)
	if errors.Is(err, errUnsound) {
		return 0, failure("note pack", d.index.Examined(ctx, p, 0))
	}
	if err != nil {
		return 0, err
	}
	if len(live) == 0 || 2*dead <= p.Size {
		return 0, failure("note pack", d.index.Examined(ctx, p, dead))
	}
	if err := d.hasRoom(ctx, size); err != nil {
		return 0, fmt.Errorf("%w: %w", errNotCopied, err)
	}
	r := &rewriting{d: d, old: p.Name, at: make(map[int64]int64, len(live))}
	switch err := r.copy(ctx, live); {
	case errors.Is(err, errUnsound), errors.Is(lost(err), errDamaged):
		d.log.Error("a pack is left as it is, as it is damaged: run firn verify", "pack", p.Name, "error", err)
		return 0, failure("note pack", d.index.Examined(ctx, p, dead))
	case err != nil:
		return size, fmt.Errorf("%w: %w", errNotCopied, err)
	}
	rest, err := r.move(ctx)
	if err == nil && !rest {
		err = failure("note pack", d.index.Examined(ctx, p, 0))
	}
	if err == nil {
		d.log.Info("rewrote a pack", "pack", p.Name, "size", p.Size, "to", r.to.Name, "kept", r.to.Size)
	}
	return size, err
}

// hasRoom returns an error if too little would be free once so many bytes are written.
func (d *Depot) hasRoom(ctx context.Context, size int64) error {
	free, all, err := d.Room(ctx)
	if err != nil || all == 0 {
		return err
	}
	if reserve := min(all/reservePart, reserveMost); free-size < reserve {
		return fmt.Errorf("%w: %d bytes are free, %d would be written, and %d are to stay free; make room on its disk", errCramped, free, size, reserve)
	}
	return nil
}

// live returns the frames of a pack that NARs refer to, by their offsets. It returns errUnsound if
// one of these NARs is withheld: the pack is left as it is until that is repaired.
func (d *Depot) live(ctx context.Context, pack string) (map[int64]place, error) {
	live := make(map[int64]place)
	for n, err := range d.index.NARsIn(ctx, pack) {
		if err != nil {
			return nil, failure("list NARs", err)
		}
		if n.Fault != index.Whole {
			return live, fmt.Errorf("NAR %x: %w", n.Hash, errUnsound)
		}
		places, err := placesOf(n)
		if err != nil {
			return live, fmt.Errorf("%w: %w", errUnsound, err)
		}
		for _, at := range places {
			if n.Packs[at.pack] == pack {
				live[at.off] = at
			}
		}
	}
	return live, nil
}

// A rewriting is of one pack.
type rewriting struct {
	d      *Depot
	old    string
	to     index.Pack
	at     map[int64]int64 // offsets in the new pack, by the offset in the old one
	chunks []index.MovedChunk
}

// copy makes the new pack.
func (r *rewriting) copy(ctx context.Context, live map[int64]place) error {
	from, err := r.d.packs.get(ctx, r.old)
	if err != nil {
		return err
	}
	defer r.d.packs.release(from)
	r.to.Name = newPackName()
	w, err := r.d.blobs.Create(ctx, r.to.Name)
	if err != nil {
		return fmt.Errorf("create pack: %w: %w", cache.ErrUnavailable, err)
	}
	defer w.Abort()
	var packed []byte
	for _, off := range slices.Sorted(maps.Keys(live)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f := live[off]
		packed = slices.Grow(packed[:0], int(f.length))[:f.length]
		if err := readFull(from, packed, off); err != nil {
			return fmt.Errorf("read pack: %w", err)
		}
		if err := r.d.checkFrame(packed, f); err != nil {
			return err
		}
		if _, err := w.Write(packed); err != nil {
			return fmt.Errorf("write pack: %w: %w", cache.ErrUnavailable, err)
		}
		// Of a frame that is no chunk, the catalog knows no chunk of this hash at this place.
		r.chunks = append(r.chunks, index.MovedChunk{Hash: f.sum, From: off, To: r.to.Size})
		r.at[off] = r.to.Size
		r.to.Size += int64(f.length)
	}
	return commit(ctx, w)
}

// checkFrame returns errUnsound if a frame has other contents than it should.
func (d *Depot) checkFrame(packed []byte, f place) (err error) {
	d.coders.work(func() {
		z, failed := d.coders.decoder()
		if failed != nil {
			err = failed
			return
		}
		defer d.coders.putDecoder(z)
		data, failed := z.DecodeAll(packed, make([]byte, 0, f.size))
		if failed == nil && sha256.Sum256(data) != f.sum {
			failed = fmt.Errorf("a frame of %d bytes at %d has another hash than it should", f.size, f.off)
		}
		if failed != nil {
			err = fmt.Errorf("%w: %w", errUnsound, failed)
		}
	})
	return err
}

// move makes the NARs refer to the new pack, and reports whether some still refer to the old one,
// such as a NAR that was added while the pack was copied.
func (r *rewriting) move(ctx context.Context) (rest bool, err error) {
	m := &index.Move{From: r.old, To: r.to, Chunks: r.chunks}
	var hashes []catalog.Sum
	var size int
	first := true
	flush := func() error {
		if len(m.NARs) == 0 {
			return nil
		}
		moved, err := r.d.index.MoveFrames(ctx, m)
		rest = rest || len(moved) < len(m.NARs)
		if errors.Is(err, catalog.ErrGone) {
			if first { // after any other error it may have been moved; if it was not, a sweep finds the pack
				r.d.discard(ctx, r.to.Name)
			}
			return err
		}
		if err != nil {
			return failure("move frames", err)
		}
		for _, hash := range hashes {
			r.d.recipes.Remove(hash)
		}
		first, m.Chunks, m.NARs, hashes, size = false, nil, nil, nil, 0
		return nil
	}
	for n, err := range r.d.index.NARsIn(ctx, r.old) {
		if err != nil {
			return rest, failure("list NARs", err)
		}
		moved, ok, err := r.recipe(n)
		if err != nil {
			return rest, err
		}
		if !ok {
			rest = true
			continue
		}
		m.NARs, hashes = append(m.NARs, moved), append(hashes, n.Hash)
		if size += len(moved.Was) + len(moved.Recipe); len(m.NARs) == moveLimit || size > moveBytes {
			if err := flush(); err != nil {
				return rest, ignoreGone(err)
			}
		}
	}
	err = flush()
	if err == nil && first { // all have left it
		r.d.discard(ctx, r.to.Name)
	}
	return rest || errors.Is(err, catalog.ErrGone), ignoreGone(err)
}

// ignoreGone returns nil if another process was faster.
func ignoreGone(err error) error {
	if errors.Is(err, catalog.ErrGone) {
		return nil
	}
	return err
}

// recipe returns the new recipe of a NAR. ok is false if it needs more than was copied.
func (r *rewriting) recipe(n *index.NAR) (moved index.MovedNAR, ok bool, err error) {
	places, err := placesOf(n)
	if err != nil {
		return moved, false, err
	}
	number := slices.Index(n.Packs, r.old)
	for i := range places {
		at := &places[i]
		if n.Packs[at.pack] != r.old {
			continue
		}
		to, there := r.at[at.off]
		if !there || int(at.pack) != number {
			return moved, false, nil
		}
		at.off = to
	}
	return index.MovedNAR{ID: n.ID, Index: number, Was: n.Recipe, Recipe: appendRecipe(nil, places), Tag: n.Tag}, true, nil
}

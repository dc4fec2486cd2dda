package depot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot/blob"
	"firn/internal/depot/index"
)

// A pack may be missing, or shorter than it was. What needs it is withheld then, as if it were
// damaged: its narinfo is 404, so clients build it, or push it again. Nothing new is built on that
// pack, and when it is back, what needs it is served again, without a byte being read.
//
// A store of packs may be missing as a whole, such as on a disk that is not mounted. Nothing is
// withheld, swept or published then: all who ask are told to come again.

// absence is what is known of the store of packs as a whole.
type absence struct {
	known  atomic.Bool // when it was looked for last, it was not there
	losing sync.Mutex  // held while what needs a missing pack is withheld
}

// present returns an error while the packs as a whole are not there. It costs nothing as long as no
// request has found them to be absent.
func (d *Depot) present(ctx context.Context) error {
	if !d.absence.known.Load() {
		return nil
	}
	return d.look(ctx)
}

// look looks whether the packs as a whole are there.
func (d *Depot) look(ctx context.Context) error {
	err := d.blobs.Check(ctx)
	absent := errors.Is(err, blob.ErrAbsent)
	if was := d.absence.known.Swap(absent); absent && !was {
		d.log.Error("the packs are not there: nothing of the depot is served, taken or removed until they are", "error", err)
	} else if was && !absent {
		d.log.Info("the packs are there again")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
	}
	return nil
}

// lacks reports whether an error says that it is sure that a pack lacks what is needed of it.
func lacks(err error) bool { return errors.Is(err, blob.ErrNotFound) || errors.Is(err, errShort) }

// holds returns an error that lacks is true of if a pack is missing, or has fewer bytes; any other
// says that this could not be told.
func (d *Depot) holds(ctx context.Context, name string, size int64) error {
	b, err := d.blobs.Open(ctx, name)
	if err != nil {
		return fmt.Errorf("open pack %s: %w", name, err)
	}
	defer b.Close()
	if b.Size() < size {
		return fmt.Errorf("pack %s: %w", name, errShort)
	}
	return nil
}

// needs returns of each pack, by its index, how many bytes it has to have for the extents from
// first to last.
func (r *recipe) needs(first, last int) []int64 {
	needs := make([]int64, len(r.packs))
	for i := first; i <= last; i++ {
		e := &r.extents[i]
		needs[e.pack] = max(needs[e.pack], e.off+r.length(i))
	}
	return needs
}

// intact is holds for all packs of a NAR.
func (d *Depot) intact(ctx context.Context, r *recipe) error {
	for i, size := range r.needs(0, len(r.extents)-1) {
		if err := d.holds(ctx, r.packs[i], size); err != nil {
			return err
		}
	}
	return nil
}

// ready opens the packs of the extents from first to last, before the first byte of them is sent:
// as long as nothing was sent, the answer can be that there is no such NAR.
func (d *Depot) ready(ctx context.Context, r *recipe, first, last int) error {
	for i, size := range r.needs(first, last) {
		if size == 0 {
			continue
		}
		p, err := d.packs.get(ctx, r.packs[i])
		if err != nil {
			return err
		}
		short := p.Size() < size
		d.packs.release(p)
		if short {
			return fmt.Errorf("pack %s: %w", r.packs[i], errShort)
		}
	}
	return nil
}

// checkIntact returns ErrNotFound for a NAR of which a pack is missing or too short, and withholds
// it.
func (d *Depot) checkIntact(ctx context.Context, hash catalog.Sum, r *recipe) error {
	err := d.intact(ctx, r)
	if err == nil {
		return nil
	}
	if !lacks(err) {
		return d.unavailable(ctx, err)
	}
	return d.readFailure(ctx, hash, err)
}

// intactChunks returns the chunks whose packs are there: nothing is built on the others.
func (d *Depot) intactChunks(ctx context.Context, chunks []index.Chunk) ([]index.Chunk, error) {
	needs := make(map[string]int64)
	for _, c := range chunks {
		needs[c.Pack] = max(needs[c.Pack], c.Offset+c.Length)
	}
	for name, size := range needs {
		err := d.holds(ctx, name, size)
		if lacks(err) {
			chunks = slices.DeleteFunc(chunks, func(c index.Chunk) bool { return c.Pack == name })
			err = d.losePack(ctx, name, err)
		} else if err != nil {
			err = d.unavailable(ctx, err)
		}
		if err != nil {
			return nil, err
		}
	}
	return chunks, nil
}

// unavailable returns the error of a request that could not use the packs, and cannot tell what is
// in them.
func (d *Depot) unavailable(ctx context.Context, err error) error {
	if errors.Is(err, blob.ErrAbsent) {
		_ = d.look(ctx) // it logs what it finds
	}
	return fmt.Errorf("%w: %w", cache.ErrUnavailable, err)
}

// readFailure says what it means for a NAR that its packs could not be read.
func (d *Depot) readFailure(ctx context.Context, hash catalog.Sum, err error) error {
	switch {
	case errors.Is(err, blob.ErrAbsent):
		return d.unavailable(ctx, err)
	case !lacks(err):
		return err
	}
	switch withheld, failed := d.lose(context.WithoutCancel(ctx), hash); {
	case failed != nil:
		return fmt.Errorf("%w: %w: %w", cache.ErrUnavailable, err, failed)
	case withheld:
		return fmt.Errorf("%w: %w", cache.ErrNotFound, err)
	}
	return fmt.Errorf("%w: %w", cache.ErrUnavailable, err) // it has come back
}

// lose withholds a NAR of which a pack was found to be missing or too short, and all else that
// needs that pack. It reports whether the NAR is withheld, or gone.
func (d *Depot) lose(ctx context.Context, hash catalog.Sum) (bool, error) {
	d.absence.losing.Lock()
	defer d.absence.losing.Unlock()
	n, err := d.index.NAR(ctx, hash)
	if errors.Is(err, catalog.ErrNotFound) || err == nil && n.Fault != index.Whole {
		return true, nil // another request was faster
	}
	if err != nil {
		return false, failure("look up NAR", err)
	}
	r, err := parseRecipe(n)
	if err != nil {
		return false, err
	}
	lost := false
	for i, size := range r.needs(0, len(r.extents)-1) {
		d.packs.reopen(r.packs[i]) // what is open may be of a file that is not there any more
		switch err := d.holds(ctx, r.packs[i], size); {
		case lacks(err):
			if err := d.losePack(ctx, r.packs[i], err); err != nil {
				return false, err
			}
			lost = true
		case err != nil:
			return false, d.unavailable(ctx, err)
		}
	}
	return lost, nil
}

// A refault gives many NARs another fault, maxAsked at a time.
type refault struct {
	d        *Depot
	from, to index.Fault
	what     string // in an error
	nars     []index.NARID
	changed  int64
}

func (f *refault) add(ctx context.Context, nar index.NARID) error {
	if f.nars = append(f.nars, nar); len(f.nars) == maxAsked {
		return f.flush(ctx)
	}
	return nil
}

func (f *refault) flush(ctx context.Context) error {
	changed, err := f.d.index.SetFaults(ctx, f.nars, f.from, f.to)
	f.changed, f.nars = f.changed+changed, f.nars[:0]
	return failure(f.what, err)
}

// losePack withholds all NARs that need what a pack has not, and has nothing new refer to that
// pack.
func (d *Depot) losePack(ctx context.Context, name string, cause error) error {
	if err := d.index.ForgetPack(ctx, name); err != nil {
		return failure("forget chunks", err)
	}
	lost := refault{d: d, from: index.Whole, to: index.Missing, what: "withhold NARs"}
	for n, err := range d.index.NARsIn(ctx, name) {
		if err != nil {
			return failure("list NARs", err)
		}
		if n.Fault != index.Whole || !d.lacking(ctx, n, name) {
			continue
		}
		if err := lost.add(ctx, n.ID); err != nil {
			return err
		}
	}
	if err := lost.flush(ctx); err != nil {
		return err
	}
	if lost.changed > 0 {
		d.log.Error("a pack is missing or too short: what needs it is not served until it is back, or was pushed again",
			"pack", name, "nars", lost.changed, "error", cause)
	}
	return nil
}

// lacking reports whether a pack lacks what a NAR needs of it.
func (d *Depot) lacking(ctx context.Context, n *index.NAR, name string) bool {
	r, err := parseRecipe(n)
	if err != nil {
		return false // which is for a verification to find
	}
	for i, size := range r.needs(0, len(r.extents)-1) {
		if r.packs[i] == name && lacks(d.holds(ctx, name, size)) {
			return true
		}
	}
	return false
}

// findMissing looks for every pack that the catalog has. One that cannot be read keeps no other
// from being looked for.
func (d *Depot) findMissing(ctx context.Context) error {
	var unread error // the first
	for p, err := range d.index.AllPacks(ctx) {
		if err != nil {
			return failure("list packs", err)
		}
		switch err := d.holds(ctx, p.Name, p.Size); {
		case lacks(err):
			if err := d.losePack(ctx, p.Name, err); err != nil {
				return err
			}
		case ctx.Err() != nil || errors.Is(err, blob.ErrAbsent):
			return err
		default:
			unread = cmp.Or(unread, err)
		}
	}
	return unread
}

// findAgain has NARs served again whose packs are back, and logs those that are damaged, once.
func (d *Depot) findAgain(ctx context.Context) error {
	back := refault{d: d, from: index.Missing, to: index.Whole, what: "serve NARs again"}
	damaged, found := make(map[index.NARID]bool), 0
	for n, err := range d.index.WithheldNARs(ctx) {
		if err != nil {
			return failure("list NARs", err)
		}
		if n.Fault == index.Damaged {
			if damaged[n.ID] = true; !d.sweeps.damaged[n.ID] {
				found++
			}
		}
		if n.Fault != index.Missing {
			continue
		}
		n, err := d.index.NAR(ctx, n.Hash)
		if errors.Is(err, catalog.ErrNotFound) {
			continue
		}
		if err != nil {
			return failure("look up NAR", err)
		}
		r, err := parseRecipe(n)
		if err != nil {
			continue // which is for a verification to find
		}
		if d.intact(ctx, r) != nil {
			continue
		}
		if err := back.add(ctx, n.ID); err != nil {
			return err
		}
	}
	if err := back.flush(ctx); err != nil {
		return err
	}
	d.sweeps.damaged = damaged
	if found > 0 {
		d.log.Error("NARs are damaged, and not served until they are pushed again: firn verify says what is wrong, and which paths have them", "nars", found)
	}
	if back.changed > 0 {
		d.log.Info("packs are back: what needs them is served again", "nars", back.changed)
	}
	return nil
}

package depot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/blob"
)

const (
	// sweepLimit is how many records of each kind one transaction of a sweep removes: others wait for it.
	sweepLimit = 256
	// listEvery is how often all blobs are listed, to find those that no record leads to, and all
	// packs looked for, to find those that are missing. Only crashes leave the first, and lose the
	// second, and it takes long.
	listEvery = 24 * time.Hour
)

// sweeps is what a sweep remembers for the next one.
type sweeps struct {
	mu      sync.Mutex             // held while sweeping
	waiting map[string]bool        // packs that are to be deleted once nobody reads them
	listed  time.Time              // when all blobs were listed last; zero: never
	failed  map[string]time.Time   // packs that could not be copied, and until when they are passed over
	damaged map[catalog.NARID]bool // NARs withheld as damaged that the log has counted
}

// Tick removes what nothing leads to any more, and what uploads that were cut off have left behind, and rewrites packs that are mostly nobody's.
// It withholds what needs a pack that is missing, and serves it again when that is back. It logs
// what another process, such as firn verify, found to be damaged. It does nothing while the packs as
// a whole are not there. Anything younger than the grace stays, and so does, until it is closed, what
// is open.
func (d *Depot) Tick(ctx context.Context) error {
	d.sweeps.mu.Lock()
	defer d.sweeps.mu.Unlock()
	if d.sweeps.waiting == nil {
		d.sweeps.waiting, d.sweeps.failed = make(map[string]bool), make(map[string]time.Time)
	}
	if err := d.look(ctx); err != nil {
		return err
	}
	now := d.opts.Now()
	before := now.Add(-d.opts.Grace)
	errs := []error{d.findAgain(ctx)}
	for more := true; more; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var names []string
		var err error
		names, more, err = d.catalog.Sweep(ctx, before, sweepLimit)
		if err != nil {
			errs = append(errs, failure("sweep catalog", err))
			break
		}
		for _, name := range names {
			d.sweeps.waiting[name] = true
		}
		errs = append(errs, d.deleteWaiting(ctx))
	}
	errs = append(errs, d.deleteWaiting(ctx))
	if err := d.rewrite(ctx); err != nil {
		errs = append(errs, err)
	}
	if err := d.blobs.Sweep(ctx, before); err != nil {
		errs = append(errs, fmt.Errorf("sweep packs: %w", err))
	}
	if now.Sub(d.sweeps.listed) >= listEvery {
		err := d.deleteOrphans(ctx, before)
		if err == nil {
			d.sweeps.listed = now
		}
		errs = append(errs, err, d.findMissing(ctx))
	}
	return errors.Join(errs...)
}

// deleteWaiting deletes the packs that nobody reads.
func (d *Depot) deleteWaiting(ctx context.Context) error {
	var errs []error
	for name := range d.sweeps.waiting {
		if !d.packs.forget(name) {
			continue
		}
		if err := d.blobs.Delete(ctx, name); err != nil {
			errs = append(errs, fmt.Errorf("delete pack %s: %w", name, err))
			continue
		}
		delete(d.sweeps.waiting, name)
	}
	return errors.Join(errs...)
}

// deleteOrphans deletes the packs that the catalog does not know.
func (d *Depot) deleteOrphans(ctx context.Context, before time.Time) error {
	var names []string
	check := func() error {
		// One that an upload is about to name in a record is none, however old: a machine may sleep in between, or its clock be set.
		// When it is no longer pinned, the record is there, if there will ever be one.
		names = slices.DeleteFunc(names, d.packs.isPinned)
		if len(names) == 0 {
			return nil
		}
		known, err := d.catalog.KnownPacks(ctx, names)
		if err != nil {
			return failure("look up packs", err)
		}
		knows := make(map[string]bool, len(known))
		for _, name := range known {
			knows[name] = true
		}
		for _, name := range names {
			if !knows[name] {
				d.sweeps.waiting[name] = true
			}
		}
		names = nil
		return nil
	}
	err := d.blobs.List(ctx, func(i blob.Info) error {
		if !i.Modified.Before(before) {
			return nil
		}
		if names = append(names, i.Name); len(names) < maxAsked {
			return nil
		}
		return check()
	})
	if err != nil {
		return fmt.Errorf("list packs: %w", err)
	}
	if err := check(); err != nil {
		return err
	}
	return d.deleteWaiting(ctx)
}

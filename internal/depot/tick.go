package depot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"firn/internal/depot/blob"
	"firn/internal/depot/index"
)

const (
	// sweepLimit is how many records of each kind one transaction of a sweep removes. Other writers
	// wait for it.
	sweepLimit = 256
	// listEvery is how often all blobs are listed, to find packs that no record names, and all
	// packs looked for, to find missing ones. Only a crash leaves a pack without a record, only
	// damage loses one, and it takes long.
	listEvery = 24 * time.Hour
)

// sweeps is the state of sweeps from one to the next.
type sweeps struct {
	mu      sync.Mutex           // held while sweeping
	waiting map[string]bool      // packs to delete once they have no reader
	listed  time.Time            // when all blobs were listed last; zero: never
	failed  map[string]time.Time // packs that could not be copied, and until when they are left alone
	damaged map[index.NARID]bool // NARs withheld as damaged that the log has counted
}

// Tick removes NARs and packs that nothing refers to any more, and the remains of uploads that were
// cut off. It rewrites packs in which more than half of the bytes are unreferenced. It withholds
// NARs that need a missing pack, and serves them again when the pack is back. It logs what another
// process, such as firn verify, found to be damaged. It does nothing while the packs as a whole are
// not there. Nothing goes that is younger than the grace, or is open.
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
		names, more, err = d.index.Sweep(ctx, before, sweepLimit)
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

// deleteWaiting deletes the packs that have no reader.
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
		// A pack that an upload is about to name in a record is not an orphan, however old it is:
		// the machine may have slept in between, or its clock may have been set. When the pack is
		// no longer pinned, the record is there, if there will ever be one.
		names = slices.DeleteFunc(names, d.packs.isPinned)
		if len(names) == 0 {
			return nil
		}
		known, err := d.index.KnownPacks(ctx, names)
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

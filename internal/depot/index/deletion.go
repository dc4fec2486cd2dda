package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"firn/internal/catalog"
	"firn/nix"
)

// OnReferrers says what becomes of paths that refer to one that is deleted.
type OnReferrers int

const (
	// RefuseReferrers deletes nothing if there are any.
	RefuseReferrers OnReferrers = iota
	// DeleteReferrers deletes them as well, and those that refer to them.
	DeleteReferrers
	// KeepReferrers leaves them, with a reference that is missing.
	KeepReferrers
)

// A Deletion is of paths of a cache.
type Deletion struct {
	Cache     catalog.CacheID
	Paths     []nix.PathHash
	Referrers OnReferrers
	// DryRun changes nothing, and tells what would be done.
	DryRun bool
}

// Deleted is what a deletion did, or would do.
type Deleted struct {
	Paths []nix.StorePath // in the order of their path hashes
	// FileBytes is the size of their NARs, as served, that no path has any more. What others share of them stays.
	FileBytes int64
}

// A ReferredError says that others refer to a path that was to be deleted. It is ErrConflict.
type ReferredError struct {
	Path nix.StorePath
	By   []nix.StorePath // some
}

func (e *ReferredError) Error() string {
	return fmt.Sprintf("%s is referred to by %v", e.Path, e.By)
}

// Unwrap returns ErrConflict.
func (e *ReferredError) Unwrap() error { return catalog.ErrConflict }

const (
	// maxReferrers bounds the referrers that a ReferredError names.
	maxReferrers = 5
	// deleteBatch is how many paths go in one transaction: others wait for it, for some ten
	// milliseconds where there are a million paths.
	deleteBatch = 100
)

// Delete removes paths from a cache, all or none, withheld ones too: with their debug info, with the
// files that say that they were built, and at last with the logs of derivations, they themselves or
// those that built them, that have built no other path of the cache.
// ErrNotFound names one that is not there. RefuseReferrers: a *ReferredError if a path of the cache
// that is not among them refers to one. What was looked at before that, and refers to one of them,
// is not published after it, but refused with ErrChanged: see [Basis].
//
// It costs what it deletes, however many paths there are: those that refer to a path are found by an
// index, outside of transactions. Each transaction that deletes compares that only. Many paths go a
// few at a time, so that no publish waits for long, and what fails in the midst returns what is
// deleted by then as well. None goes before those that refer to it, unless they refer to each other:
// those that are left have all their references.
func (ix Index) Delete(ctx context.Context, d *Deletion) (*Deleted, error) {
	x := &deletion{ix: ix, d: d, leaving: make(map[nix.PathHash][]nix.PathHash), drvs: make(map[nix.StorePath]bool)}
	err := x.run(ctx)
	slices.SortFunc(x.gone.Paths, func(a, b nix.StorePath) int {
		one, other := a.Hash(), b.Hash()
		return bytes.Compare(one[:], other[:])
	})
	if err != nil {
		err = fmt.Errorf("delete paths: %w", err)
		if len(x.gone.Paths) == 0 {
			return nil, err
		}
	}
	return &x.gone, err
}

// A deletion is one that is under way.
type deletion struct {
	ix      Index
	d       *Deletion
	leaving map[nix.PathHash][]nix.PathHash // what is still to go, and what of it each refers to
	gone    Deleted                         // what is durable
	drvs    map[nix.StorePath]bool          // those that may have left logs
}

func (x *deletion) run(ctx context.Context) error {
	for _, hash := range x.d.Paths {
		x.leaving[hash] = nil
	}
	if err := x.checkNamed(ctx); err != nil {
		return err
	}
	if err := x.find(ctx, slices.Collect(maps.Keys(x.leaving))); err != nil {
		return err
	}
	if x.d.DryRun {
		return x.foretell(ctx)
	}
	err := x.removeAll(ctx)
	// Also of what was deleted before that failed, or was cut off: no later deletion names that.
	return errors.Join(err, x.removeLogs(context.WithoutCancel(ctx)))
}

// checkNamed returns ErrNotFound if a path is named that is not there.
func (x *deletion) checkNamed(ctx context.Context) error {
	there := make(map[nix.PathHash]bool)
	for part := range slices.Chunk(slices.Collect(maps.Keys(x.leaving)), MaxAsked) {
		found, err := x.ix.Leaving(ctx, x.d.Cache, part)
		if err != nil {
			return err
		}
		for _, l := range found {
			there[l.Path.Hash()] = true
		}
	}
	for _, hash := range x.d.Paths {
		if !there[hash] {
			return fmt.Errorf("%w: %s", catalog.ErrNotFound, hash)
		}
	}
	return nil
}

// find finds what refers to the given paths, which are leaving.
func (x *deletion) find(ctx context.Context, paths []nix.PathHash) error {
	if x.d.Referrers == KeepReferrers {
		return nil
	}
	for len(paths) > 0 {
		var refused ReferredError
		var found []nix.PathHash
		for part := range slices.Chunk(paths, MaxAsked) {
			for r, err := range x.ix.Referrers(ctx, x.d.Cache, part) {
				if err != nil {
					return err
				}
				from, to := r.From.Hash(), r.To.Hash()
				refs, leaves := x.leaving[from]
				switch {
				case !leaves && x.d.Referrers == RefuseReferrers:
					if refused.add(r) {
						return &refused
					}
					continue
				case !leaves:
					found = append(found, from)
				}
				x.leaving[from] = append(refs, to)
			}
		}
		if refused.By != nil {
			return &refused
		}
		paths = found
	}
	return nil
}

// add adds a referrer, and reports whether these are enough.
func (e *ReferredError) add(r Reference) bool {
	if e.By == nil {
		e.Path = r.To
	}
	if r.To == e.Path {
		e.By = append(e.By, r.From)
	}
	return len(e.By) == maxReferrers
}

// foretell tells what would be deleted.
func (x *deletion) foretell(ctx context.Context) error {
	staying := make(map[NARID]int64) // how many paths have a NAR, of all caches, that do not go
	for part := range slices.Chunk(slices.Collect(maps.Keys(x.leaving)), MaxAsked) {
		found, err := x.ix.Leaving(ctx, x.d.Cache, part)
		if err != nil {
			return err
		}
		for _, l := range found {
			x.gone.Paths = append(x.gone.Paths, l.Path)
			if _, counted := staying[l.NAR]; !counted {
				staying[l.NAR] = l.Paths
			}
			if staying[l.NAR]--; staying[l.NAR] == 0 {
				x.gone.FileBytes += l.FileSize
			}
		}
	}
	return nil
}

// removeAll removes all that is leaving.
func (x *deletion) removeAll(ctx context.Context) error {
	order := x.order()
	for len(order) > 0 {
		began := time.Now()
		part := order[:min(deleteBatch, len(order))]
		var others []Reference // of paths that were published since, or once more
		gone, err := x.ix.DeletePaths(ctx, x.d.Cache, part, func(r Reference) bool {
			_, leaves := x.leaving[r.From.Hash()]
			if !leaves && x.d.Referrers != KeepReferrers {
				others = append(others, r)
				return false
			}
			return true
		})
		if errors.Is(err, catalog.ErrChanged) && len(others) > 0 {
			if err := x.findAgain(ctx, others); err != nil {
				return err
			}
			order = x.order()
			continue
		}
		if err != nil {
			return err
		}
		x.note(gone)
		for _, hash := range part {
			delete(x.leaving, hash) // it may be published once more
		}
		order = order[len(part):]
		if err := giveWay(ctx, time.Since(began)); err != nil {
			return err
		}
	}
	if len(x.gone.Paths) == 0 {
		return fmt.Errorf("%w: others have deleted all of it", catalog.ErrNotFound)
	}
	return nil
}

// findAgain finds what comes to go because of references that no search has seen.
func (x *deletion) findAgain(ctx context.Context, others []Reference) error {
	var refused ReferredError
	var found []nix.PathHash
	for _, r := range others {
		if x.d.Referrers == RefuseReferrers {
			refused.add(r)
			continue
		}
		from := r.From.Hash()
		if _, leaves := x.leaving[from]; !leaves {
			found = append(found, from)
		}
		x.leaving[from] = append(x.leaving[from], r.To.Hash())
	}
	if refused.By != nil {
		return &refused
	}
	return x.find(ctx, found)
}

// giveWay waits as long as the last of many writes took: other processes try for the lock of the
// database again and again, at moments of their own, and would not find it free.
func giveWay(ctx context.Context, took time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(took):
		return nil
	}
}

// note notes what is gone.
func (x *deletion) note(gone []Leaving) {
	counted := make(map[NARID]bool)
	for _, l := range gone {
		x.gone.Paths = append(x.gone.Paths, l.Path)
		if l.Paths == 0 && !counted[l.NAR] {
			counted[l.NAR] = true
			x.gone.FileBytes += l.FileSize
		}
		if !l.Deriver.IsZero() {
			x.drvs[l.Deriver] = true
		}
		if strings.HasSuffix(l.Path.Name(), ".drv") {
			x.drvs[l.Path] = true
		}
	}
}

// removeLogs removes the logs of those derivations that have built nothing that is still there.
func (x *deletion) removeLogs(ctx context.Context) error {
	for part := range slices.Chunk(slices.Collect(maps.Keys(x.drvs)), deleteBatch) {
		began := time.Now()
		if err := x.ix.DeleteLogs(ctx, x.d.Cache, part); err != nil {
			return err
		}
		if len(x.drvs) > deleteBatch {
			_ = giveWay(ctx, time.Since(began)) // ctx does not end
		}
	}
	return nil
}

// order returns all that is leaving, each before what it refers to, unless they refer to each other.
func (x *deletion) order() []nix.PathHash {
	order := make([]nix.PathHash, 0, len(x.leaving))
	passed := make(map[nix.PathHash]bool, len(x.leaving))
	// A chain of references may be as long as there are paths, so this is no recursion.
	type visit struct {
		hash nix.PathHash
		next int // of its references
	}
	var stack []visit
	enter := func(hash nix.PathHash) {
		if _, leaves := x.leaving[hash]; leaves && !passed[hash] {
			passed[hash] = true
			stack = append(stack, visit{hash: hash})
		}
	}
	for hash := range x.leaving {
		enter(hash)
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if refs := x.leaving[top.hash]; top.next < len(refs) {
				top.next++
				enter(refs[top.next-1])
				continue
			}
			order = append(order, top.hash)
			stack = stack[:len(stack)-1]
		}
	}
	slices.Reverse(order)
	return order
}

package catalog

import (
	"context"
	"fmt"
	"slices"

	"firn/nix"
)

// Referrers says what becomes of paths that refer to one that is deleted.
type Referrers int

const (
	// RefuseReferrers deletes nothing if there are any.
	RefuseReferrers Referrers = iota
	// DeleteReferrers deletes them as well, and those that refer to them.
	DeleteReferrers
	// KeepReferrers leaves them, with a reference that is missing.
	KeepReferrers
)

// A Deletion is of paths of a cache.
type Deletion struct {
	Cache     CacheID
	Paths     []nix.PathHash
	Referrers Referrers
	// DryRun changes nothing, and tells what would be done.
	DryRun bool
}

// Deleted is what a deletion did, or would do.
type Deleted struct {
	Paths []nix.StorePath // in the order of their path hashes
	// FileBytes is the size of their NARs, as served, that no path has any more. What others share of them stays.
	FileBytes int64
}

// maxReferrers bounds the referrers that a ReferredError names.
const maxReferrers = 5

// A ReferredError says that others refer to a path that was to be deleted. It is ErrConflict.
type ReferredError struct {
	Path nix.StorePath
	By   []nix.StorePath // some
}

func (e *ReferredError) Error() string {
	return fmt.Sprintf("%s is referred to by %v", e.Path, e.By)
}

// Unwrap returns ErrConflict.
func (e *ReferredError) Unwrap() error { return ErrConflict }

// Deletions removes what is published.
type Deletions interface {
	// DeletePaths removes paths from a cache, all or none, withheld ones too: with their debug info, with the files that say that they were built,
	// and at last with the logs of derivations, they themselves or those that built them, that have built no other path of the cache.
	// ErrNotFound names one that is not there. RefuseReferrers: a *ReferredError if a path of the cache that is not among them refers to one.
	// What was looked at before that, and refers to one of them, is not published after it, but
	// refused with ErrChanged: see [Basis].
	//
	// Nobody who publishes waits for long. So many paths may go a few at a time, and what fails in the midst returns what is deleted by then as well.
	// None goes before those that refer to it, unless they refer to each other: those that are left have all their references.
	DeletePaths(ctx context.Context, d *Deletion) (*Deleted, error)
}

// A Search finds what refers to the paths of a deletion among those that it is shown. Adapters use it, for one goroutine.
type Search struct {
	how      Referrers
	leaving  map[nix.PathHash][]nix.StorePath // what goes, and its references as far as they were shown
	referred ReferredError
}

// NewSearch returns a search that was shown nothing yet.
func NewSearch(d *Deletion) *Search {
	s := &Search{how: d.Referrers, leaving: make(map[nix.PathHash][]nix.StorePath)}
	for _, hash := range d.Paths {
		s.leaving[hash] = nil
	}
	return s
}

// Show shows a path. It returns whether it goes because it refers to one that goes, which was not known before:
// then those that were shown already may refer to it. Best is the order in which they were published.
// The error is a *ReferredError that names as many as it may.
func (s *Search) Show(path nix.StorePath, refs []nix.StorePath) (found bool, err error) {
	if s.how == KeepReferrers {
		return false, nil
	}
	if _, leaves := s.leaving[path.Hash()]; leaves {
		s.leaving[path.Hash()] = refs
		return false, nil
	}
	for _, ref := range refs {
		if _, leaves := s.leaving[ref.Hash()]; !leaves {
			continue
		}
		if s.how == DeleteReferrers {
			s.leaving[path.Hash()] = refs
			return true, nil
		}
		if s.referred.Path.IsZero() {
			s.referred.Path = ref
		}
		if ref == s.referred.Path {
			s.referred.By = append(s.referred.By, path)
		}
	}
	if len(s.referred.By) == maxReferrers {
		return false, s.Err()
	}
	return false, nil
}

// Err returns the *ReferredError if a path that was shown is in the way.
func (s *Search) Err() error {
	if len(s.referred.By) == 0 {
		return nil
	}
	return &s.referred
}

// Forget is called when some of them are gone: who refers to one from then on is not found, but one that was published again may be.
func (s *Search) Forget(gone []nix.PathHash) {
	for _, hash := range gone {
		delete(s.leaving, hash)
	}
}

// Order returns all that goes, each before what it refers to, unless they refer to each other.
func (s *Search) Order() []nix.PathHash {
	order := make([]nix.PathHash, 0, len(s.leaving))
	passed := make(map[nix.PathHash]bool, len(s.leaving))
	// A chain of references may be as long as there are paths, so this is no recursion.
	type visit struct {
		hash nix.PathHash
		next int // of its references
	}
	var stack []visit
	enter := func(hash nix.PathHash) {
		if _, leaves := s.leaving[hash]; leaves && !passed[hash] {
			passed[hash] = true
			stack = append(stack, visit{hash: hash})
		}
	}
	for hash := range s.leaving {
		enter(hash)
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if refs := s.leaving[top.hash]; top.next < len(refs) {
				top.next++
				enter(refs[top.next-1].Hash())
				continue
			}
			order = append(order, top.hash)
			stack = stack[:len(stack)-1]
		}
	}
	slices.Reverse(order)
	return order
}

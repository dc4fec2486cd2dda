package catalog

import (
	"context"
	"fmt"
	"time"

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

// RecentlyDeleted is how long a path counts as recently deleted: longer than anybody takes from looking for the references of a path to publishing it.
const RecentlyDeleted = 2 * time.Minute

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
	// DeletePaths removes paths from a cache, with their debug info, all or none; withheld ones too.
	// ErrNotFound names one that is not there. RefuseReferrers: a *ReferredError if a path of the cache that is not among them refers to one.
	// For as long as RecentlyDeleted, or until that is published again, nothing that refers to one of them is published, but ErrDeleted:
	// it was checked before that all its references are there. Not so if referrers are kept, or the cache allows missing references.
	DeletePaths(ctx context.Context, d *Deletion) (*Deleted, error)
}

// Refer finds which of all paths refer to those of a deletion. Adapters use it.
// all iterates over the paths of the cache, as often as it is called, best in the order in which they were published.
func (d *Deletion) Refer(all func(each func(path nix.StorePath, refs []nix.StorePath) error) error) (more []nix.StorePath, err error) {
	if d.Referrers == KeepReferrers {
		return nil, nil
	}
	chosen := make(map[nix.PathHash]bool, len(d.Paths))
	for _, hash := range d.Paths {
		chosen[hash] = true
	}
	referred := &ReferredError{}
	for again := true; again; { // who was published before what he refers to is found the next time
		again = false
		err := all(func(path nix.StorePath, refs []nix.StorePath) error {
			if chosen[path.Hash()] {
				return nil
			}
			for _, ref := range refs {
				if !chosen[ref.Hash()] || ref == path {
					continue
				}
				if d.Referrers == DeleteReferrers {
					chosen[path.Hash()], again = true, true
					more = append(more, path)
					return nil
				}
				if referred.Path.IsZero() {
					referred.Path = ref
				}
				if ref == referred.Path {
					if referred.By = append(referred.By, path); len(referred.By) == maxReferrers {
						return referred
					}
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(referred.By) > 0 {
		return nil, referred
	}
	return more, nil
}

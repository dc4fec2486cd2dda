// Package transfer moves whole caches: out of this server into a directory that any web server serves,
// and from any other binary cache into this one.
//
//	result, err := transfer.Export(ctx, c, c.Paths(ctx), "/srv/cache", transfer.ExportOptions{})
//	result, err := transfer.Import(ctx, "https://cache.example.org", c, roots, transfer.ImportOptions{})
//
// Both go in an order in which no client ever sees something broken: the NAR before its narinfo,
// and the narinfos of all references before that. So both can be killed at any moment and be started again:
// what is there already is not moved a second time.
package transfer

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"firn/nix"
)

// Progress says how far a transfer is.
type Progress struct {
	Known  int   // paths that are to be moved, as far as is known
	Paths  int   // paths that are done with: moved, there already, or failed
	Moved  int   // paths of Paths that were not there
	Failed int   // paths of Paths that could not be moved
	Files  int   // logs, realisations and build traces that were moved
	Bytes  int64 // of NARs as they were read, in this run

	// The share of the work that is done is DoneBytes of KnownBytes: one path may be larger than all
	// others.
	KnownBytes int64 // of the NARs of Known
	DoneBytes  int64 // of the NARs of Paths, and what was read of others
}

// errFailed is the cause of the error of a transfer that went on past failures.
var errFailed = errors.New("not everything could be moved")

// maxFailures is how many failures the error of a transfer shows.
const maxFailures = 10

// A tally counts what happens, and remembers the first failures.
type tally struct {
	mu       sync.Mutex
	now      Progress
	report   func(Progress) // may be nil
	failures []error
	others   int // failures of files besides those of paths
}

// change changes the counts and reports them.
func (t *tally) change(change func(*Progress)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.now)
	if t.report != nil {
		t.report(t.now)
	}
}

// moving counts the bytes of a NAR, of size bytes, while it is moved: move is told of each part of
// it. end is called once the path is done with, and counts what did not have to be read.
func (t *tally) moving(size int64) (move func(n int64), end func()) {
	var moved atomic.Int64
	move = func(n int64) {
		moved.Add(n)
		t.change(func(p *Progress) { p.DoneBytes += n })
	}
	return move, func() { t.change(func(p *Progress) { p.DoneBytes += size - moved.Load() }) }
}

// failed counts a failure of a path, or of another file.
func (t *tally) failed(path bool, err error) {
	t.change(func(p *Progress) {
		if path {
			p.Paths, p.Failed = p.Paths+1, p.Failed+1
		} else {
			t.others++
		}
		if len(t.failures) < maxFailures {
			t.failures = append(t.failures, err)
		}
	})
}

// result returns the final counts, and an error if anything failed.
func (t *tally) result() (Progress, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	failed := t.now.Failed + t.others
	if failed == 0 {
		return t.now, nil
	}
	err := fmt.Errorf("%w: %d failed", errFailed, failed)
	if failed > len(t.failures) {
		err = fmt.Errorf("%w, the first of which are", err)
	}
	return t.now, errors.Join(append([]error{err}, t.failures...)...)
}

// defaultWorkers is how many paths are worked on at once by default: reading, compressing and syncing wait in turns.
func defaultWorkers() int { return max(4, runtime.GOMAXPROCS(0)) }

// references returns what a path refers to besides itself.
func references(p *nix.PathInfo) []nix.PathHash {
	refs := make([]nix.PathHash, 0, len(p.References))
	for _, r := range p.References {
		if r != p.Path {
			refs = append(refs, r.Hash())
		}
	}
	return refs
}

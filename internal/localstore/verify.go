package localstore

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"firn/nix"
	"firn/nix/nar"
)

const (
	// maxVerified bounds the paths remembered as verified, at some 64 bytes each.
	// One that is forgotten is verified again when it is sent next.
	maxVerified = 1 << 17

	// maxWithheld bounds the paths remembered as withheld. One that is forgotten is verified again when it is sent
	// next, so it is not served either.
	maxWithheld = 1 << 12

	// maxVerifying bounds the paths that wait for being verified in the background.
	// One that finds no place gets another chance with the next range that is asked of it.
	maxVerifying = 256
)

// registration is one registration of a path with the database: a path that is
// registered again, or repaired, gets a new verdict.
type registration struct {
	path nix.PathHash
	nar  [8]byte // first of the NAR hash
	time int64
}

func registrationOf(info *nix.PathInfo) registration {
	r := registration{path: info.Path.Hash(), time: info.RegistrationTime.Unix()}
	copy(r.nar[:], info.NARHash.Sum())
	return r
}

// verdicts are what is known of the bytes of paths. They are safe for concurrent use.
type verdicts struct {
	changes atomic.Uint64 // how often a path was withheld, or is not any more
	any     atomic.Bool   // some path is withheld

	mu        sync.RWMutex
	verified  map[registration]struct{}
	withheld  map[registration]treeID
	malformed map[nix.PathHash]struct{} // logged as such
}

func newVerdicts() *verdicts {
	return &verdicts{
		verified:  map[registration]struct{}{},
		withheld:  map[registration]treeID{},
		malformed: map[nix.PathHash]struct{}{},
	}
}

// treeID tells a tree from the one that replaces it when Nix repairs a path.
type treeID struct {
	inode   uint64
	changed int64 // ctime, ns
}

func treeIDOf(realPath string) treeID {
	info, err := os.Lstat(realPath)
	if err != nil {
		return treeID{}
	}
	stat := info.Sys().(*syscall.Stat_t)
	return treeID{stat.Ino, changeTime(stat)}
}

func (v *verdicts) isVerified(info *nix.PathInfo) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	_, ok := v.verified[registrationOf(info)]
	return ok
}

func (v *verdicts) setVerified(info *nix.PathInfo) {
	v.mu.Lock()
	defer v.mu.Unlock()
	makeRoom(v.verified, maxVerified)
	v.verified[registrationOf(info)] = struct{}{}
}

// withholds reports whether the path is withheld.
func (v *verdicts) withholds(info *nix.PathInfo, realPath string) bool {
	if !v.any.Load() {
		return false
	}
	key := registrationOf(info)
	v.mu.RLock()
	tree, ok := v.withheld[key]
	v.mu.RUnlock()
	if !ok {
		return false
	}
	if tree == treeIDOf(realPath) {
		return true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.withheld, key)
	v.changes.Add(1)
	return false
}

// setWithheld withholds the path, and reports whether it was not before.
func (v *verdicts) setWithheld(info *nix.PathInfo, realPath string) bool {
	key, tree := registrationOf(info), treeIDOf(realPath)
	v.mu.Lock()
	defer v.mu.Unlock()
	if old, ok := v.withheld[key]; ok && old == tree {
		return false
	}
	makeRoom(v.withheld, maxWithheld)
	v.withheld[key] = tree
	delete(v.verified, key)
	v.any.Store(true)
	v.changes.Add(1)
	return true
}

// setMalformed remembers that the row of a path is malformed, and reports whether that is news.
func (v *verdicts) setMalformed(hash nix.PathHash) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.malformed[hash]; ok {
		return false
	}
	makeRoom(v.malformed, maxWithheld)
	v.malformed[hash] = struct{}{}
	return true
}

// makeRoom forgets any one entry of a map that is full.
func makeRoom[K comparable, V any](m map[K]V, limit int) {
	for key := range m {
		if len(m) < limit {
			return
		}
		delete(m, key)
	}
}

// verifier verifies paths in the background, one at a time.
type verifier struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	queue  chan *nix.PathInfo

	mu     sync.Mutex
	queued map[registration]bool // in the queue, or at work
}

// startVerifier starts a verifier that does its work by verify.
func startVerifier(verify func(context.Context, *nix.PathInfo)) *verifier {
	ctx, cancel := context.WithCancel(context.Background())
	v := &verifier{cancel: cancel, queue: make(chan *nix.PathInfo, maxVerifying), queued: map[registration]bool{}}
	v.done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case info := <-v.queue:
				verify(ctx, info)
				v.mu.Lock()
				delete(v.queued, registrationOf(info))
				v.mu.Unlock()
			}
		}
	})
	return v
}

// add has a path verified some time.
func (v *verifier) add(info *nix.PathInfo) {
	v.mu.Lock()
	defer v.mu.Unlock()
	key := registrationOf(info)
	if v.queued[key] {
		return
	}
	select {
	case v.queue <- info:
		v.queued[key] = true
	default:
	}
}

func (v *verifier) stop() {
	v.cancel()
	v.done.Wait()
}

// verifyPath compares the bytes of a path with its NAR hash.
func (s *Store) verifyPath(ctx context.Context, info *nix.PathInfo) {
	if s.verdicts.isVerified(info) {
		return
	}
	n, err := s.openNAR(ctx, info)
	if err != nil {
		return // gone, withheld, or the next request finds out
	}
	defer n.Close()
	sum, err := n.plan.Hash(ctx, n.realPath)
	switch {
	case err != nil:
		n.record(ctx, err)
	case sum == [32]byte(info.NARHash.Sum()):
		n.verified()
	default:
		n.record(ctx, nar.ErrMismatch)
	}
}

//go:build programs

package localstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"firn/internal/cache"
	"firn/nix"
)

// openKeeping opens the store with a directory for roots, as a process with this state directory
// does.
func (n *nixStore) openKeeping(roots string) *Store {
	n.t.Helper()
	opts := n.options()
	opts.Roots = filepath.Join(n.dir, roots)
	return openStore(n.t, opts)
}

func (s *Store) mustKeep(t testing.TB, path nix.StorePath) {
	t.Helper()
	done, err := s.Keep(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	done()
}

func (s *Store) keepOnlyThese(t testing.TB, paths ...nix.StorePath) {
	t.Helper()
	err := s.KeepOnly(t.Context(), func(context.Context) ([]nix.StorePath, error) { return paths, nil })
	if err != nil {
		t.Error(err)
	}
}

// collected collects garbage and returns the names of those of the given paths that are there then.
func (n *nixStore) collected(paths ...nix.StorePath) (there []string) {
	n.t.Helper()
	n.run("nix-store", "--gc")
	for _, p := range paths {
		if n.exists(p) {
			there = append(there, p.Name())
		}
	}
	return there
}

func wantNames(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: there are %v, want %v", what, got, want)
	}
}

// What is kept outlives collections, with what it refers to and after the end of the process, until
// it is not needed any more.
func TestKeep(t *testing.T) {
	n := newNix(t)
	ref := n.add("ref", "referred to")
	kept, other := n.register([]string{"kept"}, "", ref)[0], n.add("other", "not kept")
	s := n.openKeeping("state/gcroots")
	s.mustKeep(t, kept)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantNames(t, "after the end of the process", n.collected(kept, ref, other), "kept", "ref")

	s = n.openKeeping("state/gcroots")
	s.mustKeep(t, kept)
	s.keepOnlyThese(t, kept)
	wantNames(t, "while it is needed", n.collected(kept, ref), "kept", "ref")
	gone := n.add("gone", "not there")
	n.collected()
	if _, err := s.Keep(t.Context(), gone); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Keep of what is not there: %v, want ErrNotFound", err)
	}
	s.keepOnlyThese(t, kept, gone)
	s.keepOnlyThese(t)
	wantNames(t, "when it is not needed any more", n.collected(kept, ref))

	// It is made sure of what is needed, whatever has become of the roots.
	again := n.add("again", "needed")
	s.mustKeep(t, again)
	if err := os.RemoveAll(s.keeper.links.dir); err != nil {
		t.Fatal(err)
	}
	s.keepOnlyThese(t, again)
	wantNames(t, "after the roots were removed", n.collected(again), "again")
}

// Servers of one store do not take each other's roots for their own.
func TestKeepBeside(t *testing.T) {
	n := newNix(t)
	a, b := n.add("a", "a"), n.add("b", "b")
	one, other := n.openKeeping("one/gcroots"), n.openKeeping("other/gcroots")
	one.mustKeep(t, a)
	other.mustKeep(t, b)
	one.keepOnlyThese(t, a)
	other.keepOnlyThese(t, b)
	// A copy of a state directory is another server.
	if err := os.CopyFS(filepath.Join(n.dir, "copy"), os.DirFS(filepath.Join(n.dir, "one"))); err != nil {
		t.Fatal(err)
	}
	n.openKeeping("copy/gcroots").keepOnlyThese(t)
	wantNames(t, "after a collection", n.collected(a, b), "a", "b")
	one.keepOnlyThese(t)
	wantNames(t, "after one has ended", n.collected(a, b), "b")
}

// A path may refer to thousands that are kept until it is published: that takes no file for each.
func TestKeepManyAtOnce(t *testing.T) {
	n := newNix(t)
	path, needed := n.add("kept", "kept"), n.add("needed", "needed")
	s := n.openKeeping("state/gcroots")
	s.mustKeep(t, path)
	open := func() int {
		t.Helper()
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	const keeps = 100
	before := open()
	var all []func()
	for range keeps {
		done, err := s.Keep(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, done)
	}
	if more := open() - before; more > keeps/4 {
		t.Errorf("%d that are kept at once take %d files", keeps, more)
	}
	// As long as the last one is not done, another process removes nothing, and makes sure of what
	// is needed nevertheless.
	other := n.openKeeping("state/gcroots")
	link := filepath.Join(s.keeper.links.dir, path.Base())
	for _, done := range all[1:] {
		done()
	}
	other.keepOnlyThese(t, needed)
	for _, kept := range []string{link, filepath.Join(s.keeper.links.dir, needed.Base())} {
		if _, err := os.Lstat(kept); err != nil {
			t.Error(err)
		}
	}
	all[0]()
	other.keepOnlyThese(t)
	if _, err := os.Lstat(link); err == nil {
		t.Error("the root is there, and not needed")
	}
}

// Where nothing was ever kept, nothing is made.
func TestKeepNothing(t *testing.T) {
	n := newNix(t)
	s := n.openKeeping("state/gcroots")
	s.keepOnlyThese(t)
	for _, dir := range []string{"state", "var/gcroots/firn*"} {
		if found, _ := filepath.Glob(filepath.Join(n.dir, dir)); len(found) > 0 {
			t.Errorf("it has made %v", found)
		}
	}
	s = n.open()
	s.keepOnlyThese(t)
	if _, err := s.Keep(t.Context(), n.add("a", "a")); err == nil || errors.Is(err, cache.ErrNotFound) || errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Keep without a directory for roots: %v, want that it cannot be", err)
	}
}

// A user who may not write to Nix's state has the daemon make the roots. Its own directory is seen
// by the daemon, or it cannot keep anything.
func TestKeepByDaemon(t *testing.T) {
	n := newNix(t)
	roots := filepath.Join(n.dir, "roots")
	if err := errors.Join(os.Mkdir(roots, 0o700), os.Chown(roots, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	kept, other := n.add("kept", "kept"), n.add("other", "not kept")
	stop := n.startDaemon()
	c := n.startChild(t, nobody)
	if got := c.ask("keep " + kept.Hash().String()); got != "kept <nil>" {
		t.Fatal(got)
	}
	c.kill()
	wantNames(t, "after the end of the process", n.collected(kept, other), "kept")
	c = n.startChild(t, nobody)
	if got := c.ask("keep nothing"); got != "kept nothing <nil>" {
		t.Fatal(got)
	}
	wantNames(t, "when it is not needed any more", n.collected(kept))
	c.kill()

	hidden := n.add("hidden", "not kept")
	c = n.startChildAfter(t, nobody, fmt.Sprintf("mount -t tmpfs -o uid=%d,gid=%d tmpfs %s", nobody, nobody, roots))
	if got := c.ask("keep " + hidden.Hash().String()); !strings.Contains(got, "does not find roots") {
		t.Errorf("with a directory that the daemon does not see: %s", got)
	}
	c.kill()

	stop()
	n.openKeeping("other/gcroots") // has the database open, so that the process can read it
	c = n.startChild(t, nobody)
	if got := c.ask("keep " + hidden.Hash().String()); !strings.Contains(got, "ask Nix daemon") {
		t.Errorf("without a daemon: %s", got)
	}
}

// A root that is needed again is not removed by who found just before that it is not.
func TestKeepWhileDropping(t *testing.T) {
	n := newNix(t)
	path := n.add("kept", "kept")
	s := n.openKeeping("state/gcroots")
	s.mustKeep(t, path)
	var needed atomic.Bool
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			err := s.KeepOnly(t.Context(), func(context.Context) ([]nix.StorePath, error) {
				if needed.Load() {
					return []nix.StorePath{path}, nil
				}
				runtime.Gosched() // in which another process may come to need it
				return nil, nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
	link := filepath.Join(s.keeper.links.dir, path.Base())
	for range 300 {
		done, err := s.Keep(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		needed.Store(true)
		done()
		if _, err := os.Lstat(link); err != nil {
			t.Fatalf("what is needed is not kept: %v", err)
		}
		needed.Store(false)
	}
	close(stop)
	wg.Wait()
}

// Whatever a collector is doing, what is kept stays.
func TestKeepWhileCollecting(t *testing.T) {
	n := newNix(t)
	s := n.openKeeping("state/gcroots")
	var kept []nix.StorePath
	for round := range 10 {
		add := []string{"--add"}
		for i := range 8 {
			add = append(add, n.write(fmt.Sprintf("src/p%d-%d", round, i), fmt.Sprint(round, i)))
		}
		var paths []nix.StorePath
		for line := range strings.Lines(n.run("nix-store", add...)) {
			paths = append(paths, n.path(strings.TrimSpace(line)))
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := n.try("nix-store", "--gc")
			// Nix 2.8 may abort at its own end, once it has collected: a thread of it still runs
			// then.
			if err != nil && !strings.Contains(err.Error(), "terminate called without an active exception") {
				t.Error(err)
			}
		})
		for _, p := range paths {
			done, err := s.Keep(t.Context(), p)
			switch {
			case err == nil:
				done()
				kept = append(kept, p)
			case !errors.Is(err, cache.ErrNotFound):
				t.Error(err)
			}
		}
		wg.Wait()
		for _, p := range kept {
			if !n.exists(p) {
				t.Fatalf("round %d: %s was kept, and is gone", round, p)
			}
		}
	}
	if len(kept) == 0 {
		t.Error("nothing was kept")
	}
}

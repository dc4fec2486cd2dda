//go:build programs

package localstore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

// corrupt writes to a file of a store path behind Nix's back.
func corrupt(t *testing.T, file, text string) {
	t.Helper()
	if err := errors.Join(os.Chmod(file, 0o644), os.WriteFile(file, []byte(text), 0o644), os.Chmod(file, 0o444)); err != nil {
		t.Fatal(err)
	}
}

// big is a text that is sent in many writes.
var big = strings.Repeat("0123456789abcdef", 1<<18)

// What is sent for the first time is verified on the way: the last bytes are not sent if any was wrong, and the path is withheld.
func TestCorrupt(t *testing.T) {
	n := newNix(t)
	path := n.addTree("tree", map[string]string{"big": big, "last": "the last bytes"})
	corrupt(t, filepath.Join(path.String(), "big"), strings.Replace(big, "0", "O", 1))

	var log bytes.Buffer
	opts := n.options()
	opts.Logger = textLogger(&log)
	s := openStore(t, opts)
	before := s.Version(t.Context())
	opened := openPath(t, s, path)
	var got bytes.Buffer
	err := opened.WriteRange(t.Context(), &got, 0, opened.Size())
	if !errors.Is(err, nar.ErrMismatch) {
		t.Errorf("WriteRange: %v, want ErrMismatch", err)
	}
	if int64(got.Len()) >= opened.Size() || strings.Contains(got.String(), "the last bytes") {
		t.Errorf("%d of %d bytes were written, the last ones among them", got.Len(), opened.Size())
	}
	if err := opened.WriteRange(t.Context(), &got, 0, 1); !errors.Is(err, nar.ErrMismatch) {
		t.Errorf("a range of what is withheld: %v, want ErrMismatch", err)
	}
	opened.Close()

	if _, err := s.PathInfo(t.Context(), path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("PathInfo: %v, want ErrNotFound", err)
	}
	if before.Hit(s.Version(t.Context())) {
		t.Error("the version is the same though an answer has changed")
	}
	if right, wrong := s.Verified(); right != 0 || wrong != 1 {
		t.Errorf("%d verified and %d mismatches", right, wrong)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), path.String()) {
		t.Errorf("logged is:\n%s", log.String())
	}

	// Nix knows it is corrupt, too, and can be made to have it right again: a new tree.
	if _, err := n.try("nix-store", "--verify-path", path.String()); err == nil {
		t.Error("Nix does not find it corrupt")
	}
	n.run("nix-store", "--delete", path.String())
	n.run("nix-store", "--add", filepath.Join(n.dir, "src/tree"))
	opened = openPath(t, s, path)
	defer opened.Close()
	for range 2 {
		if err := opened.WriteRange(t.Context(), io.Discard, 0, opened.Size()); err != nil {
			t.Error(err)
		}
	}
	if right, wrong := s.Verified(); right != 1 || wrong != 1 {
		t.Errorf("%d verified and %d mismatches", right, wrong)
	}
}

// A tree of another size than the database says is not sent at all.
func TestWrongSize(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	corrupt(t, path.String(), "hello, and more\n")
	s := n.open()
	info, err := s.PathInfo(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenNAR(t.Context(), info); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR: %v, want ErrNotFound", err)
	}
	if _, err := s.PathInfo(t.Context(), path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("PathInfo: %v, want ErrNotFound", err)
	}
	if err := s.WriteListing(t.Context(), info, io.Discard); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Listing: %v, want ErrNotFound", err)
	}
	if _, got := s.Verified(); got != 1 {
		t.Errorf("%d mismatches, want 1", got)
	}
}

// A tree that changes after it was walked is cut off, and found out when it is opened next.
func TestChangesAfterWalk(t *testing.T) {
	n := newNix(t)
	path := n.addTree("tree", map[string]string{"big": big})
	s := n.open()
	opened := openPath(t, s, path)
	defer opened.Close()
	if err := opened.WriteRange(t.Context(), io.Discard, 0, opened.Size()); err != nil {
		t.Fatal(err)
	}
	corrupt(t, filepath.Join(path.String(), "big"), "short")
	if err := opened.WriteRange(t.Context(), io.Discard, 0, opened.Size()); !errors.Is(err, nar.ErrChanged) || !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("WriteRange: %v, want ErrChanged, and ErrNotFound", err)
	}
	if _, err := s.PathInfo(t.Context(), path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("PathInfo: %v, want ErrNotFound", err)
	}
}

// Of several first sends at once none gives its last bytes unverified.
func TestCorruptAtOnce(t *testing.T) {
	n := newNix(t)
	path := n.addTree("tree", map[string]string{"big": big, "last": "the last bytes"})
	corrupt(t, filepath.Join(path.String(), "big"), strings.Replace(big, "f", "F", 1))
	s := n.open()
	var all [8]cache.NAR
	for i := range all { // all before the first finds out
		all[i] = openPath(t, s, path)
	}
	var wg sync.WaitGroup
	for _, opened := range all {
		wg.Go(func() {
			defer opened.Close()
			var got bytes.Buffer
			if err := opened.WriteRange(t.Context(), &got, 0, opened.Size()); !errors.Is(err, nar.ErrMismatch) {
				t.Errorf("WriteRange: %v, want ErrMismatch", err)
			}
			if strings.Contains(got.String(), "the last bytes") {
				t.Error("the last bytes were written")
			}
		})
	}
	wg.Wait()
	if right, wrong := s.Verified(); right != 0 || wrong != 1 {
		t.Errorf("%d verified and %d mismatches", right, wrong)
	}
}

// A range of a path that was never sent is served, and the path is verified in the background.
func TestRangeFirst(t *testing.T) {
	n := newNix(t)
	good := n.addTree("good", map[string]string{"big": big})
	bad := n.addTree("bad", map[string]string{"big": big})
	corrupt(t, filepath.Join(bad.String(), "big"), strings.Replace(big, "f", "F", 1))
	s := n.open()
	for _, path := range []nix.StorePath{good, bad} {
		opened := openPath(t, s, path)
		for range 3 {
			if err := opened.WriteRange(t.Context(), io.Discard, 1, 100); err != nil && path == good {
				t.Error(err)
			}
		}
		opened.Close()
	}
	for verdictsOf(s) != oneEach {
		s.verify.mu.Lock()
		waiting := len(s.verify.queued)
		s.verify.mu.Unlock()
		runtime.Gosched()
		if waiting == 0 && verdictsOf(s) != oneEach {
			t.Fatalf("everything was verified, and the counts are %v", verdictsOf(s))
		}
	}
	if _, err := s.PathInfo(t.Context(), bad.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("PathInfo: %v, want ErrNotFound", err)
	}
	if _, err := s.PathInfo(t.Context(), good.Hash()); err != nil {
		t.Error(err)
	}
}

// Layouts are kept within their bound, the last used ones, and a tree is walked once by all that ask for it at once.
func TestLayouts(t *testing.T) {
	n := newNix(t)
	var paths []nix.StorePath
	for _, name := range []string{"a", "b", "c"} {
		paths = append(paths, n.addTree(name, map[string]string{"1": name, "2": name}))
	}
	s := n.open()
	one := openPath(t, s, paths[0])
	defer one.Close()
	each := one.(*narFile).plan.cost()
	s.layouts = newLayouts(2 * each)

	plans := make([]*plan, 16)
	var wg sync.WaitGroup
	for i := range plans {
		wg.Go(func() {
			opened := openPath(t, s, paths[1])
			defer opened.Close()
			plans[i] = opened.(*narFile).plan
		})
	}
	wg.Wait()
	for _, p := range plans {
		if p != plans[0] {
			t.Fatal("one tree has two layouts")
		}
	}
	a := openPath(t, s, paths[0]) // used after b
	defer a.Close()
	c := openPath(t, s, paths[2])
	defer c.Close()
	for p, want := range map[*plan]bool{a.(*narFile).plan: true, plans[0]: false, c.(*narFile).plan: true} {
		if _, _, ok := s.layouts.known.Get(p.key); ok != want {
			t.Errorf("the layout of %s is kept: %v, want %v", p.key.path.Name(), ok, want)
		}
	}
}

// A path whose files somebody removed behind Nix's back is withheld too, until they are back.
func TestFilesGone(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello")
	s := openStore(t, n.options())
	info, err := s.PathInfo(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(n.dir, "away")
	if err := os.Rename(path.String(), away); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenNAR(t.Context(), info); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR: %v, want ErrNotFound", err)
	}
	if _, err := s.PathInfo(t.Context(), path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("PathInfo: %v, want ErrNotFound", err)
	}
	if _, wrong := s.Verified(); wrong != 1 {
		t.Errorf("%d mismatches, want 1", wrong)
	}
	if err := os.Rename(away, path.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PathInfo(t.Context(), path.Hash()); err != nil {
		t.Errorf("PathInfo when the files are back: %v", err)
	}
}

// oneEach is one path that was right, and one that was wrong.
var oneEach = [2]int64{1, 1}

func verdictsOf(s *Store) [2]int64 {
	right, wrong := s.Verified()
	return [2]int64{right, wrong}
}

// Files that are being deleted are not taken for corrupt ones: their path is not valid any more.
func TestDeletedMeanwhile(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	s := n.open()
	info, err := s.PathInfo(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	n.edit("delete from ValidPaths where path = '" + path.String() + "'")
	corrupt(t, path.String(), "")
	if _, err := s.OpenNAR(t.Context(), info); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR: %v, want ErrNotFound", err)
	}
	if got := verdictsOf(s); got != [2]int64{} {
		t.Errorf("right and wrong: %v, want none", got)
	}
	openPath(t, s, n.add("file", "hello\n")).Close() // it is there again
}

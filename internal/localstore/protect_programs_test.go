//go:build programs

package localstore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/nix"
)

// openPath looks a path up and opens its NAR.
func openPath(t *testing.T, s *Store, path nix.StorePath) cache.NAR {
	t.Helper()
	info, err := s.PathInfo(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	nar, err := s.OpenNAR(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	return nar
}

func (n *nixStore) exists(path nix.StorePath) bool {
	_, err := os.Lstat(path.String())
	return err == nil
}

// A path that is being sent outlives Nix's own garbage collection, together with what it refers to, and nothing else does.
func TestProtected(t *testing.T) {
	n := newNix(t)
	ref := n.add("ref", "referred to")
	sent := n.register([]string{"sent"}, "", ref)[0]
	other := n.add("other", "not sent")

	s := n.open()
	nar := openPath(t, s, sent)
	n.run("nix-store", "--gc")
	if !n.exists(sent) || !n.exists(ref) {
		t.Error("what is being sent was collected")
	}
	if n.exists(other) {
		t.Error("what is not being sent was not collected")
	}
	var got bytes.Buffer
	if err := nar.WriteRange(t.Context(), &got, 0, nar.Size()); err != nil {
		t.Error(err)
	}
	if err := nar.Close(); err != nil {
		t.Error(err)
	}
	n.run("nix-store", "--gc")
	if n.exists(sent) || n.exists(ref) {
		t.Error("what was sent is not collected afterwards")
	}
}

// Sends share a file of roots; the roots are forgotten when the last of them ends, and a send that
// goes on does not keep those that begin later.
func TestEpochs(t *testing.T) {
	n := newNix(t)
	paths := []nix.StorePath{n.add("a", "a"), n.add("b", "b"), n.add("c", "c")}
	s := n.open()
	slow := openPath(t, s, paths[0])
	quick := openPath(t, s, paths[1])
	quick.Close()
	if names := n.tempRoots(); len(names) != 1 {
		t.Errorf("files of roots: %v, want one", names)
	}
	first := s.roots.current
	s.roots.end(first) // the time of the first epoch is over
	later := openPath(t, s, paths[2])
	if names := n.tempRoots(); len(names) != 2 {
		t.Errorf("files of roots: %v, want two", names)
	}
	later.Close()
	n.run("nix-store", "--gc")
	if got, want := []bool{n.exists(paths[0]), n.exists(paths[1]), n.exists(paths[2])}, []bool{true, true, false}; !slices.Equal(got, want) {
		t.Errorf("after a collection there are %v, want %v", got, want)
	}
	slow.Close()
	if names := n.tempRoots(); len(names) != 1 {
		t.Errorf("files of roots: %v, want that of the epoch that goes on", names)
	}
	s.roots.end(s.roots.current)
	if names := n.tempRoots(); len(names) != 0 {
		t.Errorf("files of roots: %v, want none", names)
	}
	n.run("nix-store", "--gc")
	if n.exists(paths[0]) || n.exists(paths[1]) {
		t.Error("what was sent is not collected afterwards")
	}
}

// When the daemon that keeps the roots has gone, the next path is protected by the one that is there then.
func TestDaemonRestarted(t *testing.T) {
	n := newNix(t)
	before, after := n.add("before", "sent before"), n.add("after", "sent after")
	n.startDaemon()
	var log bytes.Buffer
	p := newProtector(filepath.Join(n.stateDir, "none"), newDaemon(n.stateDir+"/daemon-socket/socket", n.storeDir), textLogger(&log))
	release := p.protect(t.Context(), before)
	defer release()
	p.current.roots.close() // as the daemon's end would
	release = p.protect(t.Context(), after)
	defer release()
	n.run("nix-store", "--gc")
	if !n.exists(after) || log.Len() > 0 {
		t.Errorf("after a collection there is what is being sent: %t; log: %s", n.exists(after), log.String())
	}
}

// A path that was collected between look-up and opening is not found.
func TestCollectedBefore(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	s := n.open()
	info, err := s.PathInfo(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	openPath(t, s, path).Close() // its layout is kept
	n.run("nix-store", "--gc")
	if _, err := s.OpenNAR(t.Context(), info); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR: %v, want ErrNotFound", err)
	}
}

// A process that was killed leaves its file of roots to the next, which removes it; Nix's own it leaves alone.
func TestSweep(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	c := n.startChild(t, 0)
	if got := c.ask("open " + path.Hash().String()); got != "opened <nil>" {
		t.Fatal(got)
	}
	left := n.tempRoots()
	if len(left) != 1 {
		t.Fatalf("files of roots: %v, want one", left)
	}
	if number, err := strconv.ParseInt(left[0], 10, 32); err != nil || number <= 1<<22 {
		t.Errorf("the file of roots is named %s, which Nix does not take or a process may have", left[0])
	}
	s := n.open()
	if names := n.tempRoots(); len(names) != 1 {
		t.Errorf("files of roots: %v, want that of the process that lives", names)
	}
	s.Close()
	c.kill()
	n.write("var/temproots/4711", "")
	n.open()
	if names := n.tempRoots(); !slices.Equal(names, []string{"4711"}) {
		t.Errorf("files of roots: %v, want only that of Nix", names)
	}
}

// Without any way to protect a path it is served nevertheless, and that is logged once.
func TestUnprotected(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	var log bytes.Buffer
	opts := n.options()
	opts.Logger = textLogger(&log)
	s := openStore(t, opts)
	if err := os.RemoveAll(filepath.Join(n.stateDir, "temproots")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		nar := openPath(t, s, path)
		if err := nar.WriteRange(t.Context(), io.Discard, 0, nar.Size()); err != nil {
			t.Error(err)
		}
		nar.Close()
	}
	if got := strings.Count(log.String(), "not kept from being collected"); got != 1 {
		t.Errorf("it was logged %d times, want once:\n%s", got, log.String())
	}
}

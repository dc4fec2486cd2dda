// Package cachetest has what tests of sources need: the suite that every [cache.Source] must pass, and a source in memory.
//
//	func TestSource(t *testing.T) {
//		cachetest.Run(t, func(t *testing.T) cachetest.Fixture {
//			store := open(t)
//			return cachetest.Fixture{Source: store, Paths: added(t, store), Remove: store.remove}
//		})
//	}
package cachetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"firn/internal/cache"
	"firn/internal/memo"
	"firn/nix"
)

// Fixture is a source to be tested, and what it has.
type Fixture struct {
	Source cache.Source

	// Paths are some of the source's, at least one.
	Paths []Path

	// Logs are some of the source's build logs, if it is a cache.Logger.
	Logs map[nix.StorePath][]byte

	// Remove, where it is not nil, removes a path behind the source's back, as garbage collection does.
	Remove func(t *testing.T, path nix.StorePath)
}

// Run tests the source of a fixture, which open opens for every test.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, f Fixture)
	}{
		{"PathInfo", testPathInfo},
		{"Absent", testAbsent},
		{"Cancelled", testCancelled},
		{"NAR", testNAR},
		{"Ranges", testRanges},
		{"FailingWriter", testFailingWriter},
		{"Concurrent", testConcurrent},
		{"Changes", testChanges},
		{"Removed", testRemoved},
		{"Batch", testBatch},
		{"Lister", testLister},
		{"Logger", testLogger},
		{"Realiser", testRealiser},
		{"Checker", testChecker},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := open(t)
			if len(f.Paths) == 0 {
				t.Fatal("the fixture has no paths")
			}
			test.run(t, f)
		})
	}
}

// absent is a path that no source has.
const absent = "00000000000000000000000000000000-absent"

func absentInfo(t *testing.T, s cache.Source) *nix.PathInfo {
	path, err := s.StoreDir().ParseBase(absent)
	if err != nil {
		t.Fatal(err)
	}
	return &nix.PathInfo{Path: path, NARHash: nix.SHA256Sum(sha256.Sum256(nil)), NARSize: 112}
}

func testPathInfo(t *testing.T, f Fixture) {
	if f.Source.Name() == "" {
		t.Error("the source has no name")
	}
	for _, p := range f.Paths {
		info, err := f.Source.PathInfo(t.Context(), p.Info.Path.Hash())
		if err != nil {
			t.Errorf("PathInfo of %s: %v", p.Info.Path, err)
			continue
		}
		if diff := cmp.Diff(describe(p.Info), describe(info)); diff != "" {
			t.Errorf("PathInfo of %s (-want +got):\n%s", p.Info.Path, diff)
		}
		if info.Path.Dir() != f.Source.StoreDir() {
			t.Errorf("%s does not lie in %s", info.Path, f.Source.StoreDir())
		}
	}
}

// describe returns what every source must know of a path:
// when it was registered, and whether it was built here, is only the local store's to say.
func describe(p *nix.PathInfo) string {
	return string((&nix.NARInfo{PathInfo: *p, URL: "x", Compression: nix.None}).AppendText(nil))
}

func testAbsent(t *testing.T, f Fixture) {
	info := absentInfo(t, f.Source)
	if got, err := f.Source.PathInfo(t.Context(), info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("PathInfo of what is not there: %v, %v, want ErrNotFound", got, err)
	}
	if _, err := f.Source.OpenNAR(t.Context(), info); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR of what is not there: %v, want ErrNotFound", err)
	}
}

func testCancelled(t *testing.T, f Fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// A source may answer from memory nevertheless, but must not say that it is not there.
	_, err := f.Source.PathInfo(ctx, f.Paths[0].Info.Path.Hash())
	if errors.Is(err, cache.ErrNotFound) {
		t.Errorf("PathInfo with an ended context: %v", err)
	}
	_, err = f.Source.PathInfo(ctx, absentInfo(t, f.Source).Path.Hash())
	if err == nil {
		t.Error("PathInfo of what is not there, with an ended context: no error")
	}

	n := openNAR(t, f, f.Paths[0])
	var got bytes.Buffer
	if err := n.WriteRange(ctx, &got, 0, n.Size()); err == nil && !bytes.Equal(got.Bytes(), f.Paths[0].NAR) {
		t.Error("WriteRange with an ended context: no error, and not the whole NAR")
	}
}

// openNAR opens the NAR of a path of the fixture, and closes it when the test ends.
func openNAR(t *testing.T, f Fixture, p Path) cache.NAR {
	t.Helper()
	info, err := f.Source.PathInfo(t.Context(), p.Info.Path.Hash())
	if err != nil {
		t.Fatalf("PathInfo of %s: %v", p.Info.Path, err)
	}
	n, err := f.Source.OpenNAR(t.Context(), info)
	if err != nil {
		t.Fatalf("OpenNAR of %s: %v", p.Info.Path, err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close NAR of %s: %v", p.Info.Path, err)
		}
	})
	return n
}

func testNAR(t *testing.T, f Fixture) {
	for _, p := range f.Paths {
		n := openNAR(t, f, p)
		if n.Size() != p.Info.NARSize {
			t.Errorf("NAR of %s: Size is %d, and the NAR size %d", p.Info.Path, n.Size(), p.Info.NARSize)
		}
		for range 2 {
			wantRange(t, n, p, 0, n.Size())
		}
	}
}

func testRanges(t *testing.T, f Fixture) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, p := range f.Paths {
		n := openNAR(t, f, p)
		size := n.Size()
		wantRange(t, n, p, 0, 0)
		wantRange(t, n, p, size, 0)
		wantRange(t, n, p, 0, 1)
		wantRange(t, n, p, size-1, 1)
		for range 100 {
			off := random.Int64N(size)
			wantRange(t, n, p, off, random.Int64N(size-off+1))
		}
		for _, outside := range [][2]int64{{-1, 1}, {0, size + 1}, {size, 1}, {1, size}, {0, -1}, {1 << 62, 1 << 62}} {
			if err := n.WriteRange(t.Context(), io.Discard, outside[0], outside[1]); err == nil {
				t.Errorf("NAR of %s: WriteRange(%d, %d) of %d bytes: no error", p.Info.Path, outside[0], outside[1], size)
			}
		}
	}
}

// wantRange checks a range of a NAR, written to a plain writer and to an io.ReaderFrom.
func wantRange(t *testing.T, n cache.NAR, p Path, off, length int64) {
	t.Helper()
	want := p.NAR[off : off+length]
	var buffer bytes.Buffer // an io.ReaderFrom
	if err := n.WriteRange(t.Context(), &buffer, off, length); err != nil || !bytes.Equal(buffer.Bytes(), want) {
		t.Errorf("NAR of %s: %d bytes from %d on are wrong (error: %v)", p.Info.Path, length, off, err)
	}
	buffer.Reset()
	plain := struct{ io.Writer }{&buffer}
	if err := n.WriteRange(t.Context(), plain, off, length); err != nil || !bytes.Equal(buffer.Bytes(), want) {
		t.Errorf("NAR of %s: %d bytes from %d on are wrong to a plain writer (error: %v)", p.Info.Path, length, off, err)
	}
}

// errFull is what a full writer returns.
var errFull = errors.New("writer is full")

// fullAfter is a writer that takes some bytes and no more.
type fullAfter int64

func (w *fullAfter) Write(p []byte) (int, error) {
	if int64(len(p)) > int64(*w) {
		n := int(*w)
		*w = 0
		return n, errFull
	}
	*w -= fullAfter(len(p))
	return len(p), nil
}

func testFailingWriter(t *testing.T, f Fixture) {
	for _, p := range f.Paths {
		n := openNAR(t, f, p)
		for _, room := range []int64{0, 1, n.Size() / 2, n.Size() - 1} {
			w := fullAfter(room)
			if err := n.WriteRange(t.Context(), &w, 0, n.Size()); !errors.Is(err, errFull) {
				t.Errorf("NAR of %s to a writer with room for %d bytes: %v, want the writer's error", p.Info.Path, room, err)
			}
		}
		wantRange(t, n, p, 0, n.Size())
	}
}

func testConcurrent(t *testing.T, f Fixture) {
	var wg sync.WaitGroup
	for range 8 {
		for _, p := range f.Paths {
			wg.Go(func() {
				info, err := f.Source.PathInfo(t.Context(), p.Info.Path.Hash())
				if err != nil {
					t.Errorf("PathInfo of %s: %v", p.Info.Path, err)
					return
				}
				n, err := f.Source.OpenNAR(t.Context(), info)
				if err != nil {
					t.Errorf("OpenNAR of %s: %v", p.Info.Path, err)
					return
				}
				wantRange(t, n, p, 0, n.Size())
				if err := n.Close(); err != nil {
					t.Errorf("close NAR of %s: %v", p.Info.Path, err)
				}
			})
		}
	}
	wg.Wait()
}

func testChanges(t *testing.T, f Fixture) {
	s, ok := f.Source.(memo.Changes)
	if !ok {
		return // the source cannot tell
	}
	before := s.Version(t.Context())
	testPathInfo(t, f)
	testAbsent(t, f)
	after := s.Version(t.Context())
	if before.Freshness != memo.Unknown && after.Freshness != memo.Unknown && !before.Hit(after) {
		t.Errorf("Version went from %v to %v though nothing changed", before, after)
	}
}

// version returns the version of a source, which is Unknown of one that cannot tell.
func version(t testing.TB, s cache.Source) memo.Version {
	if changes, ok := s.(memo.Changes); ok {
		return changes.Version(t.Context())
	}
	return memo.Version{}
}

func testRemoved(t *testing.T, f Fixture) {
	if f.Remove == nil {
		return // nothing can be removed from the source
	}
	p := f.Paths[0]
	info, err := f.Source.PathInfo(t.Context(), p.Info.Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	before := version(t, f.Source)
	f.Remove(t, p.Info.Path)
	if before.Hit(version(t, f.Source)) {
		t.Errorf("Version stayed %v though %s was removed", before, p.Info.Path)
	}
	if _, err := f.Source.OpenNAR(t.Context(), info); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR of a path that was removed after its look-up: %v, want ErrNotFound", err)
	}
	if _, err := f.Source.PathInfo(t.Context(), p.Info.Path.Hash()); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("PathInfo of a path that was removed: %v, want ErrNotFound", err)
	}
}

func testBatch(t *testing.T, f Fixture) {
	s, ok := f.Source.(cache.BatchSource)
	if !ok {
		return // the source is not a BatchSource
	}
	want := map[string][]string{}
	var hashes []nix.PathHash
	for _, p := range f.Paths {
		want[p.Info.Path.Base()] = bases(p.Info.References)
		hashes = append(hashes, p.Info.Path.Hash())
	}
	for i := range 100 { // that are not there
		hashes = append(hashes, nix.PathHash{byte(i), 17})
	}
	got := map[string][]string{}
	for r, err := range s.References(t.Context(), hashes) {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[r.Path.Base()]; twice || r.Withheld {
			t.Errorf("%s comes twice, or is withheld: %t", r.Path, r.Withheld)
		}
		got[r.Path.Base()] = bases(r.References)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("References (-want +got):\n%s", diff)
	}
	for range s.References(t.Context(), hashes) {
		break // it may be left
	}
	for r, err := range s.References(t.Context(), nil) {
		t.Errorf("References of nothing: %v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for r, err := range s.References(ctx, hashes) {
		if err == nil {
			t.Errorf("References after its context has ended: %v", r)
		}
	}
}

func bases(paths []nix.StorePath) (names []string) {
	for _, p := range paths {
		names = append(names, p.Base())
	}
	return names
}

func testLister(t *testing.T, f Fixture) {
	s, ok := f.Source.(cache.Lister)
	if !ok {
		return // the source is not a Lister
	}
	for _, p := range f.Paths {
		info, err := s.PathInfo(t.Context(), p.Info.Path.Hash())
		if err != nil {
			t.Fatal(err)
		}
		want, err := list(p.NAR)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := s.WriteListing(t.Context(), info, &text); err != nil {
			t.Errorf("WriteListing of %s: %v", p.Info.Path, err)
		}
		if diff := cmp.Diff(string(want.AppendJSON(nil)), text.String()); diff != "" {
			t.Errorf("WriteListing of %s (-want +got):\n%s", p.Info.Path, diff)
		}
	}
	var text bytes.Buffer
	if err := s.WriteListing(t.Context(), absentInfo(t, s), &text); !errors.Is(err, cache.ErrNotFound) || text.Len() > 0 {
		t.Errorf("WriteListing of what is not there: %s, %v, want ErrNotFound", &text, err)
	}
}

func testLogger(t *testing.T, f Fixture) {
	s, ok := f.Source.(cache.Logger)
	if !ok {
		return // the source is not a Logger
	}
	for drv, want := range f.Logs {
		log, err := s.OpenLog(t.Context(), drv)
		if err != nil {
			t.Errorf("OpenLog of %s: %v", drv, err)
			continue
		}
		size, known := log.Size()
		got, err := io.ReadAll(log)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("log of %s is %q, %v, want %q", drv, got, err, want)
		}
		if known && size != int64(len(want)) {
			t.Errorf("log of %s has %d bytes, and Size is %d", drv, len(want), size)
		}
		if err := log.Close(); err != nil {
			t.Errorf("close log of %s: %v", drv, err)
		}
	}
	drv, err := s.StoreDir().ParseBase(absent + ".drv")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenLog(t.Context(), drv); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenLog of what is not there: %v, want ErrNotFound", err)
	}
}

func testRealiser(t *testing.T, f Fixture) {
	s, ok := f.Source.(cache.Realiser)
	if !ok {
		return // the source is not a Realiser
	}
	id := nix.RealisationID{DrvHash: nix.SHA256Sum(sha256.Sum256(nil)), Output: "absent"}
	if _, err := s.Realisation(t.Context(), id); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Realisation of what is not there: %v, want ErrNotFound", err)
	}
	drv, err := s.StoreDir().ParseBase(absent + ".drv")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.BuildTrace(t.Context(), drv, "out"); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("BuildTrace of what is not there: %v, want ErrNotFound", err)
	}
}

func testChecker(t *testing.T, f Fixture) {
	s, ok := f.Source.(cache.Checker)
	if !ok {
		return // the source is not a Checker
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
}

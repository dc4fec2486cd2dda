package depot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/catalog/catalogtest"
	"firn/internal/catalog/sqlite/sqlitetest"
	"firn/internal/depot"
	"firn/internal/depot/blob/blobtest"
	blobdir "firn/internal/depot/blob/dir"
	"firn/internal/depot/index"
	"firn/nix"
	"firn/nix/nar"
)

// fixture is a depot with a few paths for the suite of sources.
func fixture(tb testing.TB) cachetest.Fixture {
	t := newTester(tb, depot.Options{})
	f := cachetest.Fixture{Source: t.View, Logs: map[nix.StorePath][]byte{}}
	for i, text := range []string{"hello", "", strings.Repeat("firn\n", 1_000_000), string(noise(3_000_000, 1))} {
		p := cachetest.NewPath(tb, nix.DefaultStoreDir, fmt.Sprint("path-", i), text)
		if _, err := t.Receive(tb.Context(), cache.Upload{NAR: bytes.NewReader(p.NAR)}); err != nil {
			tb.Fatal(err)
		}
		if _, err := t.Publish(tb.Context(), p.Info, cachetest.Unchecked()); err != nil {
			tb.Fatal(err)
		}
		f.Paths = append(f.Paths, p)
	}
	for i, log := range []string{"building\n", "", strings.Repeat("x", 1_000_000)} {
		drv, err := nix.DefaultStoreDir.ParseBase(strings.Repeat("0", 31) + fmt.Sprint(i, "-log.drv"))
		if err != nil {
			tb.Fatal(err)
		}
		if err := t.PutLog(tb.Context(), drv, strings.NewReader(log)); err != nil {
			tb.Fatal(err)
		}
		f.Logs[drv] = []byte(log)
	}
	f.Remove = func(tb *testing.T, path nix.StorePath) {
		if err := deletePath(t, path.Hash()); err != nil {
			tb.Fatal(err)
		}
	}
	return f
}

func TestSource(t *testing.T) {
	cachetest.Run(t, func(t *testing.T) cachetest.Fixture { return fixture(t) })
}

func TestSink(t *testing.T) {
	cachetest.TestSink(t, func(tb testing.TB) cache.Sink { return cache.SinkOf(newTester(tb, depot.Options{}).View) })
}

// shapes are NARs of many shapes.
func shapes(tb testing.TB) map[string][]byte {
	var references []byte
	for i := range 3000 {
		references = append(references, reference(i, 0)...)
		references = append(references, text(i%600, uint64(i))...)
	}
	many := []object{dir("")}
	for i := range 5000 {
		many = append(many, file(fmt.Sprintf("file-%05d", i), text(i%50, uint64(i))))
	}
	deep := []object{dir("")}
	for i := range nar.MaxDepth {
		deep = append(deep, dir(strings.Repeat("d/", i)+"d"))
	}
	same := noise(700_000, 9)
	return map[string][]byte{
		"empty file":      archive(tb, file("", nil)),
		"file":            archive(tb, file("", []byte("hello"))),
		"program":         archive(tb, program("", []byte("#!/bin/sh\n"))),
		"link":            archive(tb, link("", "target")),
		"empty directory": archive(tb, dir("")),
		"not UTF-8":       archive(tb, dir(""), file("\xff\x01", nil)),
		"deep":            archive(tb, deep...),
		"many":            archive(tb, many...),
		"zeros":           archive(tb, file("", make([]byte, 9_000_000))),
		"noise":           archive(tb, file("", noise(9_000_000, 2))),
		"text":            archive(tb, file("", text(9_000_000, 3))),
		"references":      archive(tb, file("", references)),
		"twice":           archive(tb, dir(""), file("a", same), file("b", text(1_000_000, 4)), file("c", same), file("d", same)),
		"room":            archive(tb, file("", noise(64<<10-112, 5))), // all of the first room, and no more
		"room and more":   archive(tb, file("", noise(64<<10-104, 6))),
		"large room":      archive(tb, file("", noise(4<<20-112, 5))),
	}
}

func TestShapes(t *testing.T) {
	readers := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r },
		"eof":   iotest.DataErrReader,
		"half":  iotest.HalfReader,
		"bytes": iotest.OneByteReader,
	}
	for name, archive := range shapes(t) {
		for how, reader := range readers {
			if how == "bytes" && len(archive) > 200<<10 || how == "eof" && len(archive) > 2<<20 || how != "whole" && len(archive) > largestInParts {
				continue
			}
			t.Run(name+" "+how, func(tt *testing.T) {
				t := newTester(tt, depot.Options{})
				info := infoOf(t, archive)
				if _, err := t.Receive(t.Context(), cache.Upload{URL: "nar/x.nar", NAR: reader(bytes.NewReader(archive))}); err != nil {
					t.Fatal(err)
				}
				if _, err := t.Publish(t.Context(), info, cachetest.Unchecked()); err != nil {
					t.Fatal(err)
				}
				t.wantNAR(info, archive)
				t.wantListing(info, archive)
				t.wantClean()
				if names, _ := t.packs(); len(names) != 1 {
					t.Errorf("there are %d packs", len(names))
				}
				t.push(archive)
				if names, _ := t.packs(); len(names) != 1 {
					t.Errorf("after the second upload there are %d packs", len(names))
				}
			})
		}
	}
}

func (t *tester) wantListing(info *nix.PathInfo, archive []byte) {
	t.Helper()
	var want []nar.Header
	for r := nar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, *h)
	}
	var got strings.Builder
	if err := t.WriteListing(t.Context(), info, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string((&nar.Listing{Entries: want}).AppendJSON(nil)), got.String()); diff != "" {
		t.Errorf("listing (-want +got):\n%s", diff)
	}
}

// TestTrees keeps random trees in one depot, so that they share chunks.
func TestTrees(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	rapid.Check(tt, func(rt *rapid.T) {
		objects := []object{dir("")}
		for i := range rapid.IntRange(0, 12).Draw(rt, "files") {
			name := fmt.Sprintf("%02d", i)
			size := rapid.SampledFrom([]int{0, 1, 1023, 1024, 5000, 70_000, 600_000}).Draw(rt, "size")
			contents := text(size, uint64(rapid.IntRange(0, 3).Draw(rt, "seed")))
			for range rapid.IntRange(0, 5).Draw(rt, "references") {
				ref := reference(rapid.IntRange(0, 9).Draw(rt, "reference"), 0)
				if len(contents) > len(ref) {
					copy(contents[rapid.IntRange(0, len(contents)-len(ref)).Draw(rt, "at"):], ref)
				}
			}
			objects = append(objects, file(name, contents))
		}
		nar := archive(t, objects...)
		info := t.push(nar)
		t.wantNAR(info, nar)
	})
	t.wantClean()
}

// TestSecondGeneration keeps a rebuild that changed nothing but hashes.
func TestSecondGeneration(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	keep := func(generation int) (size int64) {
		_, before := t.packs()
		for _, nar := range system(t, systemPackages, generation) {
			t.push(nar)
			t.wantPlain(nar)
		}
		_, after := t.packs()
		return after - before
	}
	first, second := keep(0), keep(1)
	t.Logf("first %d bytes, second %d bytes: %.2f %%", first, second, 100*float64(second)/float64(first))
	if second*100 > first {
		t.Errorf("the second generation took %d bytes, the first %d", second, first)
	}
	t.wantClean()
}

// TestRefused: what is refused leaves nothing behind.
func TestRefused(t *testing.T) {
	good := archive(t, dir(""), file("a", text(3_000_000, 1)), file("b", []byte("b")))
	other := nix.SHA256Sum([32]byte{1})
	broken := errors.New("broken")
	upload := func(nar []byte) cache.Upload { return cache.Upload{URL: "nar/x.nar", NAR: bytes.NewReader(nar)} }
	with := func(u cache.Upload, change func(*cache.Upload)) cache.Upload {
		change(&u)
		return u
	}
	for name, c := range map[string]struct {
		upload cache.Upload
		want   error
	}{
		"empty":      {upload(nil), cache.ErrInvalid},
		"bad magic":  {upload(append([]byte("\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-2"), good[21:]...)), cache.ErrInvalid},
		"truncated":  {upload(good[:len(good)-1]), cache.ErrInvalid},
		"cut early":  {upload(good[:100]), cache.ErrInvalid},
		"trailing":   {upload(append(bytes.Clone(good), 0)), cache.ErrInvalid},
		"two":        {upload(append(bytes.Clone(good), good...)), cache.ErrInvalid},
		"padding":    {upload(bytes.Replace(good, []byte("\x01\x00\x00\x00\x00\x00\x00\x00b\x00"), []byte("\x01\x00\x00\x00\x00\x00\x00\x00b\x01"), 1)), cache.ErrInvalid},
		"dot dot":    {upload(bytes.Replace(good, []byte("\x01\x00\x00\x00\x00\x00\x00\x00a\x00"), []byte("\x02\x00\x00\x00\x00\x00\x00\x00.."), 1)), cache.ErrInvalid},
		"length":     {upload(append(bytes.Clone(good[:16]), "\xff\xff\xff\xff\xff\xff\xff\x7f"...)), cache.ErrInvalid},
		"wrong hash": {with(upload(good), func(u *cache.Upload) { u.NARHash = other }), cache.ErrInvalid},
		"wrong size": {with(upload(good), func(u *cache.Upload) { u.NARSize = int64(len(good)) - 1 }), cache.ErrInvalid},
		"too large":  {upload(archive(t, file("", make([]byte, 10<<20)))), cache.ErrTooLarge},
		"reader": {with(upload(nil), func(u *cache.Upload) {
			u.NAR = io.MultiReader(bytes.NewReader(good[:2_000_000]), iotest.ErrReader(broken))
		}), broken},
		"early reader": {with(upload(nil), func(u *cache.Upload) { u.NAR = iotest.ErrReader(broken) }), broken},
		"late reader":  {with(upload(nil), func(u *cache.Upload) { u.NAR = io.MultiReader(bytes.NewReader(good), iotest.ErrReader(broken)) }), broken},
		"vanished": {with(upload(nil), func(u *cache.Upload) {
			u.NAR = io.MultiReader(bytes.NewReader(good[:1000]), iotest.ErrReader(io.ErrUnexpectedEOF))
		}), io.ErrUnexpectedEOF},
		"file": {with(upload(good), func(u *cache.Upload) { u.File = func() (nix.Hash, int64, error) { return nix.Hash{}, 0, broken } }), broken},
	} {
		t.Run(name, func(tt *testing.T) {
			t := newTester(tt, depot.Options{MaxNARSize: 8 << 20})
			_, err := t.Receive(t.Context(), c.upload)
			wantError(t, "Receive", err, c.want)
			if name == "vanished" && errors.Is(err, cache.ErrInvalid) {
				t.Errorf("a client that vanished is taken for one that sent something invalid: %v", err)
			}
			if refusal, ok := errors.AsType[*cache.Refusal](err); errors.Is(c.want, cache.ErrInvalid) && (!ok || refusal.Text() == "") {
				t.Errorf("%v has no text for the client", err)
			}
			_, err = t.Received(t.Context(), "nar/x.nar")
			wantError(t, "Received", err, cache.ErrNotFound)
			if counts, err := t.catalog.Count(t.Context()); err != nil || counts.NARs+counts.Chunks+counts.Packs > 0 {
				t.Errorf("the catalog has %+v, %v", counts, err)
			}
			if names, _ := t.packs(); len(names) > 0 {
				t.Errorf("there are packs %v", names)
			}
		})
	}
}

// TestCachesShareNothing: a NAR that one cache was sent is not to be had through another.
func TestCachesShareNothing(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	_, other := t.cache("other")
	nar := archive(t, file("", text(500_000, 1)))
	info := infoOf(t, nar)
	got, err := t.Receive(t.Context(), cache.Upload{URL: "nar/x.nar", NAR: bytes.NewReader(nar)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.Publish(t.Context(), info, cachetest.Unchecked())
	wantError(t, "Publish in another cache", err, cache.ErrNotFound)
	_, err = other.Received(t.Context(), "nar/x.nar")
	wantError(t, "Received in another cache", err, cache.ErrNotFound)
	_, err = other.OpenReceived(t.Context(), got)
	wantError(t, "OpenReceived in another cache", err, cache.ErrNotFound)
	_, _, err = other.OpenReceivedCompressed(t.Context(), got)
	wantError(t, "OpenReceivedCompressed in another cache", err, cache.ErrNotFound)
	if _, err := t.Publish(t.Context(), info, cachetest.Unchecked()); err != nil {
		t.Fatal(err)
	}
	_, err = other.Publish(t.Context(), info, cachetest.Unchecked())
	wantError(t, "Publish in another cache", err, cache.ErrNotFound)
	for what, open := range map[string]func(context.Context, *nix.PathInfo) (cache.NAR, error){"OpenNAR": other.OpenNAR, "OpenCompressed": framesOf(other)} {
		_, err = open(t.Context(), info)
		wantError(t, what, err, cache.ErrNotFound)
	}
	wantThere(t, other, false)
	wantThere(t, t.View, true)
	// Once it has been sent there too, it is.
	if _, err := other.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(nar)}); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Publish(t.Context(), info, cachetest.Unchecked()); err != nil {
		t.Fatal(err)
	}
	if names, _ := t.packs(); len(names) != 1 {
		t.Errorf("there are %d packs", len(names))
	}
	wantThere(t, other, true)
}

// TestConcurrent pushes systems from several clients at once, and reads meanwhile.
func TestConcurrent(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	nars := append(system(t, 12, 0), system(t, 12, 1)...)
	nars = append(nars, archive(t, file("", noise(12<<20, 1))), archive(t, file("", noise(12<<20, 2))))
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for j := range nars {
				nar := nars[(j*(1+2*i)+i)%len(nars)]
				if i%2 == 0 {
					nar = nars[j]
				}
				if _, err := t.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(nar)}); err != nil {
					t.Error(err)
					return
				}
				info := infoOf(t, nar)
				if _, err := t.Publish(t.Context(), info, cachetest.Unchecked()); err != nil {
					t.Error(err)
					return
				}
				n, err := t.OpenNAR(t.Context(), info)
				if err != nil {
					t.Error(err)
					return
				}
				var got bytes.Buffer
				if err := n.WriteRange(t.Context(), &got, 0, n.Size()); err != nil || !bytes.Equal(got.Bytes(), nar) {
					t.Errorf("read %d bytes, %v", got.Len(), err)
				}
				n.Close()
				if err := t.depot.Tick(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	t.wantClean()
	if right, wrong := t.Verified(); wrong != 0 || right == 0 {
		t.Errorf("verified %d right, %d wrong", right, wrong)
	}
}

// TestManyLarge has more large uploads at once than there are rooms, all half-way.
func TestManyLarge(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	nar := archive(t, file("", noise(5<<20, 1)))
	var half sync.WaitGroup
	var clients sync.WaitGroup
	half.Add(40)
	for range 40 {
		clients.Go(func() {
			meet := readerFunc(func([]byte) (int, error) {
				half.Done()
				half.Wait()
				return 0, io.EOF
			})
			r := io.MultiReader(bytes.NewReader(nar[:3<<20]), meet, bytes.NewReader(nar[3<<20:]))
			if _, err := t.Receive(t.Context(), cache.Upload{NAR: r}); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	t.wantClean()
	if names, _ := t.packs(); len(names) != 1 {
		t.Errorf("there are %d packs", len(names))
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestSweep: what nothing leads to goes once the grace has passed, and not while it is open.
func TestSweep(tt *testing.T) {
	now := time.Now()
	t := newTester(tt, depot.Options{Now: func() time.Time { return now }})
	kept := archive(t, file("", text(300_000, 1)))
	keptInfo := t.push(kept)
	gone := archive(t, file("", text(300_000, 2)))
	goneInfo := t.push(gone)
	if _, err := t.Receive(t.Context(), cache.Upload{URL: "nar/never.nar", NAR: bytes.NewReader(archive(t, file("", text(300_000, 3))))}); err != nil {
		t.Fatal(err)
	}
	orphan, err := t.blobs.Create(t.Context(), "orphan.pack")
	if err != nil {
		t.Fatal(err)
	}
	if err := orphan.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	tick := func(want int) {
		t.Helper()
		if err := t.depot.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		if names, _ := t.packs(); len(names) != want {
			t.Errorf("there are packs %v, want %d", names, want)
		}
	}
	tick(4)
	open, err := t.OpenNAR(t.Context(), goneInfo)
	if err != nil {
		t.Fatal(err)
	}
	if err := deletePath(t, goneInfo.Path.Hash()); err != nil {
		t.Fatal(err)
	}
	now = now.Add(23 * time.Hour)
	tick(4)
	now = now.Add(26 * time.Hour)
	tick(2) // kept, and gone that is open
	t.wantRanges(open, gone)
	tick(1)
	t.wantNAR(keptInfo, kept)
	_, err = t.Received(t.Context(), "nar/never.nar")
	wantError(t, "Received", err, cache.ErrNotFound)
	t.wantClean()
	t.wantNAR(t.push(gone), gone)
}

// What was deleted can come again without its NAR for a day, and its bytes go after another one.
func TestDeletedPath(tt *testing.T) {
	clock := catalogtest.NewClock()
	t := newTesterOn(tt, sqlitetest.Open(tt, clock.Now), blobtest.NewMemory(), depot.Options{Now: clock.Now})
	info := t.push(archive(t, file("", text(300_000, 1))))
	url := "nar/" + info.NARHash.Nix32() + ".nar"
	pass := func(hours int) {
		t.Helper()
		for range hours {
			clock.Advance(time.Hour)
			if err := t.depot.Tick(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	pass(100)
	if _, err := index.Of(t.catalog).Delete(t.Context(), &index.Deletion{Cache: t.record.ID, Paths: []nix.PathHash{info.Path.Hash()}}); err != nil {
		t.Fatal(err)
	}
	pass(24)
	if _, err := t.Received(t.Context(), url); err != nil {
		t.Errorf("after a day: %v", err)
	}
	pass(23)
	if names, _ := t.packs(); len(names) != 1 {
		t.Errorf("before two days there are packs %v", names)
	}
	pass(3)
	if names, _ := t.packs(); len(names) != 0 {
		t.Errorf("after two days there are packs %v", names)
	}
	t.wantClean()
}

// What says that a deleted path was built is gone with it, and another build can say so in its place.
func TestDeletedRealisation(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	info, later := t.push(archive(t, file("", []byte("one")))), t.push(archive(t, file("", []byte("two"))))
	drv, err := nix.DefaultStoreDir.ParseBase("1b9p07z77phvv2hf6gm9f28syp39f1ag-one.drv")
	if err != nil {
		t.Fatal(err)
	}
	id := nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{1}), Output: "out"}
	put := func(out nix.StorePath, b cache.Basis) error {
		return errors.Join(t.PutRealisation(t.Context(), &nix.Realisation{ID: id, OutPath: out}, b),
			t.PutBuildTrace(t.Context(), &nix.BuildTrace{Drv: drv, Output: "out", OutPath: out}, b))
	}
	before, err := t.Basis(t.Context(), info.Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if err := put(info.Path, before); err != nil {
		t.Fatal(err)
	}
	if _, err := index.Of(t.catalog).Delete(t.Context(), &index.Deletion{Cache: t.record.ID, Paths: []nix.PathHash{info.Path.Hash()}}); err != nil {
		t.Fatal(err)
	}
	_, err = t.Realisation(t.Context(), id)
	wantError(t, "Realisation", err, cache.ErrNotFound)
	_, err = t.BuildTrace(t.Context(), drv, "out")
	wantError(t, "BuildTrace", err, cache.ErrNotFound)
	wantError(t, "keeping that of what was deleted just now", put(info.Path, before), cache.ErrChanged)
	if err := put(later.Path, before); err != nil {
		t.Fatal(err)
	}
	if got, err := t.Realisation(t.Context(), id); err != nil || got.OutPath != later.Path {
		t.Errorf("Realisation: %+v, %v", got, err)
	}
}

// An upload that comes once more has all of the grace for its narinfo.
func TestRenew(tt *testing.T) {
	clock := catalogtest.NewClock()
	t := newTesterOn(tt, sqlitetest.Open(tt, clock.Now), blobtest.NewMemory(), depot.Options{Now: clock.Now})
	wantError(t, "Renew of what is not there", t.Renew(t.Context(), "nar/x.nar"), cache.ErrNotFound)
	got, err := t.Receive(t.Context(), cache.Upload{URL: "nar/x.nar", NAR: bytes.NewReader(archive(t, file("", text(300_000, 1))))})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		clock.Advance(23 * time.Hour)
		if err := t.Renew(t.Context(), "nar/x.nar"); err != nil {
			t.Error(err)
		}
		clock.Advance(2 * time.Hour)
		if err := t.depot.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		again, err := t.Received(t.Context(), "nar/x.nar")
		if err != nil || again != got {
			t.Fatalf("got %v, %v", again, err)
		}
	}
}

func TestDebugInfo(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	id := "0123456789abcdef0123456789abcdef01234567"
	base := "lib/debug/.build-id"
	nar := archive(t, dir(""), dir("lib"), dir("lib/debug"), dir(base),
		dir(base+"/01"), file(base+"/01/"+id[2:]+".debug", []byte("debug")),
		dir(base+"/02"), link(base+"/02/"+id[2:]+".debug", "x"), file(base+"/02/short.debug", nil),
		dir(base+"/AB"), file(base+"/AB/"+id[2:]+".debug", nil))
	info := t.push(nar)
	path, member, err := t.DebugInfo(t.Context(), id)
	if err != nil || path != info.Path.Hash() || member != base+"/01/"+id[2:]+".debug" {
		t.Errorf("got %v, %q, %v", path, member, err)
	}
	for _, absent := range []string{"02" + id[2:], "AB" + id[2:], "ab" + id[2:], "", "x"} {
		_, _, err := t.DebugInfo(t.Context(), absent)
		wantError(t, "DebugInfo of "+absent, err, cache.ErrNotFound)
	}
}

// A NAR of a great many files with debug information is published, and found by the first of them.
func TestMuchDebugInfo(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	const most = 16 << 10
	base := "lib/debug/.build-id"
	objects := []object{dir(""), dir("lib"), dir("lib/debug"), dir(base), dir(base + "/01")}
	for i := range most + 1 {
		objects = append(objects, file(fmt.Sprintf("%s/01/%038x.debug", base, i), nil))
	}
	nar := archive(t, objects...)
	t.wantNAR(t.push(nar), nar)
	for i, want := range map[int]error{0: nil, most - 1: nil, most: cache.ErrNotFound} {
		if _, _, err := t.DebugInfo(t.Context(), fmt.Sprintf("01%038x", i)); !errors.Is(err, want) {
			t.Errorf("DebugInfo of file %d: %v, want %v", i, err, want)
		}
	}
}

// TestOnDisk keeps what it was sent on a disk, and finds it there when it is opened again.
func TestOnDisk(tt *testing.T) {
	path := tt.TempDir()
	open := func() *tester {
		blobs, err := blobdir.Open(filepath.Join(path, "packs"), blobdir.Options{Make: true})
		if err != nil {
			tt.Fatal(err)
		}
		return newTesterOn(tt, openCatalog(tt, filepath.Join(path, "catalog.db")), blobs, depot.Options{})
	}
	t := open()
	nars := append(system(t, 6, 0), system(t, 6, 1)...)
	for _, nar := range nars {
		t.push(nar)
	}
	t.close()
	t = open()
	for _, nar := range nars {
		info, err := t.PathInfo(t.Context(), infoOf(t, nar).Path.Hash())
		if err != nil {
			t.Fatal(err)
		}
		t.wantNAR(info, nar)
	}
	t.wantClean()
}

// wantThere checks whether a view says that something was published in it.
func wantThere(t *tester, v *depot.View, want bool) {
	t.Helper()
	if there, err := v.IsThere(t.Context()); there != want || err != nil {
		t.Errorf("IsThere: %t, %v, want %t", there, err, want)
	}
}

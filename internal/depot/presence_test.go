package depot_test

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/depot"
	"firn/internal/depot/blob"
	"firn/internal/depot/blob/blobtest"
)

// ledger counts what is written to a store of blobs.
type ledger struct {
	blob.Store
	mu             sync.Mutex
	bytes, commits int
}

func (l *ledger) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := l.Store.Create(ctx, name)
	return ledgerWriter{w, l}, err
}

type ledgerWriter struct {
	blob.Writer
	l *ledger
}

func (w ledgerWriter) Write(p []byte) (int, error) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.l.bytes += len(p)
	return w.Writer.Write(p)
}

func (w ledgerWriter) Commit(ctx context.Context) error {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.l.commits++
	return w.Writer.Commit(ctx)
}

// effort returns how many bytes something writes, and how many packs it commits.
func (l *ledger) effort(f func()) (bytes, commits int) {
	bytes, commits = l.bytes, l.commits
	f()
	return l.bytes - bytes, l.commits - commits
}

// TestPresence: an upload of what only other caches have costs what it would cost if nobody had it, or its time would tell.
func TestPresence(tt *testing.T) {
	shared := text(3_000_000, 1)
	nars := map[string][]byte{
		"the same":      archive(tt, file("", shared)),
		"small":         archive(tt, file("", text(5000, 2))),
		"partly":        archive(tt, dir(""), file("a", shared), file("b", text(400_000, 3))),
		"all, and less": archive(tt, dir(""), file("a", shared)),
	}
	held := [][]byte{nars["the same"], nars["small"]}
	for name, nar := range nars {
		tt.Run(name, func(tt *testing.T) {
			l := &ledger{Store: blobtest.NewMemory()}
			t := newTesterOn(tt, newCatalog(tt), l, depot.Options{})
			_, other := t.cache("other")
			_, third := t.cache("third")
			send := func(to *depot.View, url string) func() {
				return func() {
					if _, err := to.Receive(t.Context(), cache.Upload{URL: url, NAR: bytes.NewReader(nar)}); err != nil {
						t.Fatal(err)
					}
				}
			}
			empty := newTesterOn(tt, newCatalog(tt), &ledger{Store: blobtest.NewMemory()}, depot.Options{})
			fresh := empty.blobs.(*ledger)
			wantBytes, wantCommits := fresh.effort(func() { empty.push(nar) })
			for _, h := range held {
				t.push(h)
			}
			kept, _ := t.packs()
			gotBytes, gotCommits := l.effort(send(other, "nar/x.nar.xz"))
			if gotBytes != wantBytes || gotCommits != wantCommits {
				t.Errorf("what another cache has: %d bytes in %d packs, want %d in %d", gotBytes, gotCommits, wantBytes, wantCommits)
			}
			if now, size := t.packs(); len(now) > len(kept)+1 || size > int64(gotBytes+2_000_000) {
				t.Errorf("%d packs of %d bytes are left", len(now), size)
			}
			if _, err := other.Publish(t.Context(), infoOf(t, nar), cachetest.Unchecked()); err != nil {
				t.Fatal(err)
			}
			// The cache itself leads to it now, and the next upload need not pretend.
			// What stands around the contents of files is too short to be shared.
			const structure = 300
			if n, _ := l.effort(send(other, "nar/y.nar.xz")); n > structure {
				t.Errorf("the same again: %d bytes, want %d at most", n, structure)
			}
			// Another cache is told nothing by that.
			gotBytes, gotCommits = l.effort(send(third, "nar/x.nar.xz"))
			if gotBytes != wantBytes || gotCommits != wantCommits {
				t.Errorf("what two other caches have: %d bytes in %d packs, want %d in %d", gotBytes, gotCommits, wantBytes, wantCommits)
			}
			t.wantClean()
		})
	}
}

// TestPresenceWithin: a rebuild within one cache writes only what is new, also where another cache had the bytes first.
func TestPresenceWithin(tt *testing.T) {
	l := &ledger{Store: blobtest.NewMemory()}
	t := newTesterOn(tt, newCatalog(tt), l, depot.Options{})
	_, other := t.cache("other")
	for _, nar := range system(t, 8, 0) {
		t.push(nar)
	}
	send := func(generation int) func() {
		return func() {
			for _, nar := range system(t, 8, generation) {
				if _, err := other.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(nar)}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	first, _ := l.effort(send(1))
	second, _ := l.effort(send(2))
	if second*20 > first {
		t.Errorf("the second generation of a cache writes %d bytes, the first %d", second, first)
	}
}

// TestPresenceByVerification: that another cache's NAR was compared with its hash before saves nothing, and is not to be seen in the number of those that were.
func TestPresenceByVerification(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	_, other := t.cache("other")
	nar := archive(tt, file("", text(100_000, 1)))
	read := func(part *depot.View) int64 {
		t.Helper()
		got, err := part.Receive(t.Context(), cache.Upload{URL: "nar/a.nar", NAR: bytes.NewReader(nar)})
		if err != nil {
			t.Fatal(err)
		}
		before, _ := part.Verified()
		for range 2 {
			n, err := part.OpenReceived(t.Context(), got)
			if err != nil {
				t.Fatal(err)
			}
			var sent bytes.Buffer
			if err := n.WriteRange(t.Context(), &sent, 0, n.Size()); err != nil || !bytes.Equal(sent.Bytes(), nar) {
				t.Fatalf("got %d bytes, %v", sent.Len(), err)
			}
			n.Close()
		}
		after, _ := part.Verified()
		return after - before
	}
	if first, second := read(t.View), read(other); first != 1 || second != 1 {
		t.Errorf("verified %d times for the first cache, %d for the second, want once for each", first, second)
	}
}

package server

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/depot"
	"firn/internal/depot/blob/blobtest"
	"firn/internal/depot/index"
	"firn/nix"
)

// levels are two depots on one state, as of two processes, which compress at other levels.
type levels struct {
	*testing.T
	catalog *sqlite.Catalog
	record  *catalog.Cache
	now     atomic.Int64 // in seconds
	depots  [2]*depot.Depot
	caches  [2]*cache.Cache
	path    cachetest.Path
}

func newLevels(t *testing.T) *levels {
	l := &levels{T: t}
	var err error
	if l.catalog, err = sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"), sqlite.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.catalog.Close() })
	l.record = &catalog.Cache{Name: "main", StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot}, Created: time.Unix(1_800_000_000, 0)}
	if err := l.catalog.AddCache(t.Context(), l.record); err != nil {
		t.Fatal(err)
	}
	l.now.Store(time.Now().Unix())
	blobs := blobtest.NewMemory()
	for i, level := range []int{1, 9} {
		l.depots[i] = depot.New(l.catalog, index.Of(l.catalog), blobs, depot.Options{Level: level, Now: func() time.Time { return time.Unix(l.now.Load(), 0) }})
		t.Cleanup(func() { l.depots[i].Close() })
		view := l.depots[i].For(l.record)
		if l.caches[i], err = cache.New([]cache.Source{view}, cache.Options{Sink: cache.SinkOf(view)}); err != nil {
			t.Fatal(err)
		}
	}
	// Words in any order compress well, and better at a higher level.
	random := rand.New(rand.NewPCG(1, 2))
	var text strings.Builder
	for text.Len() < 1<<20 {
		fmt.Fprintf(&text, "%d ", random.IntN(1000))
	}
	l.path = cachetest.NewPath(t, nix.DefaultStoreDir, "words", text.String())
	return l
}

// push pushes the path at one of the levels.
func (l *levels) push(i int) {
	l.Helper()
	r, err := l.caches[i].Receive(l.Context(), cache.Upload{URL: cachetest.URL(l.path.NAR, ""), NAR: bytes.NewReader(l.path.NAR)})
	if err != nil {
		l.Fatal(err)
	}
	if _, err := l.caches[i].Publish(l.Context(), l.path.Info, r); err != nil {
		l.Fatal(err)
	}
}

// remove deletes the path, and sweeps the state until nothing of it is left.
func (l *levels) remove() {
	l.Helper()
	if _, err := index.Of(l.catalog).Delete(l.Context(), &index.Deletion{Cache: l.record.ID, Paths: []nix.PathHash{l.path.Info.Path.Hash()}}); err != nil {
		l.Fatal(err)
	}
	for range 4 {
		l.now.Add(48 * 3600)
		for _, d := range l.depots {
			if err := d.Tick(l.Context()); err != nil {
				l.Fatal(err)
			}
		}
	}
}

// seen are the bytes that came under a name.
type seen struct {
	mu    sync.Mutex
	names map[string]*seenBytes
}

// seenBytes are bytes, and which of them came.
type seenBytes struct {
	data []byte
	came []bool
}

// add compares bytes with those that came before.
func (s *seen) add(t *testing.T, name string, off int, part []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.names[name]
	if of == nil {
		of = &seenBytes{}
		s.names[name] = of
	}
	if more := off + len(part) - len(of.data); more > 0 {
		of.data, of.came = append(of.data, make([]byte, more)...), append(of.came, make([]bool, more)...)
	}
	for i, b := range part {
		if at := off + i; of.came[at] && of.data[at] != b {
			t.Errorf("byte %d of %s is %d, and was %d", at, name, b, of.data[at])
			return
		}
		of.data[off+i], of.came[off+i] = b, true
	}
}

// While a path is deleted, swept and pushed at another level, again and again, the bytes under one URL
// and under one entity tag stay the same for clients that read ranges.
func TestTagsOfFrames(t *testing.T) {
	l := newLevels(t)
	l.push(0)
	tt := &tester{T: t, server: newServer(cache.Only(l.caches[0]), Options{})}
	tt.listen("127.0.0.1:0")

	urls, tags := &seen{names: map[string]*seenBytes{}}, &seen{names: map[string]*seenBytes{}}
	var partial, whole, stale atomic.Int64
	read := func(url string, random *rand.Rand) {
		const most = 16 << 10
		off := random.IntN(4 * most)
		resp, part := tt.do("GET", url, fmt.Sprintf("Range: bytes=%d-%d", off, off+random.IntN(most)))
		immutable := strings.Contains(resp.Header.Get("Cache-Control"), "immutable")
		tag := resp.Header.Get("ETag")
		switch resp.StatusCode {
		case http.StatusPartialContent:
			if !immutable {
				t.Errorf("a range under a URL of other bytes")
			}
			partial.Add(1)
			urls.add(t, url, off, part)
			tags.add(t, tag, off, part)
		case http.StatusOK:
			if immutable || resp.Header.Get("Cache-Control") != "public, max-age=300" || resp.Header.Get("Accept-Ranges") != "none" {
				t.Errorf("the bytes of another URL have %v", resp.Header)
			}
			whole.Add(1)
			tags.add(t, tag, 0, part)
			// A client that has the first bytes of these by their tag gets the others.
			again, rest := tt.do("GET", url, "Range: bytes=1000-1999", "If-Range: "+tag)
			if again.StatusCode == http.StatusPartialContent {
				stale.Add(1)
				tags.add(t, tag, 1000, rest)
				if got := again.Header.Get("ETag"); got != tag {
					t.Errorf("a range of %s has the tag %s", tag, got)
				}
			}
		case http.StatusNotFound, http.StatusRequestedRangeNotSatisfiable:
		default:
			t.Errorf("GET %s: %s", url, resp.Status)
		}
	}

	var all sync.WaitGroup
	done := make(chan struct{})
	for i := range 3 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(3, uint64(i)))
			var known []string // URLs, also of earlier narinfos, as clients remember them
			for {
				select {
				case <-done:
					return
				default:
				}
				if resp, text := tt.do("GET", "/"+l.path.Info.Path.Hash().String()+".narinfo"); resp.StatusCode == http.StatusOK {
					info, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
					if err != nil {
						t.Error(err)
						return
					}
					known = append(known, "/"+info.URL)
				}
				for range 5 {
					if len(known) > 0 {
						read(known[max(0, len(known)-1-random.IntN(len(known)))], random)
					}
				}
			}
		})
	}
	for round := range 5 {
		for before := partial.Load() + whole.Load(); partial.Load()+whole.Load() < before+20; time.Sleep(time.Millisecond) {
			if t.Failed() {
				break
			}
		}
		l.remove()
		l.push((round + 1) % 2)
	}
	close(done)
	all.Wait()
	if partial.Load() == 0 || whole.Load() == 0 || stale.Load() == 0 || len(urls.names) < 3 {
		t.Errorf("%d ranges under %d URLs, %d NARs and %d ranges under older URLs", partial.Load(), len(urls.names), whole.Load(), stale.Load())
	}

	// Forms without a tag, and with another one, are answered with the bytes that there are.
	resp, text := tt.do("GET", "/"+l.path.Info.Path.Hash().String()+".narinfo")
	info, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
	if err != nil {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	want, file := tt.do("GET", "/"+info.URL)
	if got := want.Header.Get("Cache-Control"); got != "public, max-age=31536000, immutable" {
		t.Errorf("%s: %s", info.URL, got)
	}
	plain := fmt.Sprintf("/nar/%s-%s", info.Path.Hash(), info.NARHash.Nix32())
	for _, url := range []string{plain + ".nar.zst", plain + "-0123456789abcdef.nar.zst", "/nar/" + info.NARHash.Nix32() + ".nar.zst?hash=" + info.Path.Hash().String()} {
		for _, method := range []string{"GET", "HEAD"} {
			resp, body := tt.do(method, url)
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != "public, max-age=300" || resp.Header.Get("ETag") != want.Header.Get("ETag") ||
				method == "GET" && !bytes.Equal(body, file) {
				t.Errorf("%s %s: %s, %v, %d bytes", method, url, resp.Status, resp.Header, len(body))
			}
		}
	}
	for _, url := range []string{plain + "-.nar.zst", plain + "-0123456789abcdef.nar", plain + "x.nar.zst"} {
		tt.wantAnswer(call{target: url, status: 404, body: "*"}, "GET")
	}
}

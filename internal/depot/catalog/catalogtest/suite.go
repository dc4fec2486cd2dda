// Package catalogtest has what every catalog must pass.
package catalogtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"firn/internal/depot/catalog"
	"firn/nix"
)

// A Clock is what a catalog under test takes the time from.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that stands still.
func NewClock() *Clock { return &Clock{now: time.Unix(1_800_000_000, 0).UTC()} }

func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Test checks what the port promises. open opens an empty catalog that has its time from a clock.
func Test(t *testing.T, open func(testing.TB, *Clock) catalog.Catalog) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"caches", (*suite).caches},
		{"tokens", (*suite).tokens},
		{"NARs", (*suite).nars},
		{"damaged NARs", (*suite).damaged},
		{"uploads", (*suite).uploads},
		{"paths", (*suite).paths},
		{"signatures", (*suite).signatures},
		{"debug info", (*suite).debug},
		{"files", (*suite).files},
		{"sweeps", (*suite).sweeps},
		{"deleting a cache", (*suite).deleteCache},
		{"versions", (*suite).versions},
		{"many writers", (*suite).many},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &suite{T: t, clock: NewClock()}
			s.c = open(t, s.clock)
			test.run(s)
		})
	}
}

type suite struct {
	*testing.T
	clock *Clock
	c     catalog.Catalog
}

func sum(text string) catalog.Sum { return sha256.Sum256([]byte(text)) }

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) want(err, target error) {
	s.Helper()
	if !errors.Is(err, target) {
		s.Errorf("error %v, want %v", err, target)
	}
}

func (s *suite) equal(got, want any) {
	s.Helper()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b nix.SecretKey) bool { return a.Reveal() == b.Reveal() }),
		cmp.Comparer(func(a, b nix.StorePath) bool { return a == b }), cmp.Comparer(func(a, b nix.Hash) bool { return a == b }),
		cmp.Comparer(func(a, b nix.Signature) bool { return a == b }), cmp.Comparer(func(a, b nix.ContentAddress) bool { return a == b })); diff != "" {
		s.Errorf("-want +got:\n%s", diff)
	}
}

func (s *suite) cache(name string) catalog.CacheID {
	s.Helper()
	c := &catalog.Cache{Name: name, StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), c))
	return c.ID
}

// nar adds a NAR of one shared chunk of its own, and those of others, under an upload if cache is not 0.
func (s *suite) nar(name string, cache catalog.CacheID, others ...string) (catalog.NARID, *catalog.NewNAR) {
	s.Helper()
	n := newNAR(name, cache, others...)
	id, added, err := s.c.AddNAR(s.Context(), n)
	s.ok(err)
	if !added {
		s.Errorf("NAR %s is not added", name)
	}
	return id, n
}

func (s *suite) publish(cache catalog.CacheID, p *catalog.Path) {
	s.Helper()
	there, added, err := s.c.Publish(s.Context(), cache, p, nil)
	s.ok(err)
	if !added {
		s.Error("not added")
	}
	s.equal(there, p)
}

func (s *suite) caches() {
	key, err := nix.GenerateKey("a-1")
	s.ok(err)
	a := &catalog.Cache{Name: "a", StoreDir: "/x/store", Sources: []string{catalog.SourceLocal, catalog.SourceDepot}, Priority: 7, Private: true,
		Hosts: []string{"a.example", "b.example"}, AllowMissingReferences: true, Keys: []nix.SecretKey{key}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), a))
	b := &catalog.Cache{Name: "b", StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), b))
	all, err := s.c.Caches(s.Context())
	s.ok(err)
	// None of something may come back as nil or as empty.
	for _, c := range append(all, b) {
		c.Hosts, c.Keys = append([]string{}, c.Hosts...), append([]nix.SecretKey{}, c.Keys...)
	}
	s.equal(all, []*catalog.Cache{a, b})
	s.want(s.c.AddCache(s.Context(), &catalog.Cache{Name: "a"}), catalog.ErrConflict)
	s.want(s.c.AddCache(s.Context(), &catalog.Cache{Name: "c", Hosts: []string{"b.example"}}), catalog.ErrConflict)
	b.Hosts, b.Priority = []string{"b.example"}, 3
	s.want(s.c.SetCache(s.Context(), b), catalog.ErrConflict)
	a.Hosts = []string{"a.example"}
	s.ok(s.c.SetCache(s.Context(), a))
	s.ok(s.c.SetCache(s.Context(), b))
	all, err = s.c.Caches(s.Context())
	s.ok(err)
	if len(all) != 2 || all[1].Priority != 3 || !slices.Equal(all[1].Hosts, b.Hosts) || !slices.Equal(all[0].Hosts, a.Hosts) {
		s.Errorf("caches %+v, %+v", all[0], all[1])
	}
	s.want(s.c.SetCache(s.Context(), &catalog.Cache{ID: 999, Name: "x"}), catalog.ErrNotFound)
	s.want(s.c.DeleteCache(s.Context(), 999), catalog.ErrNotFound)
}

func (s *suite) tokens() {
	t := &catalog.Token{Name: "ci", Hash: sum("secret"), Created: s.clock.Now(), Expires: s.clock.Now().Add(time.Hour), Grants: []catalog.Grant{{Pattern: "main", Rights: 3}, {Pattern: "x*", Rights: 1}}}
	s.ok(s.c.AddToken(s.Context(), t))
	got, err := s.c.TokenByHash(s.Context(), sum("secret"))
	s.ok(err)
	s.equal(got, t)
	s.want(s.c.AddToken(s.Context(), &catalog.Token{Name: "ci", Hash: sum("other")}), catalog.ErrConflict)
	s.want(s.c.AddToken(s.Context(), &catalog.Token{Name: "other", Hash: sum("secret")}), catalog.ErrConflict)
	s.ok(s.c.AddToken(s.Context(), &catalog.Token{Name: "b", Hash: sum("b"), Created: s.clock.Now()}))
	all, err := s.c.Tokens(s.Context())
	s.ok(err)
	if len(all) != 2 || all[0].Name != "b" || !all[0].Expires.IsZero() {
		s.Errorf("tokens %+v", all)
	}
	s.ok(s.c.RevokeToken(s.Context(), "ci"))
	s.want(s.c.RevokeToken(s.Context(), "ci"), catalog.ErrNotFound)
	_, err = s.c.TokenByHash(s.Context(), sum("secret"))
	s.want(err, catalog.ErrNotFound)
}

func (s *suite) nars() {
	cache := s.cache("main")
	id, n := s.nar("one", cache)
	got, err := s.c.NAR(s.Context(), n.Hash)
	s.ok(err)
	want := n.NAR
	want.ID = id
	s.equal(got, &want)
	_, err = s.c.NAR(s.Context(), sum("nothing"))
	s.want(err, catalog.ErrNotFound)
	listing, err := s.c.Listing(s.Context(), n.Hash)
	s.ok(err)
	s.equal(string(listing), "listing of one")
	_, err = s.c.Listing(s.Context(), sum("nothing"))
	s.want(err, catalog.ErrNotFound)

	again := newNAR("one", cache)
	again.Pack, again.Packs = &catalog.Pack{Name: "pack-new", Size: 1}, []string{"pack-new"}
	same, added, err := s.c.AddNAR(s.Context(), again)
	s.ok(err)
	if same != id || added {
		s.Errorf("the same NAR again: %d, added %v", same, added)
	}
	known, err := s.c.KnownPacks(s.Context(), []string{"pack-one", "pack-new", "x"})
	s.ok(err)
	s.equal(known, []string{"pack-one"})

	second, _ := s.nar("two", cache, "one")
	got, err = s.c.NAR(s.Context(), sum("NAR two"))
	s.ok(err)
	s.equal(got.Packs, []string{"pack-two", "pack-one"})
	_, _, err = s.c.AddNAR(s.Context(), newNAR("three", cache, "gone"))
	s.want(err, catalog.ErrGone)
	known, err = s.c.KnownPacks(s.Context(), []string{"pack-three"})
	s.ok(err)
	s.equal(len(known), 0)

	// A chunk that is there stays where it is.
	third := newNAR("four", cache)
	third.Chunks = append(third.Chunks, catalog.Chunk{Hash: sum("chunk one"), Pack: "pack-four", Offset: 9, Length: 9, Size: 9})
	_, _, err = s.c.AddNAR(s.Context(), third)
	s.ok(err)
	chunks, err := s.c.Chunks(s.Context(), []catalog.Sum{sum("chunk one"), sum("nothing"), sum("chunk two")})
	s.ok(err)
	slices.SortFunc(chunks, func(a, b catalog.Chunk) int { return strings.Compare(a.Pack, b.Pack) })
	s.equal(chunks, []catalog.Chunk{{Hash: sum("chunk one"), Pack: "pack-one", Offset: 1, Length: 2, Size: 3}, {Hash: sum("chunk two"), Pack: "pack-two", Offset: 1, Length: 2, Size: 3}})
	_, err = s.c.Chunks(s.Context(), make([]catalog.Sum, 257))
	if err == nil {
		s.Error("257 chunks at once: no error")
	}
	s.ok(s.c.ForgetChunks(s.Context(), "pack-one", []int64{5}))
	s.ok(s.c.ForgetChunks(s.Context(), "pack-two", nil))
	chunks, err = s.c.Chunks(s.Context(), []catalog.Sum{sum("chunk one"), sum("chunk two")})
	s.ok(err)
	s.equal(len(chunks), 1)
	s.ok(s.c.ForgetChunks(s.Context(), "pack-one", []int64{1}))
	chunks, err = s.c.Chunks(s.Context(), []catalog.Sum{sum("chunk one")})
	s.ok(err)
	s.equal(len(chunks), 0)

	var ids []catalog.NARID
	for n, err := range s.c.AllNARs(s.Context(), id) {
		s.ok(err)
		ids = append(ids, n.ID)
	}
	if len(ids) != 2 || ids[0] != second {
		s.Errorf("NARs after the first: %v", ids)
	}
}

func (s *suite) damaged() {
	cache := s.cache("main")
	id, _ := s.nar("one", cache)
	s.publish(cache, path("p", id, "one"))
	s.ok(s.c.Withhold(s.Context(), id, true))
	s.want(s.c.Withhold(s.Context(), 999, true), catalog.ErrNotFound)
	_, err := s.c.Path(s.Context(), cache, storePath("p").Hash())
	s.want(err, catalog.ErrNotFound)
	s.equal(s.all(cache, false), []string(nil))
	s.equal(s.all(cache, true), []string{"p"})
	n, err := s.c.NAR(s.Context(), sum("NAR one"))
	s.ok(err)
	if !n.Damaged {
		s.Error("the NAR is not damaged")
	}
	again := newNAR("one", cache)
	again.Pack, again.Packs, again.Chunks, again.Recipe = &catalog.Pack{Name: "pack-new", Size: 1}, []string{"pack-new"}, nil, []byte("new recipe")
	same, added, err := s.c.AddNAR(s.Context(), again)
	s.ok(err)
	if same != id || !added {
		s.Errorf("a damaged NAR again: %d, added %v", same, added)
	}
	n, err = s.c.NAR(s.Context(), sum("NAR one"))
	s.ok(err)
	if n.Damaged || string(n.Recipe) != "new recipe" || !slices.Equal(n.Packs, []string{"pack-new"}) {
		s.Errorf("after it was sent again: %+v", n)
	}
	s.equal(s.all(cache, false), []string{"p"})
}

func (s *suite) all(cache catalog.CacheID, damaged bool) (names []string) {
	s.Helper()
	for p, err := range s.c.AllPaths(s.Context(), cache, nix.PathHash{}, damaged) {
		s.ok(err)
		names = append(names, p.Info.Path.Name())
	}
	return names
}

func (s *suite) uploads() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	u, err := s.c.Upload(s.Context(), a, "nar/one.nar.xz")
	s.ok(err)
	s.equal(u, upload("one", a, id))
	_, err = s.c.Upload(s.Context(), b, "nar/one.nar.xz")
	s.want(err, catalog.ErrNotFound)
	for cache, want := range map[catalog.CacheID]bool{a: true, b: false} {
		leads, err := s.c.Leads(s.Context(), cache, id)
		s.ok(err)
		s.equal(leads, want)
	}
	s.ok(s.c.AddUpload(s.Context(), upload("one", b, id)))
	_, err = s.c.Upload(s.Context(), b, "nar/one.nar.xz")
	s.ok(err)
	s.want(s.c.AddUpload(s.Context(), upload("one", b, 999)), catalog.ErrGone)
	s.want(s.c.AddUpload(s.Context(), upload("one", 999, id)), catalog.ErrGone)
	second, _ := s.nar("two", a)
	moved := upload("one", a, second)
	s.ok(s.c.AddUpload(s.Context(), moved))
	u, err = s.c.Upload(s.Context(), a, "nar/one.nar.xz")
	s.ok(err)
	s.equal(u.NAR, second)
}

func (s *suite) paths() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	other, _ := s.nar("two", a)
	p := path("p", id, "one")
	s.publish(a, p)
	got, err := s.c.Path(s.Context(), a, p.Info.Path.Hash())
	s.ok(err)
	s.equal(got, p)
	_, err = s.c.Path(s.Context(), b, p.Info.Path.Hash())
	s.want(err, catalog.ErrNotFound)

	second := path("p", other, "two")
	second.Info.Signatures = []nix.Signature{signature("new")}
	there, added, err := s.c.Publish(s.Context(), a, second, nil)
	s.ok(err)
	if added {
		s.Error("another NAR took the place of the first")
	}
	s.equal(there, p)
	_, _, err = s.c.Publish(s.Context(), a, path("q", 999, "x"), nil)
	s.want(err, catalog.ErrGone)
	_, _, err = s.c.Publish(s.Context(), 999, path("q", id, "one"), nil)
	s.want(err, catalog.ErrGone)

	bare := &catalog.Path{NAR: id, Info: nix.PathInfo{Path: storePath("bare"), NARHash: p.Info.NARHash, NARSize: 1000}}
	there, _, err = s.c.Publish(s.Context(), a, bare, nil)
	s.ok(err)
	if there.Info.RegistrationTime != s.clock.Now() {
		s.Errorf("registered at %v", there.Info.RegistrationTime)
	}
	for i := range 450 {
		s.ok(errOf(s.c.Publish(s.Context(), b, path(fmt.Sprint("n", i), id, "one"), nil)))
	}
	names := s.all(b, false)
	slices.Sort(names)
	if len(names) != 450 || len(slices.Compact(names)) != 450 {
		s.Errorf("%d paths", len(names))
	}
	counts, err := s.c.Count(s.Context(), &b)
	s.ok(err)
	s.equal(counts, catalog.Counts{Caches: 1, Paths: 450, NARs: 1, NARBytes: 450_000, FileBytes: 225_000})
	counts, err = s.c.Count(s.Context(), nil)
	s.ok(err)
	s.equal(counts, catalog.Counts{Caches: 2, Paths: 452, NARs: 2, Chunks: 2, Packs: 2, NARBytes: 2000, FileBytes: 1000, PackBytes: 1200})
	s.ok(s.c.DeletePath(s.Context(), a, p.Info.Path.Hash()))
	s.want(s.c.DeletePath(s.Context(), a, p.Info.Path.Hash()), catalog.ErrNotFound)
	_, err = s.c.Path(s.Context(), a, p.Info.Path.Hash())
	s.want(err, catalog.ErrNotFound)
}

func errOf[A, B any](_ A, _ B, err error) error { return err }

func (s *suite) signatures() {
	a := s.cache("a")
	id, _ := s.nar("one", a)
	p := path("p", id, "one")
	s.publish(a, p)
	hash := p.Info.Path.Hash()
	s.ok(s.c.AddSignatures(s.Context(), a, hash, []nix.Signature{signature("two"), signature("one")}))
	s.want(s.c.AddSignatures(s.Context(), a, nix.PathHash{}, []nix.Signature{signature("two")}), catalog.ErrNotFound)
	again := path("p", id, "one")
	again.Info.Signatures = []nix.Signature{signature("three")}
	there, added, err := s.c.Publish(s.Context(), a, again, nil)
	s.ok(err)
	if added {
		s.Error("added again")
	}
	want := []nix.Signature{signature("one"), signature("two"), signature("three")}
	s.equal(there.Info.Signatures, want)
	got, err := s.c.Path(s.Context(), a, hash)
	s.ok(err)
	s.equal(got.Info.Signatures, want)
	var many []nix.Signature
	for i := range 62 {
		many = append(many, signature(fmt.Sprint("k", i)))
	}
	s.want(s.c.AddSignatures(s.Context(), a, hash, many), catalog.ErrConflict)
	got, err = s.c.Path(s.Context(), a, hash)
	s.ok(err)
	s.equal(got.Info.Signatures, want)
	s.ok(s.c.AddSignatures(s.Context(), a, hash, many[:61]))
}

func (s *suite) debug() {
	a := s.cache("a")
	id, _ := s.nar("one", a)
	p := path("p", id, "one")
	build := strings.Repeat("ab", 20)
	_, _, err := s.c.Publish(s.Context(), a, p, []catalog.DebugInfo{{BuildID: build, Path: p.Info.Path.Hash(), Member: "lib/x"}})
	s.ok(err)
	got, err := s.c.DebugInfo(s.Context(), a, build)
	s.ok(err)
	s.equal(got, &catalog.DebugInfo{BuildID: build, Path: p.Info.Path.Hash(), Member: "lib/x"})
	for _, id := range []string{strings.Repeat("cd", 20), "", "x"} {
		_, err = s.c.DebugInfo(s.Context(), a, id)
		s.want(err, catalog.ErrNotFound)
	}
	s.ok(s.c.DeletePath(s.Context(), a, p.Info.Path.Hash()))
	_, err = s.c.DebugInfo(s.Context(), a, build)
	s.want(err, catalog.ErrNotFound)
}

func (s *suite) files() {
	a, b := s.cache("a"), s.cache("b")
	s.ok(s.c.PutFile(s.Context(), a, "log/x", []byte("one"), false))
	s.ok(s.c.PutFile(s.Context(), a, "log/x", []byte("two"), true))
	content, err := s.c.File(s.Context(), a, "log/x")
	s.ok(err)
	s.equal(string(content), "one")
	s.ok(s.c.PutFile(s.Context(), a, "log/x", []byte("three"), false))
	content, err = s.c.File(s.Context(), a, "log/x")
	s.ok(err)
	s.equal(string(content), "three")
	_, err = s.c.File(s.Context(), b, "log/x")
	s.want(err, catalog.ErrNotFound)
	s.want(s.c.PutFile(s.Context(), 999, "log/x", nil, false), catalog.ErrGone)
	s.ok(s.c.PutFile(s.Context(), a, "log/empty", nil, false))
	for i := range 410 {
		s.ok(s.c.PutFile(s.Context(), b, fmt.Sprintf("k/%03d", i), nil, false))
	}
	s.ok(s.c.PutFile(s.Context(), b, "j", nil, false))
	s.ok(s.c.PutFile(s.Context(), b, "l", nil, false))
	var keys []string
	for key, err := range s.c.AllFiles(s.Context(), b, "k/") {
		s.ok(err)
		keys = append(keys, key)
	}
	if len(keys) != 410 || !slices.IsSorted(keys) || keys[0] != "k/000" {
		s.Errorf("%d keys", len(keys))
	}
}

// sweep sweeps what was there an hour ago, until there is no more.
func (s *suite) sweep() (packs []string) {
	s.Helper()
	for range 100 {
		gone, more, err := s.c.Sweep(s.Context(), s.clock.Now().Add(-time.Hour), 3)
		s.ok(err)
		packs = append(packs, gone...)
		if !more {
			slices.Sort(packs)
			return packs
		}
	}
	s.Fatal("a sweep does not end")
	return nil
}

func (s *suite) sweeps() {
	a := s.cache("a")
	published, _ := s.nar("published", a)
	s.publish(a, path("p", published, "published"))
	for i := range 10 {
		s.nar(fmt.Sprint("loose", i), a)
	}
	s.nar("shared", a)
	using, _ := s.nar("using", a, "shared")
	s.publish(a, path("using", using, "using"))
	s.clock.Advance(59 * time.Minute)
	s.nar("young", a)
	s.equal(s.sweep(), []string(nil))
	s.clock.Advance(2 * time.Minute)
	s.equal(s.sweep(), []string(nil)) // the NARs go, and their packs are nobody's from now on
	_, err := s.c.NAR(s.Context(), sum("NAR loose3"))
	s.want(err, catalog.ErrNotFound)
	_, err = s.c.Upload(s.Context(), a, "nar/loose3.nar.xz")
	s.want(err, catalog.ErrNotFound)
	// An upload finds a chunk in one of them in time.
	reusing, _ := s.nar("reusing", a, "loose4")
	s.publish(a, path("reusing", reusing, "reusing"))
	s.clock.Advance(61 * time.Minute)
	var want []string
	for i := range 10 {
		if i != 4 {
			want = append(want, fmt.Sprint("pack-loose", i))
		}
	}
	s.equal(s.sweep(), want)
	for name, want := range map[string]int{"loose3": 0, "loose4": 1, "shared": 1, "published": 1, "using": 1} {
		chunks, err := s.c.Chunks(s.Context(), []catalog.Sum{sum("chunk " + name)})
		s.ok(err)
		if len(chunks) != want {
			s.Errorf("%s: %d chunks, want %d", name, len(chunks), want)
		}
	}
	_, _, err = s.c.AddNAR(s.Context(), newNAR("late", a, "loose3"))
	s.want(err, catalog.ErrGone)
	_, err = s.c.NAR(s.Context(), sum("NAR published"))
	s.ok(err)
	_, err = s.c.Upload(s.Context(), a, "nar/published.nar.xz")
	s.ok(err)

	s.ok(s.c.DeletePath(s.Context(), a, storePath("p").Hash()))
	s.sweep()
	_, err = s.c.NAR(s.Context(), sum("NAR published"))
	s.ok(err)
	for range 3 {
		s.clock.Advance(61 * time.Minute)
		s.sweep()
	}
	_, err = s.c.NAR(s.Context(), sum("NAR published"))
	s.want(err, catalog.ErrNotFound)
	_, err = s.c.NAR(s.Context(), sum("NAR using"))
	s.ok(err)
	known, err := s.c.KnownPacks(s.Context(), []string{"pack-published", "pack-shared", "pack-using"})
	s.ok(err)
	slices.Sort(known)
	s.equal(known, []string{"pack-shared", "pack-using"})
}

func (s *suite) deleteCache() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	s.publish(a, path("p", id, "one"))
	s.ok(s.c.AddUpload(s.Context(), upload("one", b, id)))
	only, _ := s.nar("only", a)
	s.publish(a, path("q", only, "only"))
	s.ok(s.c.PutFile(s.Context(), a, "log/x", []byte("x"), false))
	s.ok(s.c.DeleteCache(s.Context(), a))
	_, err := s.c.Path(s.Context(), a, storePath("p").Hash())
	s.want(err, catalog.ErrNotFound)
	_, err = s.c.File(s.Context(), a, "log/x")
	s.want(err, catalog.ErrNotFound)
	s.publish(b, path("p", id, "one"))
	for range 3 {
		s.clock.Advance(61 * time.Minute)
		s.sweep()
	}
	_, err = s.c.NAR(s.Context(), sum("NAR one"))
	s.ok(err)
	_, err = s.c.NAR(s.Context(), sum("NAR only"))
	s.want(err, catalog.ErrNotFound)
	if c := s.cache("a"); c == a {
		s.Error("an ID is used again")
	}
}

func (s *suite) versions() {
	s.ok(s.c.Check(s.Context()))
	a := s.cache("a")
	before, ok := s.c.Version()
	if !ok {
		return
	}
	if again, _ := s.c.Version(); again != before {
		s.Error("the version changes by itself")
	}
	s.ok(s.c.PutFile(s.Context(), a, "k", nil, false))
	if after, _ := s.c.Version(); after == before {
		s.Error("the version stays after a commit")
	}
}

func (s *suite) many() {
	a := s.cache("a")
	var group sync.WaitGroup
	ctx := context.WithoutCancel(s.Context())
	for i := range 16 {
		group.Go(func() {
			for j := range 8 {
				name := fmt.Sprint("n", i, "-", j)
				id, _, err := s.c.AddNAR(ctx, newNAR(name, a))
				if err == nil {
					_, _, err = s.c.Publish(ctx, a, path(name, id, name), nil)
				}
				if err == nil {
					_, err = s.c.Path(ctx, a, storePath(name).Hash())
				}
				// One that fails does no harm to those that share its transaction.
				if _, _, gone := s.c.AddNAR(ctx, newNAR("x"+name, a, "gone")); !errors.Is(gone, catalog.ErrGone) {
					s.Errorf("error %v, want ErrGone", gone)
				}
				if err != nil {
					s.Error(err)
				}
			}
		})
	}
	group.Wait()
	if n := len(s.all(a, false)); n != 128 {
		s.Errorf("%d paths, want 128", n)
	}
}

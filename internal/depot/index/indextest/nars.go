package indextest

import (
	"slices"
	"strings"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index"
)

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
	again.Pack, again.Packs = &index.Pack{Name: "pack-new", Size: 1}, []string{"pack-new"}
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
	third.Chunks = append(third.Chunks, index.Chunk{Hash: sum("chunk one"), Pack: "pack-four", Offset: 9, Length: 9, Size: 9})
	_, _, err = s.c.AddNAR(s.Context(), third)
	s.ok(err)
	chunks, err := s.c.FindChunks(s.Context(), 0, []catalog.Sum{sum("chunk one"), sum("nothing"), sum("chunk two")})
	s.ok(err)
	slices.SortFunc(chunks, func(a, b index.Chunk) int { return strings.Compare(a.Pack, b.Pack) })
	s.equal(chunks, []index.Chunk{{Hash: sum("chunk one"), Pack: "pack-one", Offset: 1, Length: 2, Size: 3}, {Hash: sum("chunk two"), Pack: "pack-two", Offset: 1, Length: 2, Size: 3}})
	_, err = s.c.FindChunks(s.Context(), 0, make([]catalog.Sum, 257))
	if err == nil {
		s.Error("257 chunks at once: no error")
	}
	s.ok(s.c.ForgetChunks(s.Context(), "pack-one", []int64{5}))
	s.ok(s.c.ForgetPack(s.Context(), "pack-two"))
	chunks, err = s.c.FindChunks(s.Context(), 0, []catalog.Sum{sum("chunk one"), sum("chunk two")})
	s.ok(err)
	s.equal(len(chunks), 1)
	s.ok(s.c.ForgetChunks(s.Context(), "pack-one", []int64{1}))
	chunks, err = s.c.FindChunks(s.Context(), 0, []catalog.Sum{sum("chunk one")})
	s.ok(err)
	s.equal(len(chunks), 0)

	var ids []index.NARID
	for n, err := range s.c.AllNARs(s.Context()) {
		s.ok(err)
		ids = append(ids, n.ID)
	}
	if len(ids) != 3 || ids[0] != id || ids[1] != second {
		s.Errorf("NARs: %v", ids)
	}
}

// withhold changes the fault of a NAR.
func (s *suite) withhold(nar index.NARID, from, to index.Fault) {
	s.Helper()
	changed, err := s.c.SetFaults(s.Context(), []index.NARID{nar}, from, to)
	s.ok(err)
	s.equal(changed, int64(1))
}

// missing: what lacks a pack is withheld as what is damaged is, and can be told from it.
func (s *suite) missing() {
	cache := s.cache("main")
	var ids []index.NARID
	for _, name := range []string{"one", "two", "three"} {
		id, _ := s.nar(name, cache)
		s.publish(cache, path(name, id, name))
		ids = append(ids, id)
	}
	s.withhold(ids[1], index.Whole, index.Damaged)
	changed, err := s.c.SetFaults(s.Context(), append(ids, 999), index.Whole, index.Missing)
	s.ok(err)
	s.equal(changed, int64(2))
	s.equal(s.all(cache, false), []string(nil))
	s.equal(len(s.all(cache, true)), 3)
	faults := map[index.NARID]index.Fault{}
	for n, err := range s.c.WithheldNARs(s.Context()) {
		s.ok(err)
		faults[n.ID] = n.Fault
	}
	s.equal(faults, map[index.NARID]index.Fault{ids[0]: index.Missing, ids[1]: index.Damaged, ids[2]: index.Missing})
	all, err := s.c.Count(s.Context())
	s.ok(err)
	of, err := s.c.CountIn(s.Context(), cache)
	s.ok(err)
	s.equal([]int64{all.Withheld, all.Missing, of.Withheld, of.Missing}, []int64{3, 2, 3, 2})
	s.withhold(ids[0], index.Missing, index.Whole)
	s.equal(s.all(cache, false), []string{"one"})
	for n, err := range s.c.WithheldNARs(s.Context()) {
		s.ok(err)
		if n.ID == ids[0] {
			s.Error("a whole NAR is among those that are withheld")
		}
	}
	packs := map[string]int64{}
	for p, err := range s.c.AllPacks(s.Context()) {
		s.ok(err)
		packs[p.Name] = p.Size
	}
	s.equal(len(packs), 3)
	for range s.c.AllPacks(s.Context()) {
		break
	}
}

func (s *suite) damaged() {
	cache := s.cache("main")
	id, _ := s.nar("one", cache)
	s.publish(cache, path("p", id, "one"))
	s.withhold(id, index.Whole, index.Damaged)
	for _, none := range []struct {
		nar  index.NARID
		from index.Fault
	}{{999, index.Whole}, {id, index.Whole}, {id, index.Missing}} {
		changed, err := s.c.SetFaults(s.Context(), []index.NARID{none.nar}, none.from, index.Missing)
		s.ok(err)
		s.equal(changed, int64(0))
	}
	if _, err := s.c.SetFaults(s.Context(), make([]index.NARID, 257), index.Whole, index.Damaged); err == nil {
		s.Error("257 NARs at once: no error")
	}
	_, err := s.c.Path(s.Context(), cache, storePath("p").Hash())
	s.want(err, catalog.ErrNotFound)
	s.equal(s.all(cache, false), []string(nil))
	s.equal(s.all(cache, true), []string{"p"})
	n, err := s.c.NAR(s.Context(), sum("NAR one"))
	s.ok(err)
	s.equal(n.Fault, index.Damaged)
	again := newNAR("one", cache)
	again.Pack, again.Packs, again.Chunks, again.Recipe = &index.Pack{Name: "pack-new", Size: 1}, []string{"pack-new"}, nil, []byte("new recipe")
	same, added, err := s.c.AddNAR(s.Context(), again)
	s.ok(err)
	if same != id || !added {
		s.Errorf("a damaged NAR again: %d, added %v", same, added)
	}
	n, err = s.c.NAR(s.Context(), sum("NAR one"))
	s.ok(err)
	if n.Fault != index.Whole || string(n.Recipe) != "new recipe" || !slices.Equal(n.Packs, []string{"pack-new"}) {
		s.Errorf("after it was sent again: %+v", n)
	}
	s.equal(s.all(cache, false), []string{"p"})
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
		leads, err := s.c.Reaches(s.Context(), cache, id)
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

// builtNARs need the chunks that they are built on to be where they were.
func (s *suite) builtNARs() {
	cache := s.cache("main")
	s.nar("one", cache)
	built := index.Chunk{Hash: sum("chunk one"), Pack: "pack-one", Offset: 1, Length: 2, Size: 3}
	elsewhere, other := built, built
	elsewhere.Offset++
	other.Hash = sum("chunk two")
	for name, c := range map[string]index.Chunk{"elsewhere": elsewhere, "other": other} {
		n := newNAR("two", cache, "one")
		n.Built = []index.Chunk{built, c}
		_, _, err := s.c.AddNAR(s.Context(), n)
		if s.want(err, catalog.ErrGone); s.Failed() {
			s.Fatal(name)
		}
	}
	known, err := s.c.KnownPacks(s.Context(), []string{"pack-two"})
	s.ok(err)
	s.equal(len(known), 0)
	n := newNAR("two", cache, "one")
	n.Built = []index.Chunk{built}
	_, _, err = s.c.AddNAR(s.Context(), n)
	s.ok(err)
	s.ok(s.c.ForgetChunks(s.Context(), "pack-one", []int64{1}))
	n = newNAR("three", cache, "one")
	n.Built = []index.Chunk{built}
	_, _, err = s.c.AddNAR(s.Context(), n)
	s.want(err, catalog.ErrGone)
	_, err = s.c.Upload(s.Context(), cache, "nar/three.nar.xz")
	s.want(err, catalog.ErrNotFound)
	// A NAR that is there needs nothing.
	n = newNAR("two", cache, "one")
	n.Built = []index.Chunk{built}
	_, added, err := s.c.AddNAR(s.Context(), n)
	s.ok(err)
	s.equal(added, false)
}

// refusedNARs leave nothing behind.
func (s *suite) refusedNARs() {
	cache := s.cache("main")
	for name, n := range map[string]*index.NewNAR{
		"gone pack":  newNAR("one", cache, "gone"),
		"gone cache": newNAR("one", 999),
	} {
		_, _, err := s.c.AddNAR(s.Context(), n)
		if s.want(err, catalog.ErrGone); s.Failed() {
			s.Fatal(name)
		}
	}
	_, err := s.c.NAR(s.Context(), sum("NAR one"))
	s.want(err, catalog.ErrNotFound)
	_, err = s.c.Upload(s.Context(), cache, "nar/one.nar.xz")
	s.want(err, catalog.ErrNotFound)
	counts, err := s.c.Count(s.Context())
	s.ok(err)
	s.equal(counts, index.Counts{Caches: 1})
	s.nar("one", cache) // now it goes
}

// usesOfChunks are of one cache each, and for as long as that leads to the NAR.
func (s *suite) usesOfChunks() {
	a, b := s.cache("a"), s.cache("b")
	led := func(cache catalog.CacheID, name string) bool {
		s.Helper()
		chunks, err := s.c.FindChunks(s.Context(), cache, []catalog.Sum{sum("chunk " + name)})
		s.ok(err)
		if len(chunks) != 1 {
			s.Fatalf("chunk %s: %v", name, chunks)
		}
		return chunks[0].Led
	}
	one := newNAR("one", a)
	one.Upload.Uses = []catalog.Sum{sum("chunk one"), sum("nothing")}
	id, _, err := s.c.AddNAR(s.Context(), one)
	s.ok(err)
	s.equal([]bool{led(a, "one"), led(b, "one"), led(0, "one")}, []bool{true, false, false})

	// The same NAR in the other cache, and in none the chunk of which nothing was said.
	again := newNAR("one", b)
	again.Upload.Uses = one.Upload.Uses
	_, _, err = s.c.AddNAR(s.Context(), again)
	s.ok(err)
	s.equal([]bool{led(a, "one"), led(b, "one")}, []bool{true, true})
	s.nar("two", a)
	s.equal(led(a, "two"), false)
	u := upload("three", a, id)
	u.Uses = []catalog.Sum{sum("chunk two")}
	s.ok(s.c.AddUpload(s.Context(), u))
	s.equal([]bool{led(a, "two"), led(b, "two")}, []bool{true, false})

	// A name that leads to another NAR leads to that one's chunks.
	third, _ := s.nar("three", b)
	s.ok(s.c.AddUpload(s.Context(), upload("one", b, third)))
	s.equal([]bool{led(a, "one"), led(b, "one")}, []bool{true, false})
	s.publish(b, path("p", id, "one"))
	s.equal(led(b, "one"), true)

	// A later NAR takes over, and what is forgotten is led to by nobody.
	u = upload("four", b, third)
	u.Uses = []catalog.Sum{sum("chunk one")}
	s.ok(s.c.AddUpload(s.Context(), u))
	s.ok(s.deletePath(b, storePath("p").Hash()))
	s.equal(led(b, "one"), true)
	s.ok(s.c.ForgetPack(s.Context(), "pack-one"))
	_, _, err = s.c.AddNAR(s.Context(), &index.NewNAR{
		NAR:    index.NAR{Hash: sum("NAR five"), Size: 1, Packs: []string{"pack-one"}},
		Chunks: []index.Chunk{{Hash: sum("chunk one"), Pack: "pack-one"}},
	})
	s.ok(err)
	s.equal([]bool{led(a, "one"), led(b, "one")}, []bool{false, false})
}

// bareNARs have nothing that is new, or nothing at all.
func (s *suite) bareNARs() {
	s.nar("one", 0)
	_, err := s.c.Upload(s.Context(), 1, "")
	s.want(err, catalog.ErrNotFound)
	for _, n := range []*index.NewNAR{
		{NAR: index.NAR{Hash: sum("NAR a"), Size: 1, Packs: []string{"pack-one"}}},
		{NAR: index.NAR{Hash: sum("NAR b")}},
	} {
		_, added, err := s.c.AddNAR(s.Context(), n)
		s.ok(err)
		s.equal(added, true)
		got, err := s.c.NAR(s.Context(), n.Hash)
		s.ok(err)
		s.equal(got.Packs, n.Packs)
		s.equal(len(got.Recipe), 0)
		listing, err := s.c.Listing(s.Context(), n.Hash)
		s.ok(err)
		s.equal(len(listing), 0)
	}
	none, err := s.c.FindChunks(s.Context(), 0, nil)
	s.ok(err)
	s.equal(len(none), 0)
	known, err := s.c.KnownPacks(s.Context(), nil)
	s.ok(err)
	s.equal(len(known), 0)
	if _, err := s.c.KnownPacks(s.Context(), make([]string, 257)); err == nil {
		s.Error("257 packs at once: no error")
	}
	// As many as may be.
	hashes, names := make([]catalog.Sum, 256), make([]string, 256)
	hashes[255], names[255] = sum("chunk one"), "pack-one"
	chunks, err := s.c.FindChunks(s.Context(), 0, hashes)
	s.ok(err)
	s.equal(len(chunks), 1)
	known, err = s.c.KnownPacks(s.Context(), names)
	s.ok(err)
	s.equal(known, []string{"pack-one"})
}

// uploadsOfKnown add a name, in whatever cache, and nothing else.
func (s *suite) uploadsOfKnown() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	again := newNAR("one", b)
	again.Pack, again.Packs, again.Chunks = &index.Pack{Name: "pack-new", Size: 1}, []string{"pack-new"},
		[]index.Chunk{{Hash: sum("chunk new"), Pack: "pack-new"}}
	again.Upload.FileSize = 5
	same, added, err := s.c.AddNAR(s.Context(), again)
	s.ok(err)
	if same != id || added {
		s.Errorf("NAR %d, added %v", same, added)
	}
	u, err := s.c.Upload(s.Context(), b, "nar/one.nar.xz")
	s.ok(err)
	if u.NAR != id || u.FileSize != 5 || u.NARSize != 1000 || u.NARHash != sum("NAR one") {
		s.Errorf("upload %+v", u)
	}
	chunks, err := s.c.FindChunks(s.Context(), 0, []catalog.Sum{sum("chunk new")})
	s.ok(err)
	s.equal(len(chunks), 0)
	again.Upload.FileSize = 6
	_, _, err = s.c.AddNAR(s.Context(), again)
	s.ok(err)
	u, err = s.c.Upload(s.Context(), b, "nar/one.nar.xz")
	s.ok(err)
	s.equal(u.FileSize, int64(6))
	u, err = s.c.Upload(s.Context(), a, "nar/one.nar.xz")
	s.ok(err)
	s.equal(u.FileSize, int64(77))
}

// sharedPacks: several NARs may bring the same new pack.
func (s *suite) sharedPacks() {
	cache := s.cache("main")
	for _, name := range []string{"five", "six"} {
		shared := newNAR(name, cache)
		shared.Pack, shared.Packs, shared.Chunks = &index.Pack{Name: "pack-shared", Size: 7}, []string{"pack-shared"}, nil
		_, _, err := s.c.AddNAR(s.Context(), shared)
		s.ok(err)
	}
	var in []string
	for n, err := range s.c.NARsIn(s.Context(), "pack-shared") {
		s.ok(err)
		in = append(in, string(n.Recipe))
	}
	s.equal(in, []string{"recipe of five", "recipe of six"})
}

// sharedListings: a NAR has its listing also when another NAR with the same listing goes, or gets
// another one.
func (s *suite) sharedListings() {
	cache := s.cache("main")
	add := func(name, listing string, in catalog.CacheID) index.NARID {
		s.Helper()
		n := newNAR(name, in)
		n.Listing = []byte(listing)
		id, _, err := s.c.AddNAR(s.Context(), n)
		s.ok(err)
		return id
	}
	is := func(name, want string) {
		s.Helper()
		listing, err := s.c.Listing(s.Context(), sum("NAR "+name))
		s.ok(err)
		s.equal(string(listing), want)
	}
	stays := add("stays", "the same", cache)
	s.publish(cache, path("p", stays, "stays"))
	add("goes", "the same", 0)
	add("goes too", "another", 0)
	is("goes", "the same")
	s.clock.Advance(61 * time.Minute)
	s.sweep()
	for _, name := range []string{"goes", "goes too"} {
		_, err := s.c.Listing(s.Context(), sum("NAR "+name))
		s.want(err, catalog.ErrNotFound)
	}
	is("stays", "the same")

	repaired := add("repaired", "the same", cache)
	s.withhold(repaired, index.Whole, index.Damaged)
	add("repaired", "a third", cache)
	is("repaired", "a third")
	is("stays", "the same")
}

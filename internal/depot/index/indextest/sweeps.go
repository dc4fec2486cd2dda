package indextest

import (
	"fmt"
	"slices"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index"
)

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
		chunks, err := s.c.FindChunks(s.Context(), 0, []catalog.Sum{sum("chunk " + name)})
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

	s.ok(s.deletePath(a, storePath("p").Hash()))
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

// leavingPacks: what nobody needs is found in the first half of the grace, and can be needed in the other one too.
func (s *suite) leavingPacks() {
	a := s.cache("a")
	s.nar("one", a)
	s.nar("two", a)
	found := func(name string) bool {
		s.Helper()
		chunks, err := s.c.FindChunks(s.Context(), a, []catalog.Sum{sum("chunk " + name)})
		s.ok(err)
		return len(chunks) == 1
	}
	s.clock.Advance(61 * time.Minute)
	s.sweep() // from now on they are nobody's
	s.clock.Advance(29 * time.Minute)
	s.sweep()
	s.equal([]bool{found("one"), found("two")}, []bool{true, true})
	s.clock.Advance(2 * time.Minute)
	s.sweep()
	s.equal([]bool{found("one"), found("two")}, []bool{false, false})
	s.clock.Advance(28 * time.Minute)
	s.sweep()
	late := newNAR("late", a, "one")
	late.Built = []index.Chunk{{Hash: sum("chunk one"), Pack: "pack-one", Offset: 1}}
	id, _, err := s.c.AddNAR(s.Context(), late)
	s.ok(err)
	s.publish(a, path("late", id, "late"))
	s.equal(s.expire(), []string{"pack-two"})
	s.equal(found("one"), false)
	s.ok(s.c.Examined(s.Context(), s.thin()["pack-one"], 0))
	s.equal(found("one"), true)
}

func (s *suite) deleteCache() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	s.publish(a, path("p", id, "one"))
	s.ok(s.c.AddUpload(s.Context(), upload("one", b, id)))
	only, _ := s.nar("only", a)
	s.publish(a, path("q", only, "only"))
	s.ok(s.c.PutFile(s.Context(), a, &index.File{Key: "log/x", Content: []byte("x")}))
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

// sweepUploads: one goes when its NAR is not published in its own cache, whoever else publishes it.
func (s *suite) sweepUploads() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	s.ok(s.c.AddUpload(s.Context(), upload("one", b, id)))
	s.publish(a, path("p", id, "one"))
	s.clock.Advance(61 * time.Minute)
	s.ok(s.c.AddUpload(s.Context(), upload("late", a, id))) // after it was published
	s.clock.Advance(61 * time.Minute)
	s.sweep()
	_, err := s.c.Upload(s.Context(), b, "nar/one.nar.xz")
	s.want(err, catalog.ErrNotFound)
	for _, name := range []string{"nar/one.nar.xz", "nar/late.nar.xz"} {
		_, err = s.c.Upload(s.Context(), a, name)
		s.ok(err)
	}
	// One that is sent again is young again.
	young, _ := s.nar("young", b)
	s.clock.Advance(50 * time.Minute)
	s.ok(s.c.AddUpload(s.Context(), upload("young", b, young)))
	s.clock.Advance(50 * time.Minute)
	s.sweep()
	_, err = s.c.Upload(s.Context(), b, "nar/young.nar.xz")
	s.ok(err)
	// Nor goes a NAR that an upload leads to from another cache only.
	s.ok(s.deletePath(a, storePath("p").Hash()))
	s.ok(s.c.AddUpload(s.Context(), upload("one", b, id)))
	s.clock.Advance(30 * time.Minute)
	s.sweep()
	_, err = s.c.NAR(s.Context(), sum("NAR one"))
	s.ok(err)
	last := young
	for range 3 {
		s.clock.Advance(61 * time.Minute)
		s.sweep()
	}
	next, _ := s.nar("next", a)
	if next <= last {
		s.Errorf("ID %d after %d was used", next, last)
	}
}

// sweepLimit: no call does more than it is told.
func (s *suite) sweepLimit() {
	a := s.cache("a")
	for i := range 7 {
		s.nar(fmt.Sprint("n", i), a)
	}
	nars := func() (n int) {
		for _, err := range s.c.AllNARs(s.Context()) {
			s.ok(err)
			n++
		}
		return n
	}
	s.clock.Advance(time.Hour)
	before := s.clock.Now()
	for n := 7; n > 0; {
		s.clock.Advance(time.Minute)
		packs, more, err := s.c.Sweep(s.Context(), before, 2)
		s.ok(err)
		left := nars()
		if len(packs) > 0 || n-left > 2 || !more && left > 0 || n == left {
			s.Fatalf("packs %v, more %v, %d NARs of %d left", packs, more, left, n)
		}
		n = left
	}
	s.clock.Advance(time.Hour)
	var gone []string
	for more := true; more; {
		packs, again, err := s.c.Sweep(s.Context(), s.clock.Now().Add(-time.Second), 2)
		s.ok(err)
		if len(packs) > 2 {
			s.Errorf("%d packs at once", len(packs))
		}
		gone, more = append(gone, packs...), again
	}
	if len(gone) != 7 {
		s.Errorf("packs %v", gone)
	}
	counts, err := s.c.Count(s.Context())
	s.ok(err)
	s.equal(counts, index.Counts{Caches: 1})
}

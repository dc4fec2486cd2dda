package indextest

import (
	"fmt"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index"
)

// thin returns the thin packs, by name.
func (s *suite) thin() map[string]index.ThinPack {
	s.Helper()
	all, err := s.c.ThinPacks(s.Context(), 100)
	s.ok(err)
	thin := make(map[string]index.ThinPack)
	for _, p := range all {
		thin[p.Name] = p
	}
	return thin
}

// expire has everything go that nothing leads to.
func (s *suite) expire() (packs []string) {
	for range 3 {
		s.clock.Advance(61 * time.Minute)
		packs = append(packs, s.sweep()...)
	}
	return packs
}

// thinPacks are those that some NARs have left, and others have not, until they are examined.
func (s *suite) thinPacks() {
	a := s.cache("a")
	for _, name := range []string{"one", "two"} {
		s.nar(name, a)
		id, _ := s.nar(name+"-using", a, name)
		s.publish(a, path(name, id, name+"-using"))
	}
	s.equal(len(s.thin()), 0)
	s.expire()
	thin := s.thin()
	s.equal(thin, map[string]index.ThinPack{
		"pack-one": {Pack: index.Pack{Name: "pack-one", Size: 600}, Left: 1},
		"pack-two": {Pack: index.Pack{Name: "pack-two", Size: 600}, Left: 1},
	})
	few, err := s.c.ThinPacks(s.Context(), 1)
	s.ok(err)
	s.equal(len(few), 1)

	s.ok(s.c.Examined(s.Context(), thin["pack-one"], 70))
	counts, err := s.c.Count(s.Context())
	s.ok(err)
	s.equal(counts.Reclaimable, int64(70))
	// One that is left while it is examined is to be examined again.
	id, _ := s.nar("late", a, "two")
	s.expire()
	s.ok(s.c.Examined(s.Context(), thin["pack-two"], 70))
	thin = s.thin()
	if p, ok := thin["pack-two"]; len(thin) != 1 || !ok || p.Left != 2 {
		s.Errorf("thin are %v after NAR %d left", thin, id)
	}
	s.ok(s.c.Examined(s.Context(), index.ThinPack{Pack: index.Pack{Name: "none"}}, 1))

	// One that all have left goes as a whole.
	s.ok(s.deletePath(a, storePath("two").Hash()))
	s.clock.Advance(61 * time.Minute)
	s.sweep()
	s.equal(len(s.thin()), 0)
	counts, err = s.c.Count(s.Context())
	s.ok(err)
	s.equal(counts.Reclaimable, int64(70+2*600))
	s.expire()
	counts, err = s.c.Count(s.Context())
	s.ok(err)
	s.equal(counts.Reclaimable, int64(70))
}

// moveOf is a move of a NAR out of the pack of the NAR named from, which has one chunk.
func moveOf(from, to string, id index.NARID, name string, number int) *index.Move {
	return &index.Move{
		From:   "pack-" + from,
		To:     index.Pack{Name: to, Size: 9},
		Chunks: []index.MovedChunk{{Hash: sum("chunk " + from), From: 1, To: 4}},
		NARs:   []index.MovedNAR{{ID: id, Index: number, Was: []byte("recipe of " + name), Recipe: []byte("moved " + name), Tag: "tag of moved " + name}},
	}
}

func (s *suite) narsIn(pack string) (ids []index.NARID) {
	s.Helper()
	for n, err := range s.c.NARsIn(s.Context(), pack) {
		s.ok(err)
		whole, err := s.c.NAR(s.Context(), n.Hash)
		s.ok(err)
		s.equal(n, whole)
		ids = append(ids, n.ID)
	}
	return ids
}

func (s *suite) moves() {
	a := s.cache("a")
	shared := newNAR("shared", a)
	shared.Upload.Uses = []catalog.Sum{sum("chunk shared")}
	first, _, err := s.c.AddNAR(s.Context(), shared)
	s.ok(err)
	s.publish(a, path("shared", first, "shared"))
	second, _ := s.nar("second", a, "shared")
	s.publish(a, path("second", second, "second"))
	s.equal(s.narsIn("pack-shared"), []index.NARID{first, second})
	s.equal(len(s.narsIn("none")), 0)

	moved, err := s.c.MoveFrames(s.Context(), moveOf("shared", "new", second, "second", 1))
	s.ok(err)
	s.equal(moved, []index.NARID{second})
	n, err := s.c.NAR(s.Context(), sum("NAR second"))
	s.ok(err)
	s.equal(n, &index.NAR{ID: second, Hash: sum("NAR second"), Size: 1000, FileSize: 500,
		Recipe: []byte("moved second"), Packs: []string{"pack-second", "new"}, Tag: "tag of moved second"})
	p, err := s.c.Path(s.Context(), a, storePath("second").Hash())
	s.ok(err)
	s.equal(p.Tag, "tag of moved second")
	chunks, err := s.c.FindChunks(s.Context(), a, []catalog.Sum{sum("chunk shared")})
	s.ok(err)
	s.equal(chunks, []index.Chunk{{Hash: sum("chunk shared"), Pack: "new", Offset: 4, Length: 2, Size: 3, Led: true}})
	s.equal(s.narsIn("pack-shared"), []index.NARID{first})
	s.equal(s.narsIn("new"), []index.NARID{second})
	counts, err := s.c.Count(s.Context())
	s.ok(err)
	s.equal([]int64{counts.Packs, counts.PackBytes, counts.Reclaimable}, []int64{3, 1209, 0})

	// The rest follows; then the old pack is nobody's, and what found chunks in it before is told.
	_, err = s.c.MoveFrames(s.Context(), moveOf("shared", "new", first, "shared", 0))
	s.ok(err)
	counts, err = s.c.Count(s.Context())
	s.ok(err)
	s.equal([]int64{counts.Packs, counts.PackBytes, counts.Reclaimable}, []int64{3, 1209, 600})
	built := newNAR("built", a, "shared")
	built.Built = []index.Chunk{{Hash: sum("chunk shared"), Pack: "pack-shared", Offset: 1}}
	_, _, err = s.c.AddNAR(s.Context(), built)
	s.want(err, catalog.ErrGone)
	s.equal(s.expire(), []string{"pack-shared"})
	for _, name := range []string{"shared", "second"} {
		_, err = s.c.NAR(s.Context(), sum("NAR "+name))
		s.ok(err)
	}
	s.equal(s.narsIn("new"), []index.NARID{first, second})
}

// retiredPacks have chunks that nobody finds any more, for those who found them before.
func (s *suite) retiredPacks() {
	a := s.cache("a")
	old := newNAR("old", a)
	for i, name := range []string{"dead", "other", "wrong"} {
		old.Chunks = append(old.Chunks, index.Chunk{Hash: sum("chunk " + name), Pack: "pack-old", Offset: int64(10 + i), Length: 2, Size: 3})
	}
	_, _, err := s.c.AddNAR(s.Context(), old)
	s.ok(err)
	using, _ := s.nar("using", a, "old")
	s.publish(a, path("using", using, "using"))
	s.expire()
	found := func() (names []string) {
		s.Helper()
		for _, name := range []string{"old", "dead", "other", "wrong"} {
			chunks, err := s.c.FindChunks(s.Context(), a, []catalog.Sum{sum("chunk " + name)})
			s.ok(err)
			for _, c := range chunks {
				names = append(names, name+" in "+c.Pack)
			}
		}
		return names
	}
	s.equal(found(), []string{"old in pack-old", "dead in pack-old", "other in pack-old", "wrong in pack-old"})
	thin := s.thin()["pack-old"]
	move := moveOf("old", "new", using, "using", 1)
	move.Chunks = append(move.Chunks, index.MovedChunk{Hash: sum("not it"), From: 12, To: 7})
	_, err = s.c.MoveFrames(s.Context(), move)
	s.ok(err)
	s.ok(s.c.Examined(s.Context(), thin, 0))
	s.equal(found(), []string{"old in new"})

	// One that was not the chunk that it should have been is for nobody.
	built := func(name string, off int64) error {
		n := newNAR("with "+name, a, "old")
		n.Built = []index.Chunk{{Hash: sum("chunk " + name), Pack: "pack-old", Offset: off}}
		id, _, err := s.c.AddNAR(s.Context(), n)
		if err == nil {
			s.publish(a, path("with-"+name, id, "with "+name))
		}
		return err
	}
	s.want(built("wrong", 12), catalog.ErrGone)
	// One that came again meanwhile is where that is.
	s.nar("again", a)
	again := newNAR("again with other", a)
	again.Chunks = append(again.Chunks, index.Chunk{Hash: sum("chunk other"), Pack: again.Pack.Name, Offset: 5, Length: 2, Size: 3})
	_, _, err = s.c.AddNAR(s.Context(), again)
	s.ok(err)
	s.equal(found(), []string{"old in new", "other in pack-again with other"})
	s.want(built("other", 11), catalog.ErrGone)
	if p, ok := s.thin()["pack-old"]; ok {
		s.Errorf("%+v is to be examined, and nobody needs it", p)
	}
	s.ok(built("dead", 10))
	s.equal(found(), []string{"old in new", "other in pack-again with other"})
	s.expire()
	s.equal(s.thin()["pack-old"], index.ThinPack{Pack: index.Pack{Name: "pack-old", Size: 600}, Left: 1})
	s.ok(s.c.Examined(s.Context(), index.ThinPack{Pack: index.Pack{Name: "pack-old"}, Left: 2}, 70)) // not of what there is
	s.equal(found(), []string{"old in new"})
	// It stays for that one's sake, so what is in it can be found.
	s.ok(s.c.Examined(s.Context(), s.thin()["pack-old"], 70))
	s.equal(found(), []string{"old in new", "dead in pack-old"})
	s.equal(len(s.thin()), 1) // the new one
}

// rewrittenPacks are counted until they are swept; those that were only deleted are not.
func (s *suite) rewrittenPacks() {
	a := s.cache("a")
	want := func(size int64) {
		s.Helper()
		got, err := s.c.Rewritten(s.Context())
		s.ok(err)
		s.equal(got, size)
	}
	s.nar("one", a)
	id, _ := s.nar("using", a, "one")
	s.publish(a, path("using", id, "using"))
	s.expire()
	thin := s.thin()["pack-one"]
	_, err := s.c.MoveFrames(s.Context(), moveOf("one", "new", id, "using", 1))
	s.ok(err)
	s.ok(s.c.Examined(s.Context(), thin, 0))
	want(600)
	s.equal(s.thin(), map[string]index.ThinPack{"new": {Pack: index.Pack{Name: "new", Size: 9}, Left: 1}})
	s.nar("two", a)
	s.clock.Advance(61 * time.Minute)
	s.sweep()
	want(600)
	s.expire()
	want(0)
	s.equal(s.narsIn("new"), []index.NARID{id})
}

// lateMoves change nothing.
func (s *suite) lateMoves() {
	a := s.cache("a")
	id, _ := s.nar("one", a)
	s.publish(a, path("one", id, "one"))
	other := moveOf("one", "new", id, "another recipe", 0)
	number := moveOf("one", "new", id, "one", 1)
	none := moveOf("none", "new", id, "one", 0)
	unknown := moveOf("one", "new", id+1, "one", 0)
	for _, m := range []*index.Move{other, number, none, unknown, {From: "pack-one", To: index.Pack{Name: "new", Size: 9}}} {
		_, err := s.c.MoveFrames(s.Context(), m)
		s.want(err, catalog.ErrGone)
	}
	known, err := s.c.KnownPacks(s.Context(), []string{"new"})
	s.ok(err)
	s.equal(len(known), 0)
	chunks, err := s.c.FindChunks(s.Context(), a, []catalog.Sum{sum("chunk one")})
	s.ok(err)
	s.equal(len(chunks), 1)

	// Some of several come too late.
	both := moveOf("one", "new", id, "one", 0)
	both.NARs = append(both.NARs, unknown.NARs[0])
	moved, err := s.c.MoveFrames(s.Context(), both)
	s.ok(err)
	s.equal(moved, []index.NARID{id})
	many := &index.Move{From: "new", To: index.Pack{Name: "newer"}}
	for i := range 257 {
		many.NARs = append(many.NARs, index.MovedNAR{ID: id, Was: fmt.Append(nil, i)})
	}
	if _, err := s.c.MoveFrames(s.Context(), many); err == nil {
		s.Error("257 NARs are moved at once")
	}
	// A chunk that lies elsewhere by now stays there.
	twin := newNAR("twin", a)
	twin.Chunks = append(twin.Chunks, index.Chunk{Hash: sum("chunk one"), Pack: "pack-twin", Offset: 5, Length: 2, Size: 3})
	twinID, _, err := s.c.AddNAR(s.Context(), twin)
	s.ok(err)
	move := moveOf("twin", "newest", twinID, "twin", 0)
	move.Chunks = append(move.Chunks, index.MovedChunk{Hash: sum("chunk one"), From: 5, To: 6})
	_, err = s.c.MoveFrames(s.Context(), move)
	s.ok(err)
	chunks, err = s.c.FindChunks(s.Context(), a, []catalog.Sum{sum("chunk one")})
	s.ok(err)
	s.equal(chunks[0].Pack, "new")
}

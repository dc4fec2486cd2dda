package indextest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
)

func (s *suite) publish(cache catalog.CacheID, p *index.Path) {
	s.Helper()
	there, added, err := s.c.Publish(s.Context(), cache, p, nil, Unchecked())
	s.ok(err)
	if !added {
		s.Error("not added")
	}
	p.Published = s.clock.Now()
	s.equal(there, p)
}

func (s *suite) all(cache catalog.CacheID, damaged bool) (names []string) {
	s.Helper()
	list := s.c.AllPaths
	if damaged {
		list = s.c.WithheldPaths
	}
	for p, err := range list(s.Context(), cache) {
		s.ok(err)
		names = append(names, p.Info.Path.Name())
	}
	return names
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
	there, added, err := s.c.Publish(s.Context(), a, second, nil, Unchecked())
	s.ok(err)
	if added {
		s.Error("another NAR took the place of the first")
	}
	s.equal(there, p)
	_, _, err = s.c.Publish(s.Context(), a, path("q", 999, "x"), nil, Unchecked())
	s.want(err, catalog.ErrGone)
	_, _, err = s.c.Publish(s.Context(), 999, path("q", id, "one"), nil, Unchecked())
	s.want(err, catalog.ErrGone)

	bare := &index.Path{NAR: id, FileSize: 500, Tag: "tag of one", Info: nix.PathInfo{Path: storePath("bare"), NARHash: p.Info.NARHash, NARSize: 1000}}
	there, _, err = s.c.Publish(s.Context(), a, bare, nil, Unchecked())
	s.ok(err)
	if there.Info.RegistrationTime != s.clock.Now() {
		s.Errorf("registered at %v", there.Info.RegistrationTime)
	}
	for i := range 450 {
		s.ok(errOf(s.c.Publish(s.Context(), b, path(fmt.Sprint("n", i), id, "one"), nil, Unchecked())))
	}
	names := s.all(b, false)
	slices.Sort(names)
	if len(names) != 450 || len(slices.Compact(names)) != 450 {
		s.Errorf("%d paths", len(names))
	}
	counts, err := s.c.CountIn(s.Context(), b)
	s.ok(err)
	s.equal(counts, index.Counts{Caches: 1, Paths: 450, NARs: 1, NARBytes: 450_000, FileBytes: 225_000})
	counts, err = s.c.Count(s.Context())
	s.ok(err)
	s.equal(counts, index.Counts{Caches: 2, Paths: 452, NARs: 2, Chunks: 2, Packs: 2, NARBytes: 2000, FileBytes: 1000, PackBytes: 1200, Unpublished: 500})
	s.ok(s.deletePath(a, p.Info.Path.Hash()))
	s.want(s.deletePath(a, p.Info.Path.Hash()), catalog.ErrNotFound)
	_, err = s.c.Path(s.Context(), a, p.Info.Path.Hash())
	s.want(err, catalog.ErrNotFound)
}

func (s *suite) signatures() {
	a := s.cache("a")
	id, _ := s.nar("one", a)
	p := path("p", id, "one")
	s.publish(a, p)
	hash := p.Info.Path.Hash()
	sign := func(sigs ...nix.Signature) (*index.Path, error) {
		s.Helper()
		again := path("p", id, "one")
		again.Info.Signatures = sigs
		there, added, err := s.c.Publish(s.Context(), a, again, nil, index.Basis{}) // no basis: it is there
		if added {
			s.Error("added again")
		}
		return there, err
	}
	s.ok(second(sign(signature("two"), signature("one"))))
	there, err := sign(signature("three"))
	s.ok(err)
	want := []nix.Signature{signature("one"), signature("two"), signature("three")}
	s.equal(there.Info.Signatures, want)
	got, err := s.c.Path(s.Context(), a, hash)
	s.ok(err)
	s.equal(got.Info.Signatures, want)
	var many []nix.Signature
	for i := range 62 {
		many = append(many, signature(fmt.Sprint("k", i)))
	}
	s.want(second(sign(many...)), catalog.ErrConflict)
	got, err = s.c.Path(s.Context(), a, hash)
	s.ok(err)
	s.equal(got.Info.Signatures, want)
	s.ok(second(sign(many[:61]...)))
	s.ok(s.deletePath(a, hash))
	s.want(second(sign(signature("four"))), catalog.ErrChanged) // it does not come back by that
}

// A path whose NAR is lost can be pushed as another build made it.
func (s *suite) replaceWithheld() {
	a := s.cache("a")
	id, _ := s.nar("one", a)
	other, _ := s.nar("two", a)
	p, second := path("p", id, "one"), path("p", other, "two")
	build := strings.Repeat("ab", 20)
	_, _, err := s.c.Publish(s.Context(), a, p, []index.DebugInfo{{BuildID: build, Path: p.Info.Path.Hash(), Member: "lib/x"}}, Unchecked())
	s.ok(err)
	s.withhold(id, index.Whole, index.Damaged)
	there, added, err := s.c.Publish(s.Context(), a, second, []index.DebugInfo{{BuildID: build, Path: p.Info.Path.Hash(), Member: "lib/y"}}, Unchecked())
	s.ok(err)
	if !added || there.NAR != other {
		s.Errorf("NAR %d is there, added %v", there.NAR, added)
	}
	second.Published = s.clock.Now()
	got, err := s.c.Path(s.Context(), a, p.Info.Path.Hash())
	s.ok(err)
	s.equal(got, second)
	debug, err := s.c.DebugInfo(s.Context(), a, build)
	s.ok(err)
	s.equal(debug.Member, "lib/y")
	s.withhold(id, index.Damaged, index.Whole)
	got, err = s.c.Path(s.Context(), a, p.Info.Path.Hash())
	s.ok(err)
	s.equal(got, second)
	for range 2 { // what led to the first NAR goes, and then the NAR
		s.clock.Advance(61 * time.Minute)
		s.sweep()
	}
	_, err = s.c.NAR(s.Context(), sum("NAR one"))
	s.want(err, catalog.ErrNotFound)
}

func (s *suite) debug() {
	a := s.cache("a")
	id, _ := s.nar("one", a)
	p := path("p", id, "one")
	build := strings.Repeat("ab", 20)
	_, _, err := s.c.Publish(s.Context(), a, p, []index.DebugInfo{{BuildID: build, Path: p.Info.Path.Hash(), Member: "lib/x"}}, Unchecked())
	s.ok(err)
	got, err := s.c.DebugInfo(s.Context(), a, build)
	s.ok(err)
	s.equal(got, &index.DebugInfo{BuildID: build, Path: p.Info.Path.Hash(), Member: "lib/x"})
	for _, id := range []string{strings.Repeat("cd", 20), "", "x"} {
		_, err = s.c.DebugInfo(s.Context(), a, id)
		s.want(err, catalog.ErrNotFound)
	}
	b := s.cache("b")
	_, err = s.c.DebugInfo(s.Context(), b, build)
	s.want(err, catalog.ErrNotFound)
	s.withhold(id, index.Whole, index.Damaged)
	_, err = s.c.DebugInfo(s.Context(), a, build)
	s.want(err, catalog.ErrNotFound)
	s.withhold(id, index.Damaged, index.Whole)
	// Any path with the same build ID will do, as long as there is one.
	other, _ := s.nar("two", a)
	q := path("q", other, "two")
	_, _, err = s.c.Publish(s.Context(), a, q, []index.DebugInfo{{BuildID: build, Path: q.Info.Path.Hash(), Member: "lib/y"}}, Unchecked())
	s.ok(err)
	of := func(want *index.DebugInfo) {
		s.Helper()
		got, err := s.c.DebugInfo(s.Context(), a, build)
		s.ok(err)
		s.equal(got, want)
	}
	ofP, ofQ := &index.DebugInfo{BuildID: build, Path: p.Info.Path.Hash(), Member: "lib/x"}, &index.DebugInfo{BuildID: build, Path: q.Info.Path.Hash(), Member: "lib/y"}
	for _, gone := range []struct {
		nar  index.NARID
		left *index.DebugInfo
	}{{id, ofQ}, {other, ofP}} {
		s.withhold(gone.nar, index.Whole, index.Damaged)
		of(gone.left)
		s.withhold(gone.nar, index.Damaged, index.Whole)
	}
	s.ok(s.deletePath(a, p.Info.Path.Hash()))
	of(ofQ)
	_, _, err = s.c.Publish(s.Context(), a, p, []index.DebugInfo{*ofP}, Unchecked())
	s.ok(err)
	_, err = s.c.Delete(s.Context(), &index.Deletion{Cache: a, Paths: hashes("q")})
	s.ok(err)
	of(ofP)
	s.ok(s.deletePath(a, p.Info.Path.Hash()))
	_, err = s.c.DebugInfo(s.Context(), a, build)
	s.want(err, catalog.ErrNotFound)
}

func (s *suite) refusedPaths() {
	a := s.cache("a")
	id, _ := s.nar("one", a)
	p := path("p", id, "one")
	for i := range 64 {
		p.Info.Signatures = append(p.Info.Signatures, signature(fmt.Sprint("k", i)))
	}
	_, _, err := s.c.Publish(s.Context(), a, p, nil, Unchecked())
	s.want(err, catalog.ErrConflict)
	s.withhold(id, index.Whole, index.Damaged)
	p.Info.Signatures = p.Info.Signatures[:64]
	_, _, err = s.c.Publish(s.Context(), a, p, nil, Unchecked())
	s.want(err, catalog.ErrGone)
	s.equal(s.all(a, true), []string(nil))
	s.withhold(id, index.Damaged, index.Whole)
	s.publish(a, p)
	p.Info.Signatures = []nix.Signature{signature("one-too-many")}
	_, _, err = s.c.Publish(s.Context(), a, p, nil, Unchecked())
	s.want(err, catalog.ErrConflict)
	s.want(s.deletePath(999, p.Info.Path.Hash()), catalog.ErrNotFound)
}

// endorsements are signatures of paths that another source has, and of those that are published
// too.
func (s *suite) endorsements() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	p := path("p", id, "one")
	p.Info.Extra = []nix.Field{{Name: "Provenance", Value: "x"}}
	hash, one, two := p.Info.Path.Hash(), catalog.Sum(p.Info.NARHash.Sum()), sum("NAR two")
	want := func(cache catalog.CacheID, nar catalog.Sum, fields []nix.Field, names ...string) {
		s.Helper()
		sigs, extra, err := s.c.EndorsementsOf(s.Context(), cache, hash, nar)
		s.ok(err)
		var got []string
		for _, sig := range sigs {
			got = append(got, sig.Name)
		}
		s.equal(got, names)
		s.equal(extra, fields)
	}
	want(a, one, nil)
	s.want(s.c.Endorse(s.Context(), 999, hash, one, []nix.Signature{signature("x")}), catalog.ErrGone)
	s.ok(s.c.Endorse(s.Context(), a, hash, two, []nix.Signature{signature("of-two")}))
	want(a, two, nil, "of-two")
	s.ok(s.c.Endorse(s.Context(), a, hash, one, []nix.Signature{signature("x")}))
	s.ok(s.c.Endorse(s.Context(), a, hash, one, []nix.Signature{signature("x"), signature("y")}))
	want(a, one, nil, "x", "y")
	want(a, two, nil)
	want(b, one, nil)
	s.publish(a, p)
	want(a, one, p.Info.Extra, "one", "x", "y")
	var many []nix.Signature
	for i := range 63 {
		many = append(many, signature(fmt.Sprint("k", i)))
	}
	s.want(s.c.Endorse(s.Context(), a, hash, one, many), catalog.ErrConflict)
	s.ok(s.c.DeleteCache(s.Context(), a))
	want(a, one, nil)
}

// wholePaths come back as they were given, whatever they lack.
func (s *suite) wholePaths() {
	dir := nix.StoreDir("/x/y/store")
	a := &catalog.Cache{Name: "a", StoreDir: dir, Sources: []string{catalog.SourceDepot}, Created: s.clock.Now()}
	s.ok(s.c.AddCache(s.Context(), a))
	id, _ := s.nar("one", a.ID)
	ca, err := nix.ParseContentAddress("fixed:r:sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s")
	s.ok(err)
	other, err := nix.NewSignature("ml-dsa-87", make([]byte, 4627))
	s.ok(err)
	bare := &index.Path{NAR: id, FileSize: 500, Tag: "tag of one", Info: nix.PathInfo{Path: pathIn(dir, "bare"), NARHash: nix.SHA256Sum(sum("NAR one")), NARSize: 1000, RegistrationTime: s.clock.Now()}}
	full := &index.Path{NAR: id, FileSize: 500, Tag: "tag of one", Info: nix.PathInfo{Path: pathIn(dir, "full"), NARHash: nix.SHA256Sum(sum("NAR one")), NARSize: 1000, RegistrationTime: s.clock.Now(),
		References: inOrder(pathIn(dir, "a"), pathIn(dir, "full")), Deriver: pathIn(dir, "full.drv"), Signatures: []nix.Signature{signature("a"), signature("b"), other}, CA: ca,
		Extra: []nix.Field{{Name: "System", Value: "x86_64-linux"}, {Name: "Provenance", Value: `{"type":"copied","from":"a: é"}`}}}}
	for _, p := range []*index.Path{bare, full} {
		s.publish(a.ID, p)
		got, err := s.c.Path(s.Context(), a.ID, p.Info.Path.Hash())
		s.ok(err)
		s.equal(got, p)
	}
}

// order is that of path hashes, and goes on after any.
func (s *suite) order() {
	a := s.cache("a")
	id, _ := s.nar("one", a)
	var hashes []nix.PathHash
	for i := range 260 {
		p := path(fmt.Sprint("n", i), id, "one")
		if i%100 == 0 { // a page has less of these
			for j := range 15_000 {
				p.Info.References = append(p.Info.References, storePath(fmt.Sprint("ref", j)))
			}
			inOrder(p.Info.References...)
		}
		s.publish(a, p)
		hashes = append(hashes, p.Info.Path.Hash())
	}
	slices.SortFunc(hashes, func(a, b nix.PathHash) int { return slices.Compare(a[:], b[:]) })
	var got []nix.PathHash
	for p, err := range s.c.AllPaths(s.Context(), a) {
		s.ok(err)
		got = append(got, p.Info.Path.Hash())
	}
	if !slices.Equal(got, hashes) {
		s.Errorf("%d paths, or not in order", len(got))
	}
	for range s.c.AllPaths(s.Context(), a) {
		break
	}
}

// referredPaths are referred to before they are published, or after they are gone, in one cache.
func (s *suite) referredPaths() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	want := func(cache catalog.CacheID, name string, want bool) {
		s.Helper()
		got, err := s.c.Basis(s.Context(), cache, storePath(name).Hash())
		s.ok(err)
		if got.Referred != want {
			s.Errorf("%s is referred to: %v", name, got.Referred)
		}
	}
	p := path("p", id, "one") // it refers to a-p and b-p
	p.Info.References = inOrder(append(p.Info.References, p.Info.Path)...)
	want(a, "a-p", false)
	s.publish(a, p)
	want(a, "a-p", true)
	want(a, "b-p", true)
	want(a, "c-p", false)
	want(b, "a-p", false)
	second, _ := s.nar("two", a)
	first := path("a-p", second, "two")
	first.Info.References = []nix.StorePath{storePath("p")}
	s.publish(a, first)
	want(a, "b-p", true)
	s.ok(s.deletePath(a, storePath("a-p").Hash()))
	want(a, "a-p", true)
	s.publish(a, first)

	// What is withheld, and then comes with other bytes, may be referred to too.
	s.withhold(second, index.Whole, index.Damaged)
	want(a, "a-p", true)
	s.ok(s.c.DeleteCache(s.Context(), a))
	want(a, "b-p", false)
	want(a, "a-p", false)
}

// danglingReferences are told once each, with a path that has it, until that goes or the reference
// is published.
func (s *suite) danglingReferences() {
	a, b := s.cache("a"), s.cache("b")
	id, _ := s.nar("one", a)
	want := func(cache catalog.CacheID, want ...string) {
		s.Helper()
		var got []string
		var last nix.PathHash
		for d, err := range s.c.DanglingReferences(s.Context(), cache) {
			s.ok(err)
			hash := d.To.Hash()
			if bytes.Compare(hash[:], last[:]) <= 0 {
				s.Errorf("%s comes too late", d.To)
			}
			last = hash
			if d.To != storePath(d.To.Name()) {
				s.Errorf("%s has another hash", d.To)
			}
			got = append(got, d.To.Name()+" by "+d.From.Name())
		}
		slices.Sort(got)
		s.equal(got, want)
	}
	want(a)
	publish := func(cache catalog.CacheID, p *index.Path, elsewhere ...nix.StorePath) {
		s.Helper()
		told := *p
		told.Elsewhere = elsewhere
		there, _, err := s.c.Publish(s.Context(), cache, &told, nil, Unchecked())
		s.ok(err)
		p.Published = s.clock.Now()
		s.equal(there, p)
	}
	p := path("p", id, "one") // it refers to a-p and b-p
	publish(a, p, p.Info.References...)
	publish(a, p) // once more, without those
	want(a, "a-p by p", "b-p by p")
	want(b)

	// What is published is not one, and neither is it while it is withheld.
	second, _ := s.nar("two", a)
	first := path("a-p", second, "two")
	first.Info.References = nil
	s.publish(a, first)
	want(a, "b-p by p")
	s.withhold(second, index.Whole, index.Damaged)
	want(a, "b-p by p")
	withheld := func(cache catalog.CacheID, want ...string) {
		s.Helper()
		var got []string
		for path, err := range s.c.WithheldPaths(s.Context(), cache) {
			s.ok(err)
			got = append(got, path.Info.Path.Name())
		}
		s.equal(got, want)
	}
	withheld(a, "a-p")
	withheld(b)
	s.withhold(second, index.Damaged, index.Whole)
	withheld(a)
	s.ok(s.deletePath(a, first.Info.Path.Hash()))
	want(a, "a-p by p", "b-p by p")

	// Of many that have it, one is named.
	var many []string
	for i := range 250 {
		name := fmt.Sprintf("n%03d", i)
		n := path(name, id, "one")
		publish(b, n, n.Info.References...)
		many = append(many, "a-"+name+" by "+name, "b-"+name+" by "+name)
	}
	slices.Sort(many)
	want(b, many...)
	q := path("q", id, "one")
	q.Info.References = []nix.StorePath{storePath("b-p")}
	publish(a, q, q.Info.References...)
	s.ok(s.deletePath(a, p.Info.Path.Hash()))
	want(a, "b-p by q")
	s.ok(s.deletePath(a, q.Info.Path.Hash()))
	want(a)
	s.ok(s.c.DeleteCache(s.Context(), b))
	want(b)
}

// second is the error of two results.
func second[T any](_ T, err error) error { return err }

// bases keep a path from being published when what was looked at has changed since.
func (s *suite) bases() {
	a, b := s.cache("a"), s.cache("b")
	basis := func(name string, visited ...string) index.Basis {
		s.Helper()
		basis, err := s.c.Basis(s.Context(), a, storePath(name).Hash())
		s.ok(err)
		for i, v := range visited {
			if i == 0 {
				basis.Visited = make(map[nix.PathHash]bool)
			}
			basis.Visited[storePath(v).Hash()] = true
		}
		return basis
	}
	none := basis("none")
	if none.Referred || none.Deletions != 0 {
		s.Errorf("where there is nothing, the basis is %v", none)
	}

	// A path that no other refers to cannot close a cycle. One that others refer to by now may, so
	// a search is needed.
	early, other := basis("library"), basis("other")
	s.ok(s.publishingOn(basis("program"), a, "program", "library"))
	s.want(s.publishingOn(early, a, "library"), catalog.ErrChanged)
	s.ok(s.publishingOn(other, a, "other", "missing"))
	s.ok(s.publishingOn(early, b, "library"))
	if !basis("library").Referred {
		s.Error("what is referred to is not Referred")
	}
	s.want(s.publishingOn(basis("library"), a, "library"), catalog.ErrChanged)

	// A visited path that is published since, in this cache, makes the search worth nothing. Others
	// do not.
	searched := basis("library", "a", "b")
	s.ok(s.publishing(b, "a"))
	s.ok(s.publishing(a, "c"))
	s.ok(s.publishing(a, "b"))
	s.want(s.publishingOn(searched, a, "library", "a", "b"), catalog.ErrChanged)
	searched = basis("library", "a", "b")
	s.ok(s.deletePath(a, storePath("c").Hash())) // the last one: the next is a new one nevertheless
	s.ok(s.deletePath(a, storePath("b").Hash()))
	s.ok(s.publishing(a, "b", "library")) // with another reference than before
	s.want(s.publishingOn(searched, a, "library", "a", "b"), catalog.ErrChanged)
	searched = basis("library", "a", "b")
	s.ok(s.publishingOn(searched, a, "library", "a", "b"))

	// What was deleted since is not referred to, unless references may be missing. It cannot come
	// back unnoticed either.
	before, ofB := basis("late", "b"), basis("b")
	partial := before
	partial.Partial = true
	_, err := s.c.Delete(s.Context(), &index.Deletion{Cache: a, Paths: hashes("b"), Referrers: index.KeepReferrers})
	s.ok(err)
	s.want(s.publishingOn(before, a, "late", "b"), catalog.ErrChanged)
	s.ok(s.publishingOn(before, a, "late-itself", "late-itself", "program"))
	s.ok(s.publishingOn(partial, a, "late", "b"))
	s.want(s.publishingOn(ofB, a, "b"), catalog.ErrChanged)

	// What takes the place of a path that is withheld is looked at like any other.
	p, err := s.c.Path(s.Context(), a, storePath("program").Hash())
	s.ok(err)
	s.withhold(p.NAR, index.Whole, index.Damaged)
	nar, _, err := s.c.AddNAR(s.Context(), newNAR("again", a))
	s.ok(err)
	again := path("program", nar, "again")
	again.Info.References = []nix.StorePath{storePath("only-in-the-local-store")}
	replacing := basis("program", "only-in-the-local-store")
	_, added, err := s.c.Publish(s.Context(), a, again, nil, replacing)
	s.ok(err)
	if !added {
		s.Error("it did not take the place")
	}
}

// racedCycles are not closed: the last path of a cycle sees the others.
func (s *suite) racedCycles() {
	a := s.cache("a")
	ctx := context.WithoutCancel(s.Context())
	nar, _, err := s.c.AddNAR(ctx, newNAR("of all", a))
	s.ok(err)
	// As the core does it: it walks where a path is referred to.
	publish := func(own, ref string) error {
		p := path(own, nar, "of all")
		p.Info.References = []nix.StorePath{storePath(ref)}
		for {
			b, err := s.c.Basis(ctx, a, p.Info.Path.Hash())
			if err != nil {
				return err
			}
			b.Partial = true
			if b.Referred {
				b.Visited = make(map[nix.PathHash]bool)
				for next := hashes(ref); len(next) > 0; {
					hash := next[0]
					next = next[1:]
					if hash == p.Info.Path.Hash() {
						return errCycle
					}
					if b.Visited[hash] {
						continue
					}
					b.Visited[hash] = true
					for r, err := range s.c.ReferencesOf(ctx, a, []nix.PathHash{hash}) {
						if err != nil {
							return err
						}
						for _, ref := range r.References {
							next = append(next, ref.Hash())
						}
					}
				}
			}
			if _, _, err = s.c.Publish(ctx, a, p, nil, b); !errors.Is(err, catalog.ErrChanged) {
				return err
			}
		}
	}
	const length = 4
	for round := range 40 {
		var refused atomic.Int64
		var pushing sync.WaitGroup
		for i := range length {
			pushing.Go(func() {
				err := publish(fmt.Sprint(round, "-", i), fmt.Sprint(round, "-", (i+1)%length))
				if errors.Is(err, errCycle) {
					refused.Add(1)
				} else if err != nil {
					s.Error(err)
				}
			})
		}
		pushing.Wait()
		if n := refused.Load(); n != 1 {
			s.Errorf("%d paths of a cycle were refused, want 1", n)
		}
	}
}

var errCycle = errors.New("a cycle")

// references are found of many paths at once.
func (s *suite) references() {
	a, b := s.cache("a"), s.cache("b")
	var names []string
	for i := range index.MaxAsked {
		names = append(names, fmt.Sprint("n", i))
	}
	want := make(map[nix.StorePath]index.Referrer)
	for i, name := range names[:100] {
		s.ok(s.publishing(a, name, name, "library"))
		r := index.Referrer{Path: storePath(name), References: inOrder(storePath(name), storePath("library"))}
		if i == 7 {
			p, err := s.c.Path(s.Context(), a, r.Path.Hash())
			s.ok(err)
			s.withhold(p.NAR, index.Whole, index.Damaged)
			r.Withheld = true
		}
		want[r.Path] = r
	}
	got := make(map[nix.StorePath]index.Referrer)
	found := 0
	for r, err := range s.c.ReferencesOf(s.Context(), a, hashes(names...)) {
		s.ok(err)
		got[r.Path] = r
		found++
	}
	s.equal(got, want)
	s.equal(found, len(want))
	for range s.c.ReferencesOf(s.Context(), a, hashes(names...)) {
		break
	}
	for _, names := range [][]string{nil, {"n0"}} {
		for r, err := range s.c.ReferencesOf(s.Context(), b, hashes(names...)) {
			s.Errorf("another cache has %v, %v", r, err)
		}
	}
	var refused error
	for _, err := range s.c.ReferencesOf(s.Context(), a, make([]nix.PathHash, index.MaxAsked+1)) {
		refused = err
	}
	if refused == nil {
		s.Error("more than the most are asked for at once")
	}
}

// referrers are found from what they refer to, published or not, page by page.
func (s *suite) referrers() {
	a, b := s.cache("a"), s.cache("b")
	for i := range 450 {
		s.ok(s.publishing(a, fmt.Sprint("n", i), fmt.Sprint("n", i), "library", "other"))
	}
	s.ok(s.publishing(a, "library", "library"))
	s.ok(s.publishing(b, "library"))
	found := make(map[index.Reference]bool)
	for r, err := range s.c.Referrers(s.Context(), a, hashes("library", "n7", "other", "none")) {
		s.ok(err)
		if r.To != storePath("library") && r.To != storePath("other") || found[r] {
			s.Errorf("%s refers to %s, found before: %v", r.From, r.To, found[r])
		}
		found[r] = true
	}
	s.equal(len(found), 900)
	for range s.c.Referrers(s.Context(), a, hashes("library")) {
		break
	}
	for r, err := range s.c.Referrers(s.Context(), b, hashes("library")) {
		s.Errorf("another cache has %v, %v", r, err)
	}
	s.ok(s.deletePath(a, storePath("n7").Hash()))
	left := 0
	for _, err := range s.c.Referrers(s.Context(), a, hashes("library")) {
		s.ok(err)
		left++
	}
	s.equal(left, 449)
	var refused error
	for _, err := range s.c.Referrers(s.Context(), a, make([]nix.PathHash, index.MaxAsked+1)) {
		refused = err
	}
	if refused == nil {
		s.Error("more than the most are asked for at once")
	}
}

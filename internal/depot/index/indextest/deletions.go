package indextest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
)

func hashes(names ...string) (all []nix.PathHash) {
	for _, name := range names {
		all = append(all, storePath(name).Hash())
	}
	return all
}

// sorted are the paths of names in the order of their hashes.
func sorted(names ...string) (all []nix.StorePath) {
	for _, name := range names {
		all = append(all, storePath(name))
	}
	slices.SortFunc(all, func(a, b nix.StorePath) int {
		x, y := a.Hash(), b.Hash()
		return bytes.Compare(x[:], y[:])
	})
	return all
}

// paths are those that a cache has.
func (s *suite) pathsOf(cache catalog.CacheID) (all []nix.StorePath) {
	s.Helper()
	for p, err := range s.c.AllPaths(s.Context(), cache) {
		s.ok(err)
		all = append(all, p.Info.Path)
	}
	return all
}

// publishing publishes a path that refers to others.
func (s *suite) publishing(cache catalog.CacheID, name string, refs ...string) error {
	s.Helper()
	return s.publishingOn(Unchecked(), cache, name, refs...)
}

// publishingOn is publishing after something else was looked at.
func (s *suite) publishingOn(b index.Basis, cache catalog.CacheID, name string, refs ...string) error {
	s.Helper()
	nar, _, err := s.c.AddNAR(s.Context(), newNAR("of "+name, cache))
	s.ok(err)
	p := path(name, nar, "of "+name)
	p.Info.References = nil
	for _, ref := range refs {
		p.Info.References = append(p.Info.References, storePath(ref))
	}
	_, _, err = s.c.Publish(s.Context(), cache, p, []index.DebugInfo{{BuildID: "1234567890123456789012345678901234567890", Path: p.Info.Path.Hash(), Member: "x"}}, b)
	return err
}

func (s *suite) deletions() {
	a, b := s.cache("a"), s.cache("b")
	for _, name := range []string{"one", "two", "three"} {
		s.ok(s.publishing(a, name, name)) // to itself, which is no hindrance
	}
	id, _, err := s.c.AddNAR(s.Context(), newNAR("of two", b))
	s.ok(err)
	s.publish(b, path("two", id, "of two"))
	s.publish(a, path("twin", id, "of two"))
	want := &index.Deleted{Paths: sorted("one", "two"), FileBytes: 500}
	d := &index.Deletion{Cache: a, Paths: append(hashes("one", "two"), hashes("one")...), DryRun: true}
	got, err := s.c.Delete(s.Context(), d)
	s.ok(err)
	s.equal(got, want)
	s.equal(s.pathsOf(a), sorted("one", "two", "three", "twin"))

	// All or none.
	d.DryRun = false
	d.Paths = hashes("one", "none")
	_, err = s.c.Delete(s.Context(), d)
	s.want(err, catalog.ErrNotFound)
	s.equal(s.pathsOf(a), sorted("one", "two", "three", "twin"))
	d.Paths = hashes("one", "two")
	got, err = s.c.Delete(s.Context(), d)
	s.ok(err)
	s.equal(got, want)
	s.equal(s.pathsOf(a), sorted("three", "twin"))
	s.equal(s.pathsOf(b), sorted("two"))
	debug, err := s.c.DebugInfo(s.Context(), a, "1234567890123456789012345678901234567890")
	s.ok(err)
	s.equal(debug.Path, storePath("three").Hash())
	_, err = s.c.Delete(s.Context(), d)
	s.want(err, catalog.ErrNotFound)
	_, err = s.c.Delete(s.Context(), &index.Deletion{Cache: 99, Paths: hashes("three")})
	s.want(err, catalog.ErrNotFound)

	unpublished := func() int64 {
		s.Helper()
		counts, err := s.c.Count(s.Context())
		s.ok(err)
		return counts.Unpublished
	}
	s.equal(unpublished(), int64(500)) // of one: two still has a NAR in b, and twin the same one

	// The NAR that two paths had goes with the last of them, and so does one that is withheld.
	for i, cache := range []catalog.CacheID{b, a} {
		got, err = s.c.Delete(s.Context(), &index.Deletion{Cache: cache, Paths: hashes([]string{"two", "twin"}[i])})
		s.ok(err)
		s.equal(got.FileBytes, int64(500*i))
		s.equal(unpublished(), int64(500+500*i))
	}
	three, err := s.c.Path(s.Context(), a, storePath("three").Hash())
	s.ok(err)
	s.withhold(three.NAR, index.Whole, index.Damaged)
	got, err = s.c.Delete(s.Context(), &index.Deletion{Cache: a, Paths: hashes("three")})
	s.ok(err)
	s.equal(got.Paths, sorted("three"))
	s.expire()
	counts, err := s.c.Count(s.Context())
	s.ok(err)
	s.equal(counts, index.Counts{Caches: 2})
}

// referredDeletions leave no path without one that it refers to, unless that is wanted.
func (s *suite) referredDeletions() {
	a := s.cache("a")
	fill := func() {
		s.Helper()
		s.ok(s.publishing(a, "early", "library")) // before what it refers to
		s.ok(s.publishing(a, "library"))
		s.ok(s.publishing(a, "program", "library", "program"))
		s.ok(s.publishing(a, "system", "program"))
		s.ok(s.publishing(a, "other"))
	}
	fill()
	deleting := func(how index.OnReferrers, names ...string) (*index.Deleted, error) {
		return s.c.Delete(s.Context(), &index.Deletion{Cache: a, Paths: hashes(names...), Referrers: how})
	}
	_, err := deleting(index.RefuseReferrers, "program", "other")
	s.want(err, catalog.ErrConflict)
	referred := &index.ReferredError{}
	if r, ok := err.(interface{ Unwrap() error }); !ok {
		s.Fatalf("refused with %v", err)
	} else if referred, ok = r.Unwrap().(*index.ReferredError); !ok {
		s.Fatalf("refused with %v", err)
	}
	s.equal(referred, &index.ReferredError{Path: storePath("program"), By: sorted("system")})
	s.equal(len(s.pathsOf(a)), 5)
	before, err := s.c.Basis(s.Context(), a, storePath("late").Hash())
	s.ok(err)
	got, err := deleting(index.DeleteReferrers, "library")
	s.ok(err)
	s.equal(got.Paths, sorted("early", "library", "program", "system"))
	s.equal(s.pathsOf(a), sorted("other"))

	// One that was checked before is not published after, unless what it refers to is there again.
	s.want(s.publishingOn(before, a, "late", "other", "program"), catalog.ErrChanged)
	s.equal(s.pathsOf(a), sorted("other"))
	s.ok(s.publishingOn(before, a, "late-other", "other"))
	_, err = deleting(index.RefuseReferrers, "late-other")
	s.ok(err)
	s.ok(s.publishing(a, "library"))
	s.ok(s.publishing(a, "program", "library"))
	s.ok(s.publishingOn(before, a, "late", "other", "program"))
	got, err = deleting(index.RefuseReferrers, "late", "library", "program", "other")
	s.ok(err)
	s.equal(got.Paths, sorted("late", "library", "other", "program"))

	// Those who want it so may have it so.
	fill()
	got, err = deleting(index.KeepReferrers, "library")
	s.ok(err)
	s.equal(got.Paths, sorted("library"))
	s.ok(s.publishing(a, "late", "library"))
	s.equal(s.pathsOf(a), sorted("early", "program", "system", "other", "late"))

	// Of many referrers some are named.
	s.ok(s.publishing(a, "library"))
	for _, name := range []string{"1", "2", "3", "4", "5", "6"} {
		s.ok(s.publishing(a, "user-"+name, "library"))
	}
	_, err = deleting(index.RefuseReferrers, "library")
	s.want(err, catalog.ErrConflict)
}

// fileDeletions take along what says that a path was built, and logs when nothing is left that was built with them.
func (s *suite) fileDeletions() {
	a, b := s.cache("a"), s.cache("b")
	publish := func(cache catalog.CacheID, name, deriver string) {
		s.Helper()
		nar, _, err := s.c.AddNAR(s.Context(), newNAR("of "+name, cache))
		s.ok(err)
		p := path(name, nar, "of "+name)
		p.Info.References, p.Info.Deriver = nil, nix.StorePath{}
		if deriver != "" {
			p.Info.Deriver = storePath(deriver)
		}
		s.ok(errOf(s.c.Publish(s.Context(), cache, p, nil, Unchecked())))
	}
	put := func(cache catalog.CacheID, key, built string) error {
		f := &index.File{Key: key, Content: []byte(key)}
		if built != "" {
			f.Path = storePath(built)
		}
		return s.c.PutFile(s.Context(), cache, f)
	}
	update := func(b index.Basis, key, built string) error {
		return s.c.UpdateFile(s.Context(), a, &index.File{Key: key, Path: storePath(built)}, b, func([]byte) ([]byte, error) { return []byte(key), nil })
	}
	log := func(drv string) string { return index.LogKey(storePath(drv)) }
	want := func(cache catalog.CacheID, keys ...string) {
		s.Helper()
		var there []string
		for key, err := range s.c.AllFiles(s.Context(), cache, "") {
			s.ok(err)
			there = append(there, key)
		}
		slices.Sort(keys)
		s.equal(there, keys)
	}
	deleting := func(dry bool, names ...string) {
		s.Helper()
		_, err := s.c.Delete(s.Context(), &index.Deletion{Cache: a, Paths: hashes(names...), DryRun: dry})
		s.ok(err)
	}
	for _, cache := range []catalog.CacheID{a, b} {
		publish(cache, "lib", "lib.drv")
		publish(cache, "lib-dev", "lib.drv")
		publish(cache, "lib.drv", "")
		publish(cache, "other", "")
		for _, key := range []string{log("lib.drv"), log("other.drv"), "k"} {
			s.ok(put(cache, key, ""))
		}
		s.ok(put(cache, "realisations/lib", "lib"))
		s.ok(put(cache, "build-trace-v2/lib", "lib"))
		s.ok(put(cache, "realisations/dev", "lib-dev"))
	}
	all := []string{log("lib.drv"), log("other.drv"), "k", "realisations/lib", "build-trace-v2/lib", "realisations/dev"}
	before, err := s.c.Basis(s.Context(), a, storePath("lib").Hash())
	s.ok(err)
	deleting(true, "lib", "lib-dev", "lib.drv", "other")
	want(a, all...)
	deleting(false, "lib", "lib.drv", "other")
	want(a, log("lib.drv"), log("other.drv"), "k", "realisations/dev")
	want(b, all...)

	// Who has looked before whether it is there comes too late, until it is there again.
	s.want(update(before, "realisations/lib", "lib"), catalog.ErrChanged)
	want(a, log("lib.drv"), log("other.drv"), "k", "realisations/dev")
	publish(a, "lib", "lib.drv")
	s.ok(update(before, "realisations/lib", "lib"))
	s.ok(put(a, "realisations/lib", "lib-dev")) // it was something else
	deleting(false, "lib")
	want(a, log("lib.drv"), log("other.drv"), "k", "realisations/dev", "realisations/lib")
	deleting(false, "lib-dev")
	want(a, log("other.drv"), "k")

	// A derivation that has built nothing has a log too.
	publish(a, "other.drv", "")
	deleting(false, "other.drv")
	want(a, "k")
}

// racedDeletions leave no path without one that it refers to, whatever others publish meanwhile.
func (s *suite) racedDeletions() {
	a := s.cache("a")
	ctx := context.WithoutCancel(s.Context())
	nar, _, err := s.c.AddNAR(ctx, newNAR("of all", a))
	s.ok(err)
	publish := func(name string, refs ...string) error {
		p := path(name, nar, "of all")
		p.Info.References = nil
		b, err := s.c.Basis(ctx, a, p.Info.Path.Hash())
		if err != nil {
			return err
		}
		b.Visited = map[nix.PathHash]bool{} // there are no cycles
		for _, ref := range refs {          // as a door looks for them first
			if _, err := s.c.Path(ctx, a, storePath(ref).Hash()); err != nil {
				return err
			}
			p.Info.References = append(p.Info.References, storePath(ref))
		}
		_, _, err = s.c.Publish(ctx, a, p, nil, b)
		return err
	}
	var pushing sync.WaitGroup
	for i := range 6 {
		pushing.Go(func() {
			last := "library"
			for j := range 60 {
				name := fmt.Sprint("program-", i, "-", j)
				switch err := publish(name, "library", last); {
				case err == nil:
					last = name
				case errors.Is(err, catalog.ErrNotFound), errors.Is(err, catalog.ErrChanged):
					if err := publish("library"); err != nil {
						s.Error(err)
					}
					last = "library"
				default:
					s.Error(err)
				}
			}
		})
	}
	var done atomic.Bool
	deleting := make(chan int)
	go func() {
		deleted := 0
		for !done.Load() {
			gone, err := s.c.Delete(ctx, &index.Deletion{Cache: a, Paths: hashes("library"), Referrers: index.DeleteReferrers})
			if err == nil {
				deleted += len(gone.Paths)
			} else if !errors.Is(err, catalog.ErrNotFound) {
				s.Error(err)
			}
		}
		deleting <- deleted
	}()
	pushing.Wait()
	done.Store(true)
	s.Logf("%d paths were deleted", <-deleting)
	there := make(map[nix.PathHash]bool)
	for _, p := range s.pathsOf(a) {
		there[p.Hash()] = true
	}
	for p, err := range s.c.AllPaths(ctx, a) {
		s.ok(err)
		for _, ref := range p.Info.References {
			if !there[ref.Hash()] {
				s.Errorf("%s lacks %s", p.Info.Path, ref)
			}
		}
	}
}

package localstore

import (
	"strconv"
	"testing"

	"firn/nix"
)

func TestHashSet(t *testing.T) {
	var set hashSet
	if set.has(1) {
		t.Error("the empty set has 1")
	}
	const n = 100_000
	for i := range n {
		set = set.withRoom(1)
		set.add(filterKey(generatedHash(i)))
		set.add(filterKey(generatedHash(i))) // again, to no effect
	}
	// Keys at both ends: places wrap around.
	edges := []uint64{1, 2, 3, ^uint64(0), ^uint64(0) - 1, ^uint64(0) - 2}
	set = set.withRoom(len(edges))
	for _, key := range edges {
		set.add(key)
	}
	for i := range n {
		if !set.has(filterKey(generatedHash(i))) {
			t.Fatalf("key %d is missing", i)
		}
		if set.has(filterKey(generatedHash(n + i))) {
			t.Fatalf("key %d was never added", n+i)
		}
	}
	for _, key := range edges {
		if !set.has(key) {
			t.Errorf("key %#x is missing", key)
		}
	}
	if set.len() != n+len(edges) {
		t.Errorf("it has %d keys, want %d", set.len(), n+len(edges))
	}
	if most := 8 * set.len() * 8 / 4; len(set.places)*8 > most {
		t.Errorf("it takes %d bytes, more than %d", len(set.places)*8, most)
	}
}

// The filter has every path, whatever came between its batches, and forgets those that were deleted when it is made again.
func TestFilter(t *testing.T) {
	n := newNix(t)
	const paths = 2*filterBatch + 17
	fillDatabase(t, n, paths, 0)
	s := n.open()
	if err := waitForFilter(s); err != nil {
		t.Fatal(err)
	}
	f := &s.db.filter
	if got := known(f); got != paths {
		t.Errorf("it has %d paths, want %d", got, paths)
	}
	version := mustVersion(t, s)
	for i := range paths {
		if f.excludes(version, generatedHash(i)) {
			t.Fatalf("it excludes path %d", i)
		}
	}
	if !f.excludes(version, nix.PathHash{}) || f.excludes(version+1, nix.PathHash{}) {
		t.Error("it does not exclude an absent path, or does so at a version that it does not know")
	}

	// It follows, also over rows that are no paths.
	n.edit(`insert into ValidPaths (path, hash, registrationTime) values ('/nonsense', '', 0), ('', '', 0)`)
	added := n.add("added", "later")
	if err := waitForFilter(s); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PathInfo(t.Context(), added.Hash()); err != nil {
		t.Error(err)
	}
	if got := known(f); got != paths+1 {
		t.Errorf("it has %d paths, want %d", got, paths+1)
	}

	// Once it has twice as many as at first, it begins again.
	const more = paths + filterBatch + 17
	n.edit(`delete from Refs`, `delete from ValidPaths where id % 100 != 0`)
	n.edit(`with recursive c(x) as (select 1 union all select x + 1 from c where x < ` + strconv.Itoa(more) + `)
		insert into ValidPaths (path, hash, registrationTime)
		select '` + string(n.storeDir) + `/' || substr('00000000000000000000000000000000' || x, -32) || '-n', '', 0 from c`)
	for range 2 {
		if err := waitForFilter(s); err != nil {
			t.Fatal(err)
		}
		n.edit(`update ValidPaths set registrationTime = registrationTime + 1 where id = 100`)
	}
	if err := waitForFilter(s); err != nil {
		t.Fatal(err)
	}
	if got, most := known(f), more+paths/100+2; got > most {
		t.Errorf("it has %d paths, want at most %d", got, most)
	}
}

// known is how many paths the filter has.
func known(f *filter) int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.known.len()
}

//go:build programs

package localstore

import (
	"strconv"
	"testing"

	"firn/nix"
)

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

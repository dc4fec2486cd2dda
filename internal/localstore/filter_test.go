package localstore

import (
	"testing"
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

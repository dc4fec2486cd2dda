package zstdcache

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// inOrder are the keys of a map, the one used last first.
func inOrder[V any](m *lru[string, V]) string {
	var keys []string
	for key := range m.All() {
		keys = append(keys, key)
	}
	return strings.Join(keys, " ")
}

func TestLRU(t *testing.T) {
	m := newLRU[string, int]()
	if _, ok := m.Oldest(); ok {
		t.Error("an empty map has an oldest value")
	}
	m.Remove("a")
	for i, key := range []string{"a", "b", "c"} {
		m.Put(key, i, 10)
	}
	m.Get("a")
	m.Peek("b")
	if got := inOrder(m); got != "a c b" {
		t.Errorf("used in the order %s, want a c b", got)
	}
	m.Put("b", 7, 5) // in place of another
	if v, ok := m.Peek("b"); v != 7 || !ok || m.Len() != 3 || m.Cost() != 25 {
		t.Errorf("b is %d, %v, one of %d that cost %d", v, ok, m.Len(), m.Cost())
	}
	if oldest, _ := m.Oldest(); oldest != "c" {
		t.Errorf("%s is the oldest, want c", oldest)
	}
	m.Remove("c")
	if _, ok := m.Get("c"); ok || m.Len() != 2 || m.Cost() != 15 {
		t.Errorf("removed: it is there: %v, beside it %d that cost %d", ok, m.Len(), m.Cost())
	}
	for range m.All() {
		break
	}
	if got := slices.Sorted(maps.Keys(maps.Collect(m.All()))); strings.Join(got, " ") != "a b" {
		t.Errorf("all are %s", got)
	}
}

package lru

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// inOrder are the keys of a map, the one used last first.
func inOrder[V any](m *Map[string, V]) string {
	var keys []string
	for key := range m.All() {
		keys = append(keys, key)
	}
	return strings.Join(keys, " ")
}

func TestMap(t *testing.T) {
	m := NewMap[string, int]()
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

func TestCache(t *testing.T) {
	c := NewCache[string, int](100)
	for i, key := range []string{"a", "b", "c"} {
		c.Put(key, i, 30)
	}
	c.Get("a")
	c.Put("d", 3, 40)
	if got := inOrder(c.all); got != "d a c" || c.all.Cost() != 100 {
		t.Errorf("remembered are %s, which cost %d; want d a c, 100", got, c.all.Cost())
	}
	c.Put("e", 4, 101)
	if got := inOrder(c.all); got != "d a c" {
		t.Errorf("a value too large displaced others: %s", got)
	}
	c.Put("d", 5, 101)
	if _, ok := c.Get("d"); ok {
		t.Error("a value is remembered that was replaced by one too large")
	}
	c.Remove("a")
	c.Remove("a")
	if got := inOrder(c.all); got != "c" {
		t.Errorf("remembered are %s, want c", got)
	}
}

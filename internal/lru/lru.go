// Package lru has maps that know which of their values was used longest ago.
package lru

import (
	"container/list"
	"iter"
	"sync"
)

// Map is a map that knows in which order its values were used, and what all of them cost. It removes nothing by itself.
type Map[K comparable, V any] struct {
	items map[K]*list.Element // of *item[K, V]
	order list.List           // the one used last is in front
	cost  int64
}

type item[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

// NewMap returns a map without values.
func NewMap[K comparable, V any]() *Map[K, V] {
	return &Map[K, V]{items: make(map[K]*list.Element)}
}

// Len is the number of values.
func (m *Map[K, V]) Len() int { return len(m.items) }

// Cost is what all values cost together.
func (m *Map[K, V]) Cost() int64 { return m.cost }

// Peek returns a value without using it.
func (m *Map[K, V]) Peek(key K) (value V, ok bool) {
	at, ok := m.items[key]
	if !ok {
		return value, false
	}
	return at.Value.(*item[K, V]).value, true
}

// Get returns a value, which is from now on the one used last.
func (m *Map[K, V]) Get(key K) (value V, ok bool) {
	at, ok := m.items[key]
	if !ok {
		return value, false
	}
	m.order.MoveToFront(at)
	return at.Value.(*item[K, V]).value, true
}

// Put adds a value as the one used last, in place of what the key had.
func (m *Map[K, V]) Put(key K, value V, cost int64) {
	m.Remove(key)
	m.items[key] = m.order.PushFront(&item[K, V]{key, value, cost})
	m.cost += cost
}

// Remove removes a value, if there is one.
func (m *Map[K, V]) Remove(key K) {
	if at, ok := m.items[key]; ok {
		delete(m.items, key)
		m.cost -= m.order.Remove(at).(*item[K, V]).cost
	}
}

// Oldest returns the key of the value that was used longest ago.
func (m *Map[K, V]) Oldest() (key K, ok bool) {
	at := m.order.Back()
	if at == nil {
		return key, false
	}
	return at.Value.(*item[K, V]).key, true
}

// All yields the values, the one used last first.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for at := m.order.Front(); at != nil; at = at.Next() {
			if i := at.Value.(*item[K, V]); !yield(i.key, i.value) {
				return
			}
		}
	}
}

// Cache is a bounded map that forgets what was used longest ago. It is safe for concurrent use.
type Cache[K comparable, V any] struct {
	most int64

	mu  sync.Mutex
	all *Map[K, V]
}

// NewCache returns a cache for values whose costs add up to most.
func NewCache[K comparable, V any](most int64) *Cache[K, V] {
	return &Cache[K, V]{most: most, all: NewMap[K, V]()}
}

// Get returns a value that is remembered.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all.Get(key)
}

// Put remembers a value in place of what the key had. One that costs more than there is room for displaces no other: it is not remembered.
func (c *Cache[K, V]) Put(key K, value V, cost int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all.Remove(key)
	if cost > c.most {
		return
	}
	c.all.Put(key, value, cost)
	for c.all.Cost() > c.most {
		oldest, _ := c.all.Oldest()
		c.all.Remove(oldest)
	}
}

// Remove forgets a value.
func (c *Cache[K, V]) Remove(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all.Remove(key)
}

package zstdcache

import (
	"container/list"
	"iter"
)

// An lru is a map that knows in which order its values were used, and what all of them cost. It removes nothing by itself.
type lru[K comparable, V any] struct {
	items map[K]*list.Element // of *lruItem[K, V]
	order list.List           // the one used last is in front
	cost  int64
}

type lruItem[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

// newLRU returns a map without values.
func newLRU[K comparable, V any]() *lru[K, V] {
	return &lru[K, V]{items: make(map[K]*list.Element)}
}

// Len is the number of values.
func (m *lru[K, V]) Len() int { return len(m.items) }

// Cost is what all values cost together.
func (m *lru[K, V]) Cost() int64 { return m.cost }

// Peek returns a value without using it.
func (m *lru[K, V]) Peek(key K) (value V, ok bool) {
	at, ok := m.items[key]
	if !ok {
		return value, false
	}
	return at.Value.(*lruItem[K, V]).value, true
}

// Get returns a value, which is from now on the one used last.
func (m *lru[K, V]) Get(key K) (value V, ok bool) {
	at, ok := m.items[key]
	if !ok {
		return value, false
	}
	m.order.MoveToFront(at)
	return at.Value.(*lruItem[K, V]).value, true
}

// Put adds a value as the one used last, in place of what the key had.
func (m *lru[K, V]) Put(key K, value V, cost int64) {
	m.Remove(key)
	m.items[key] = m.order.PushFront(&lruItem[K, V]{key, value, cost})
	m.cost += cost
}

// Remove removes a value, if there is one.
func (m *lru[K, V]) Remove(key K) {
	if at, ok := m.items[key]; ok {
		delete(m.items, key)
		m.cost -= m.order.Remove(at).(*lruItem[K, V]).cost
	}
}

// Oldest returns the key of the value that was used longest ago.
func (m *lru[K, V]) Oldest() (key K, ok bool) {
	at := m.order.Back()
	if at == nil {
		return key, false
	}
	return at.Value.(*lruItem[K, V]).key, true
}

// All yields the values, the one used last first.
func (m *lru[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for at := m.order.Front(); at != nil; at = at.Next() {
			if i := at.Value.(*lruItem[K, V]); !yield(i.key, i.value) {
				return
			}
		}
	}
}

package zstdcache

import (
	"container/list"
	"iter"
)

// lru is a map that knows which of its values was used longest ago, and what all of them cost.
type lru[K comparable, V any] struct {
	items map[K]*list.Element // of *item[K, V]
	order list.List           // the one used last is in front
	cost  int64
}

type item[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

func newLRU[K comparable, V any]() *lru[K, V] {
	return &lru[K, V]{items: make(map[K]*list.Element)}
}

// peek returns a value without using it.
func (l *lru[K, V]) peek(key K) (value V, ok bool) {
	at, ok := l.items[key]
	if !ok {
		return value, false
	}
	return at.Value.(*item[K, V]).value, true
}

// get returns a value, which is from now on the one used last.
func (l *lru[K, V]) get(key K) (value V, ok bool) {
	at, ok := l.items[key]
	if !ok {
		return value, false
	}
	l.order.MoveToFront(at)
	return at.Value.(*item[K, V]).value, true
}

// put adds a value as the one used last, in place of what the key had.
func (l *lru[K, V]) put(key K, value V, cost int64) {
	l.remove(key)
	l.items[key] = l.order.PushFront(&item[K, V]{key, value, cost})
	l.cost += cost
}

func (l *lru[K, V]) remove(key K) {
	if at, ok := l.items[key]; ok {
		delete(l.items, key)
		l.cost -= l.order.Remove(at).(*item[K, V]).cost
	}
}

// oldest returns the key of the value that was used longest ago.
func (l *lru[K, V]) oldest() (key K, ok bool) {
	at := l.order.Back()
	if at == nil {
		return key, false
	}
	return at.Value.(*item[K, V]).key, true
}

// all yields the values, the one used last first.
func (l *lru[K, V]) all() iter.Seq[V] {
	return func(yield func(V) bool) {
		for at := l.order.Front(); at != nil; at = at.Next() {
			if !yield(at.Value.(*item[K, V]).value) {
				return
			}
		}
	}
}

package depot

import (
	"container/list"
	"sync"
)

// lru is a bounded map that forgets what was used longest ago. It is safe for concurrent use.
type lru[K comparable, V any] struct {
	most int64

	mu    sync.Mutex
	items map[K]*list.Element // of *item[K, V]
	order list.List           // the one used last is in front
	cost  int64
}

type item[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

// newLRU returns a map for values whose costs add up to most.
func newLRU[K comparable, V any](most int64) *lru[K, V] {
	return &lru[K, V]{most: most, items: make(map[K]*list.Element)}
}

func (l *lru[K, V]) get(key K) (value V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.items[key]
	if !ok {
		return value, false
	}
	l.order.MoveToFront(at)
	return at.Value.(*item[K, V]).value, true
}

// put adds a value in place of what the key had.
func (l *lru[K, V]) put(key K, value V, cost int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(l.items[key])
	l.items[key] = l.order.PushFront(&item[K, V]{key, value, cost})
	for l.cost += cost; l.cost > l.most; {
		l.remove(l.order.Back())
	}
}

func (l *lru[K, V]) drop(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(l.items[key])
}

func (l *lru[K, V]) remove(at *list.Element) {
	if at != nil {
		i := l.order.Remove(at).(*item[K, V])
		delete(l.items, i.key)
		l.cost -= i.cost
	}
}

// Package memo remembers answers for as long as what they were asked of has not changed.
//
// See the example of [Memo]. Whoever is asked says by its [Version] whether something may have
// changed, and how surely it knows: see [Changes].
package memo

import (
	"context"
	"sync"
	"time"
)

// Staleness is how long a change may go unnoticed by a version that is Recent.
const Staleness = time.Second

// Freshness says how sure a version is.
type Freshness uint8

const (
	// Unknown: it cannot be told whether something has changed, so nothing remembered is right.
	Unknown Freshness = iota
	// Recent: changes of the last [Staleness] may be missing. Hits may be answered from memory, and
	// misses may not: clients remember a miss for an hour.
	Recent
	// Current: nothing that was acknowledged before Version was called is missing.
	Current
)

// A Version names a state. The zero Version is Unknown.
type Version struct {
	Number uint64
	Freshness
}

// Changes is what can tell cheaply whether it has changed.
type Changes interface {
	// Version returns a version with another Number whenever an answer may be another one, that
	// something is not there included: as long as the Number stays the same, answers that were got
	// after it was read are right. It is asked for every request, so it takes less than a microsecond.
	//
	// A database in a file is Current, or Unknown. One that is reached over a network is told of
	// changes by notifications. It is Recent while it has heard from the database within Staleness,
	// and else Unknown.
	Version(ctx context.Context) Version
}

// Exactly is a version that is Current where ok, and else Unknown.
func Exactly(number uint64, ok bool) Version {
	if !ok {
		return Version{}
	}
	return Version{number, Current}
}

// And is the version of two things together.
//
// Numbers that count up from anywhere near zero never meet after this; any others do once in 2⁶⁴
// changes.
func (v Version) And(o Version) Version {
	return Version{v.Number*0x9e3779b97f4a7c15 + o.Number, min(v.Freshness, o.Freshness)}
}

// Hit reports whether what was found at v, or later, is right now.
func (v Version) Hit(now Version) bool {
	return v.Freshness != Unknown && now.Freshness != Unknown && v.Number == now.Number
}

// Miss reports whether what was not found at v, or later, is not there now.
func (v Version) Miss(now Version) bool { return now.Freshness == Current && v.Hit(now) }

// A Memo is a bounded map to what is remembered, each with the version that was read before it was
// asked for. It is safe for concurrent use.
//
// It has two generations. What is put or found goes into the young one; when that has reached half of
// the bound, the old one is dropped and the young one becomes old. So what is asked for stays and the
// rest goes after a while, without a list to keep in order: to find something young takes a read lock
// and a look-up in a map.
type Memo[K comparable, V any] struct {
	share int64 // bound of one generation, in the unit of the costs

	mu         sync.RWMutex
	young, old map[K]item[V]
	cost       int64 // of all in young
}

type item[V any] struct {
	value V
	at    Version
	cost  int64
}

// New returns a memo for values whose costs add up to limit at most. One that costs more than half of
// that is not remembered.
func New[K comparable, V any](limit int64) *Memo[K, V] {
	return &Memo[K, V]{share: limit / 2, young: make(map[K]item[V])}
}

// Get returns what is remembered under a key, and the version at which it was put.
func (m *Memo[K, V]) Get(key K) (value V, at Version, ok bool) {
	m.mu.RLock()
	i, ok := m.young[key]
	if ok {
		m.mu.RUnlock()
		return i.value, i.at, true
	}
	i, ok = m.old[key]
	m.mu.RUnlock()
	if ok {
		m.mu.Lock()
		defer m.mu.Unlock()
		if now, still := m.old[key]; still { // it may have been removed, or replaced
			m.put(key, now)
		}
	}
	return i.value, i.at, ok
}

// Put remembers a value in place of what the key had. at was read before the value was asked for.
func (m *Memo[K, V]) Put(key K, value V, at Version, cost int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(key)
	if cost <= m.share {
		m.put(key, item[V]{value, at, cost})
	}
}

// put puts something that is not in young. It is called with mu held.
func (m *Memo[K, V]) put(key K, i item[V]) {
	if m.cost+i.cost > m.share {
		m.old, m.young, m.cost = m.young, make(map[K]item[V]), 0
	}
	delete(m.old, key)
	m.young[key] = i
	m.cost += i.cost
}

// Remove forgets a value.
func (m *Memo[K, V]) Remove(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(key)
}

func (m *Memo[K, V]) remove(key K) {
	if i, ok := m.young[key]; ok {
		m.cost -= i.cost
		delete(m.young, key)
	}
	delete(m.old, key)
}

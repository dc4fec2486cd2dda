package cache

import (
	"sync"

	"firn/nix"
)

// shards is how many parts a memory has, each with a lock of its own:
// more than there are cores, so that look-ups on all of them seldom meet.
const shards = 64

// memory is a bounded map from path hashes to what is remembered of them.
//
// Each shard keeps two generations. What is put or found goes into the young one;
// when that has reached its share of the bound, the old one is dropped and the young one becomes old.
// So what is asked for stays and the rest goes after a while,
// without a list to keep in order: finding something young takes a read lock and a map look-up.
type memory[V any] struct {
	shards [shards]shard[V]
	share  int64 // bound of one generation of one shard, in the unit of the costs
	most   int64 // that a value may cost to be remembered
}

type shard[V any] struct {
	mu         sync.RWMutex
	young, old map[nix.PathHash]remembered[V]
	cost       int64 // of all in young
}

type remembered[V any] struct {
	value V
	cost  int64
}

// newMemory returns an empty memory for values whose costs add up to limit, or a little more:
// a generation may exceed its share by its last value, which costs no more than most.
func newMemory[V any](limit, most int64) *memory[V] {
	m := &memory[V]{share: limit / (2 * shards), most: most}
	for i := range m.shards {
		m.shards[i].young = make(map[nix.PathHash]remembered[V])
	}
	return m
}

func (m *memory[V]) get(key nix.PathHash) (V, bool) {
	s := &m.shards[key[0]%shards]
	s.mu.RLock()
	r, ok := s.young[key]
	if ok {
		s.mu.RUnlock()
		return r.value, true
	}
	r, ok = s.old[key]
	s.mu.RUnlock()
	if ok {
		m.put(key, r.value, r.cost)
	}
	return r.value, ok
}

func (m *memory[V]) put(key nix.PathHash, value V, cost int64) {
	if cost > m.most {
		return
	}
	s := &m.shards[key[0]%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cost += cost - s.young[key].cost
	s.young[key] = remembered[V]{value, cost}
	if s.cost > m.share {
		s.old, s.young, s.cost = s.young, make(map[nix.PathHash]remembered[V]), 0
	}
}

package access

import (
	"fmt"
	"sync"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
)

// maxKnown bounds the principals that are remembered, of some kilobytes each at the most.
const maxKnown = 4096

// A memory remembers the principals of what was right, as long as the catalog does not change.
type memory struct {
	version func() (uint64, bool)
	now     func() time.Time

	mu    sync.RWMutex
	known map[catalog.Sum]*principal
}

func newMemory(version func() (uint64, bool), now func() time.Time) *memory {
	return &memory{version: version, now: now, known: map[catalog.Sum]*principal{}}
}

// find returns the principal that is remembered under a hash, or else what ask says.
// It is cache.ErrUnauthenticated if it has expired.
func (m *memory) find(hash catalog.Sum, ask func() (*principal, error)) (*principal, error) {
	version, vouched := m.version() // before the question: what is revoked after it is forgotten then
	m.mu.RLock()
	p := m.known[hash]
	m.mu.RUnlock()
	if p == nil || !vouched || p.version != version {
		var err error
		if p, err = ask(); err != nil {
			m.forget(hash)
			return nil, err
		}
		p.version = version
		if vouched {
			m.remember(hash, p)
		}
	}
	if !p.expires.IsZero() && !m.now().Before(p.expires) {
		return nil, fmt.Errorf("%w: %s expired on %s", cache.ErrUnauthenticated, p.name, p.expires.Format(time.DateOnly))
	}
	return p, nil
}

func (m *memory) remember(hash catalog.Sum, p *principal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) >= maxKnown {
		clear(m.known) // those in use are back with their next request
	}
	m.known[hash] = p
}

func (m *memory) forget(hash catalog.Sum) {
	m.mu.RLock()
	_, there := m.known[hash]
	m.mu.RUnlock()
	if there { // rarely: what fails is mostly unknown
		m.mu.Lock()
		delete(m.known, hash)
		m.mu.Unlock()
	}
}

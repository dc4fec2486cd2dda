package access

import (
	"fmt"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/memo"
)

// maxKnown bounds the principals that are remembered, of some kilobytes each at the most.
const maxKnown = 4096

// A memory remembers the principals of valid credentials, as long as the catalog does not change.
type memory struct {
	version func() (uint64, bool)
	now     func() time.Time
	known   *memo.Memo[catalog.Sum, *principal]
}

func newMemory(version func() (uint64, bool), now func() time.Time) *memory {
	return &memory{version, now, memo.New[catalog.Sum, *principal](maxKnown)}
}

// find returns the principal that is remembered under a hash, or else what ask says.
// It is cache.ErrUnauthenticated if it has expired.
func (m *memory) find(hash catalog.Sum, ask func() (*principal, error)) (*principal, error) {
	now := memo.Exactly(m.version()) // before the question: what is revoked after it is forgotten then
	p, at, ok := m.known.Get(hash)
	if !ok || !at.Hit(now) {
		var err error
		if p, err = ask(); err != nil {
			return nil, err
		}
		m.known.Put(hash, p, now, 1)
	}
	if !p.expires.IsZero() && !m.now().Before(p.expires) {
		return nil, fmt.Errorf("%w: %s expired on %s", cache.ErrUnauthenticated, p.name, p.expires.Format(time.DateOnly))
	}
	return p, nil
}

package access

import (
	"context"
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
	changes memo.Changes
	now     func() time.Time
	known   *memo.Memo[catalog.Sum, *principal]
}

func newMemory(changes memo.Changes, now func() time.Time) *memory {
	return &memory{changes, now, memo.New[catalog.Sum, *principal](maxKnown)}
}

// find returns the principal that is remembered under a hash, or else what ask says.
// It is cache.ErrUnauthenticated if it has expired.
func (m *memory) find(ctx context.Context, hash catalog.Sum, ask func() (*principal, error)) (*principal, error) {
	now := m.changes.Version(ctx) // before the question: what is revoked after it is forgotten then
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

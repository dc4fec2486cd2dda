package session

import (
	"context"
	"fmt"
	"sync"
)

// Clients knows which conversations each client has. One that has several may send the paths of one copy in all of them,
// so that none of these can know which path is the last, and no path may be answered before it is published.
type Clients struct {
	mu   sync.Mutex
	have map[string]map[*store]bool // by client; the bool is true
}

// NewClients returns a Clients for all conversations of a process.
func NewClients() *Clients { return &Clients{have: map[string]map[*store]bool{}} }

// join adds a conversation of a client. If it is not the first, none of them is alone any more, and what the others have read by now
// is published when join returns. An error says that some of it was not.
func (c *Clients) join(ctx context.Context, client string, s *store) (leave func(), err error) {
	c.mu.Lock()
	var others []*store
	for other := range c.have[client] {
		others = append(others, other)
		other.alone.Store(false) // before its pushes are looked at below: what it adds after that is not answered early
	}
	s.alone.Store(len(others) == 0)
	if c.have[client] == nil {
		c.have[client] = map[*store]bool{}
	}
	c.have[client][s] = true
	c.mu.Unlock()
	leave = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if delete(c.have[client], s); len(c.have[client]) == 0 {
			delete(c.have, client)
		}
	}
	for _, other := range others {
		if err := other.push.wait(ctx); err != nil {
			leave()
			return nil, fmt.Errorf("a path that was sent on another connection: %w", err)
		}
	}
	return leave, nil
}

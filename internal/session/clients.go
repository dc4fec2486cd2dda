package session

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Clients knows which conversations each client has in which paths can be answered early. One that has several may send the paths of one copy
// in all of them, so that none of these can know which path is the last, and no path may be answered before it is published.
type Clients struct {
	mu   sync.Mutex
	have map[string]map[*store]bool // by client; the bool is true
}

// NewClients returns a Clients for all conversations of a process.
func NewClients() *Clients { return &Clients{have: map[string]map[*store]bool{}} }

// join adds a conversation of a client in which paths can be answered early. If it is not the first, none of them is alone any more,
// and it may begin when early is settled: what was answered before in the others. An error says that some of that has failed,
// and that the client has not heard of it yet.
func (c *Clients) join(client string, s *store) (leave func(), early []*push, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.alone.Store(len(c.have[client]) == 0)
	for other := range c.have[client] {
		other.alone.Store(false) // before its pushes are looked at: what it reads to the end after that is not answered early
		pushes, failed := other.push.early()
		early = append(early, pushes...)
		err = cmp.Or(err, failed)
	}
	if c.have[client] == nil {
		c.have[client] = map[*store]bool{}
	}
	c.have[client][s] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if delete(c.have[client], s); len(c.have[client]) == 0 {
			delete(c.have, client)
		}
	}, early, err
}

// begin joins, and waits until the conversation may begin, or its client has gone. What is to be read from conn, is to be read from r.
func (c *Clients) begin(ctx context.Context, client string, s *store, conn io.Reader) (leave func(), r io.Reader, err error) {
	leave, early, err := c.join(client, s)
	if err == nil && len(early) > 0 {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		ahead := readAhead(conn, func() { cancel(io.ErrUnexpectedEOF) })
		defer ahead.stop.Store(true)
		conn, err = ahead, settled(ctx, early)
	}
	if err != nil {
		leave()
		return nil, nil, fmt.Errorf("a path that was sent on another connection: %w", err)
	}
	return leave, conn, nil
}

// settled waits until all are settled, and returns why one has failed.
func settled(ctx context.Context, pushes []*push) error {
	for _, p := range pushes {
		select {
		case <-p.settled:
			if p.err != nil {
				return p.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

const (
	// maxAhead is how often something is read before it is wanted, and aheadSize how many bytes at once.
	// Clients say no more than 16 bytes before they hear something.
	maxAhead  = 16
	aheadSize = 64
)

// An ahead reads from a connection also when nobody wants to have something, which is the way to hear that a client has gone.
type ahead struct {
	io.Reader
	stop   atomic.Bool
	pieces chan []byte // that are there, closed when what follows can be read from the connection again
	piece  []byte      // what is left of the one that is being read
}

// readAhead reads until it is stopped, and calls gone if that ends before.
func readAhead(r io.Reader, gone func()) *ahead {
	a := &ahead{Reader: r, pieces: make(chan []byte, maxAhead)}
	go func() {
		defer close(a.pieces)
		for range maxAhead { // none waits for space
			if a.stop.Load() {
				return
			}
			piece := make([]byte, aheadSize)
			n, err := r.Read(piece)
			a.pieces <- piece[:n]
			if err != nil { // which comes again to who reads on
				gone()
				return
			}
		}
	}()
	return a
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.piece) == 0 {
		var ok bool
		if a.piece, ok = <-a.pieces; !ok {
			return a.Reader.Read(p)
		}
	}
	n := copy(p, a.piece)
	a.piece = a.piece[n:]
	return n, nil
}

// Package connlimit bounds what connections cost a server: how many there are, how they are shared
// among addresses, and how long a slow or silent client keeps one.
//
//	l := connlimit.Listen(listener, seats, ownerOf)
//	srv := &http.Server{ConnState: connlimit.SetState, ConnContext: connlimit.Context}
//	go srv.Serve(l)
//	…
//	l.Close()
//	err := l.Drain(ctx)
package connlimit

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"firn/internal/fairlimit"
)

// How a server ends. net/http closes connections that wait for a request at once, and others after
// their answer, without a word. A client that asks one thing after the other then finds the
// connection closed under a request that is on its way, and may not know whether the server got it.
// So connections are drained: a client that asks is answered, and told that this was the last
// answer of the connection. A connection that has been silent for a while is closed.
const (
	// QuietTime is how long a connection is silent before it is closed: longer than the way to a
	// client and back.
	QuietTime = time.Second

	// FreshTime is the same for a connection that has brought nothing yet. Its client waited for it
	// to be opened, and does not try again.
	FreshTime = 5 * time.Second

	// drainInterval is how often Drain looks which connections are silent.
	drainInterval = 20 * time.Millisecond
)

// Listener is a listener whose connections are Conns. Their number is bounded over all listeners
// that share seats, and shared among owners. When an owner has its share, or all seats are taken,
// the connection that has been idle for the longest is closed for the new one.
type Listener struct {
	net.Listener
	seats *fairlimit.Seats[*Conn]
	owner func(net.Conn) string
	close func() error  // that of the listener, once
	ended chan struct{} // closed when Accept returns no more connections
	end   func()        // closes ended

	mu   sync.Mutex
	open map[*Conn]struct{}
}

// Listen returns a Listener that takes connections from l. owner says whose seat a connection takes.
func Listen(l net.Listener, seats *fairlimit.Seats[*Conn], owner func(net.Conn) string) *Listener {
	ended := make(chan struct{})
	return &Listener{Listener: l, seats: seats, owner: owner, close: sync.OnceValue(l.Close),
		ended: ended, end: sync.OnceFunc(func() { close(ended) }), open: make(map[*Conn]struct{})}
}

// Close closes the listener, and not its connections. It may be called again, as net/http does.
func (l *Listener) Close() error { return l.close() }

// Accept returns the next connection. One goroutine calls it until it fails with an error that is
// not temporary, as http.Server does.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			if t, ok := err.(interface{ Temporary() bool }); !ok || !t.Temporary() {
				l.end()
			}
			return nil, err
		}
		c := newConn(conn, l.remove)
		c.seat = l.seats.Seat(l.owner(conn), c)
		l.add(c) // first: as soon as it has a seat, it may have to leave it
		leaves, ok := c.seat.Take()
		if leaves != nil {
			(*leaves).Close()
		}
		if ok {
			return c, nil
		}
		c.Close()
	}
}

func (l *Listener) add(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c] = struct{}{}
}

func (l *Listener) remove(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
	c.seat.Give()
}

// Cut closes all connections.
func (l *Listener) Cut() {
	l.mu.Lock()
	open := slices.Collect(maps.Keys(l.open))
	l.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

// Drain returns when all connections of a listener that was closed are closed as well, or with an
// error when ctx ends.
func (l *Listener) Drain(ctx context.Context) error {
	select {
	case <-l.ended: // so that no other connection comes
	case <-ctx.Done():
		return ctx.Err()
	}
	ticker := time.NewTicker(drainInterval)
	defer ticker.Stop()
	for l.retire() > 0 {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// retire ends the connections that are silent, and returns how many are open.
func (l *Listener) retire() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		if c.quiet() {
			c.retire()
		}
	}
	return len(l.open)
}

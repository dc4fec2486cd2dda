// Package fastpath answers the simple requests of Nix clients over HTTP/1.1 without net/http.
//
//	go srv.Serve(fastpath.Listen(listener, srv))
//
// Clients ask for thousands of narinfos, and reading a request and writing an answer is nearly all
// that one costs. So each connection begins here, with code that knows the one form of request that
// Nix sends over and over, and gives it to the same handler as net/http would. When anything else
// comes, or anything that is in doubt, or only a part of a request, net/http gets the connection for
// good, with all that was read from it. The package decides by what a request may have, not by what
// it may not.
//
// Without Listen a server answers the same: everything here is for speed.
package fastpath

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// Unreader is a connection that can be given on after it was read from.
type Unreader interface {
	// Unread has Read begin with b.
	Unread(b []byte)
}

// unreadConn is a connection that is an Unreader.
type unreadConn interface {
	net.Conn
	Unreader
}

// Listen returns the listener that srv takes its connections from: those of l, each once it has
// brought something that is not for this package. Connections of l that are no [Unreader] go to srv
// at once. The settings of srv count for both: Handler, BaseContext, ConnContext, ConnState, ErrorLog,
// and ReadHeaderTimeout and IdleTimeout, which must not be zero.
//
// When l is closed, Accept goes on until the last connection was given on or has ended. Close, which
// srv calls when it ends, also closes the connections that would still be given on.
func Listen(l net.Listener, srv *http.Server) net.Listener {
	f := &listener{Listener: l, srv: srv, given: make(chan net.Conn), failed: make(chan error),
		over: make(chan struct{}), gone: make(chan struct{})}
	f.abandon = sync.OnceFunc(func() { close(f.gone) })
	go f.accept()
	return f
}

type listener struct {
	net.Listener
	srv  *http.Server
	busy atomic.Int64 // connections that are answering

	given   chan net.Conn // for Accept
	failed  chan error    // for Accept
	running sync.WaitGroup
	over    chan struct{} // closed when no connection will be given on any more
	gone    chan struct{} // closed when srv does not call Accept any more
	abandon func()        // closes gone
}

// Accept returns the next connection that needs net/http.
func (f *listener) Accept() (net.Conn, error) {
	select {
	case c := <-f.given:
		return c, nil
	case err := <-f.failed:
		return nil, err
	case <-f.over:
		return nil, net.ErrClosed
	}
}

// Close closes the listener.
func (f *listener) Close() error {
	f.abandon()
	return f.Listener.Close()
}

// accept begins to read from all connections, until the listener is closed.
func (f *listener) accept() {
	defer close(f.over)
	defer f.running.Wait()
	for {
		c, err := f.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// net/http waits a little after an error that may pass, and returns after another.
			select {
			case f.failed <- err:
				continue
			case <-f.gone:
				return
			}
		}
		f.running.Go(func() {
			if u, ok := c.(unreadConn); !ok || f.serve(u) {
				f.give(c)
			}
		})
	}
}

func (f *listener) give(c net.Conn) {
	select {
	case f.given <- c:
	case <-f.gone:
		c.Close()
	}
}

package server

import (
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"

	"firn/internal/fairlimit"
)

// links is a listener whose connections are links. Of these there is a bounded number, over all
// listeners of a server, which is shared among addresses: when one has its share, or all are taken,
// the one that has been idle for the longest makes room.
type links struct {
	net.Listener
	seats *fairlimit.Seats[*link]
	owner func(net.Conn) string // whose seat a connection takes
	close func() error          // that of the listener, once

	mu   sync.Mutex
	open map[*link]struct{}
}

func newLinks(l net.Listener, seats *fairlimit.Seats[*link], owner func(net.Conn) string) *links {
	return &links{Listener: l, seats: seats, owner: owner, close: sync.OnceValue(l.Close), open: make(map[*link]struct{})}
}

// ownerOf returns whose seat a connection takes: that of its address. What comes through a trusted
// proxy, or a Unix socket, may be for any number of clients, so it may have all that are free; what
// each of the clients does is counted request by request.
func (s *Server) ownerOf(c net.Conn) string {
	peer, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	addr := peer.AddrPort().Addr().Unmap().WithZone("")
	if s.proxies.have(addr) {
		return ""
	}
	return fairlimit.Address(addr)
}

// Close may be called again: net/http and drain both do.
func (ls *links) Close() error { return ls.close() }

func (ls *links) Accept() (net.Conn, error) {
	for {
		c, err := ls.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l := newLink(c, ls.remove)
		l.seat = ls.seats.Seat(ls.owner(c), l)
		ls.add(l) // first: as soon as it has a seat, it may have to leave it
		leaves, ok := l.seat.Take()
		if leaves != nil {
			(*leaves).Close()
		}
		if ok {
			return l, nil
		}
		l.Close()
	}
}

func (ls *links) add(l *link) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.open[l] = struct{}{}
}

func (ls *links) remove(l *link) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.open, l)
	l.seat.Give()
}

// cut closes all links.
func (ls *links) cut() {
	ls.mu.Lock()
	open := slices.Collect(maps.Keys(ls.open))
	ls.mu.Unlock()
	for _, l := range open {
		l.Close()
	}
}

// connState passes on to a link what an http.Server does with it.
func connState(c net.Conn, s http.ConnState) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if l, ok := c.(*link); ok {
		l.state(s)
	}
}

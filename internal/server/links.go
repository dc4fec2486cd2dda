package server

import (
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"
)

// maxLinks bounds the connections of one listener. An idle one costs some 24 KB of memory, nearly all of it in net/http,
// so these may cost 400 MB. They are enough for 600 machines with the 25 connections that Nix opens at most.
const maxLinks = 16 << 10

// mostLinks is maxLinks, or three quarters of the files that this process may have open: an idle connection makes room for another,
// but not for the files of a NAR.
func mostLinks() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return maxLinks
	}
	return int(min(maxLinks, files.Cur/4*3))
}

// links is a listener whose connections are links, of a bounded number:
// when it is reached, the one that has been idle for the longest makes room.
type links struct {
	net.Listener
	most  int
	close func() error // that of the listener, once

	mu   sync.Mutex
	open map[*link]struct{}
}

func newLinks(l net.Listener, most int) *links {
	return &links{Listener: l, most: most, close: sync.OnceValue(l.Close), open: make(map[*link]struct{})}
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
		if ls.add(l) {
			return l, nil
		}
		c.Close() // it was not added, so there is nothing to remove
	}
}

// add adds a link, if need be in place of an idle one, and reports whether there was room.
func (ls *links) add(l *link) bool {
	ls.mu.Lock()
	var oldest *link
	if len(ls.open) >= ls.most {
		var since time.Time
		for other := range ls.open {
			if t, ok := other.idleSince(); ok && (oldest == nil || t.Before(since)) {
				oldest, since = other, t
			}
		}
		if oldest == nil {
			ls.mu.Unlock()
			return false
		}
		delete(ls.open, oldest)
	}
	ls.open[l] = struct{}{}
	ls.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return true
}

func (ls *links) remove(l *link) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.open, l)
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

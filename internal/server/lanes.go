package server

import (
	"errors"
	"net"
	"sync"
)

// lanes is the listener that net/http gets its connections from: all links, each once it has been on the short way and came to its end.
type lanes struct {
	*links
	first func(*link) (more bool) // the short way; nil if there is none

	given  chan *link // for Accept
	failed chan error // for Accept

	running  sync.WaitGroup
	accepted chan struct{} // closed when no more connections are accepted
	over     chan struct{} // closed when none is on the short way either
	gone     chan struct{} // closed when nobody calls Accept any more
}

func newLanes(ls *links, first func(*link) bool) *lanes {
	l := &lanes{links: ls, first: first, given: make(chan *link), failed: make(chan error),
		accepted: make(chan struct{}), over: make(chan struct{}), gone: make(chan struct{})}
	go l.accept()
	return l
}

// Accept returns the next connection that needs net/http. After Close it does so until the last one is on its way or closed.
func (ls *lanes) Accept() (net.Conn, error) {
	select {
	case l := <-ls.given:
		return l, nil
	case err := <-ls.failed:
		return nil, err
	case <-ls.over:
		return nil, net.ErrClosed
	}
}

// accept begins the way of all connections, until the listener is closed.
func (ls *lanes) accept() {
	defer close(ls.over)
	defer ls.running.Wait()
	defer close(ls.accepted)
	for {
		c, err := ls.links.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// net/http waits a little after an error that may pass, and returns after another.
			select {
			case ls.failed <- err:
				continue
			case <-ls.gone:
				return
			}
		}
		l := c.(*link)
		ls.running.Go(func() {
			if ls.first == nil || ls.first(l) {
				ls.give(l)
			}
		})
	}
}

func (ls *lanes) give(l *link) {
	select {
	case ls.given <- l:
	case <-ls.gone:
		l.Close()
	}
}

// abandon says that nobody calls Accept any more.
func (ls *lanes) abandon() { close(ls.gone) }

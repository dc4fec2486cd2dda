package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/fairlimit"
)

// When there are too many connections, the one that was idle for the longest makes room, and never one that is at work.
func TestTooManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := make(pipes, 1)
		ls := newLinks(in, fairlimit.NewSeats[*link](3), func(net.Conn) string { return "" })
		accept := func() (client net.Conn, l *link) {
			t.Helper()
			client, server := net.Pipe()
			t.Cleanup(func() { client.Close() })
			in <- server
			c, err := ls.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return client, c.(*link)
		}
		wantOpen := func(client net.Conn, want bool) {
			t.Helper()
			err := client.SetReadDeadline(time.Now().Add(time.Second))
			if err == nil {
				_, err = client.Read(make([]byte, 1))
			}
			if open := errors.Is(err, os.ErrDeadlineExceeded); open != want {
				t.Errorf("open is %v, want %v (%v)", open, want, err)
			}
		}

		busy, l1 := accept()
		connState(l1, http.StateActive)
		idle, l2 := accept()
		connState(l2, http.StateActive)
		later, l3 := accept()
		time.Sleep(time.Second)
		connState(l2, http.StateIdle)
		time.Sleep(time.Second)

		// l3 never had a request, so it is idle since it was made.
		fourth, l4 := accept()
		connState(l4, http.StateActive)
		wantOpen(later, false)
		for _, c := range []net.Conn{busy, idle, fourth} {
			wantOpen(c, true)
		}
		if err := l3.Close(); err != nil {
			t.Error(err)
		}

		_, l5 := accept()
		connState(l5, http.StateActive)
		wantOpen(idle, false)

		// All are at work: a new one is turned away, until one of them ends.
		away, server := net.Pipe()
		in <- server
		go func() {
			if _, err := away.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("a connection too many: %v, want EOF", err)
			}
			l1.Close()
			_, server := net.Pipe()
			in <- server
		}()
		if _, err := ls.Accept(); err != nil {
			t.Error(err)
		}
		wantOpen(busy, false)
	})
}

// callers is a listener of connections from wherever a test says.
type callers struct{ pipes }

type caller struct {
	net.Conn
	from string
}

func (c caller) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.from), Port: 1} }

// Connections are shared among addresses, over all listeners. A trusted proxy speaks for many
// clients, so it may have what is free.
func TestConnectionsAreShared(t *testing.T) {
	tt := newOdd(t, 0, nil)
	tt.server.links = fairlimit.NewSeats[*link](16)
	tt.server.proxies = Proxies{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	listeners := make([]*links, 2)
	came := make(chan *link)
	for i := range listeners {
		listeners[i] = newLinks(callers{make(pipes)}, tt.server.links, tt.server.ownerOf)
		defer listeners[i].Close()
		go func() {
			for {
				c, err := listeners[i].Accept()
				if err != nil {
					return
				}
				came <- c.(*link)
			}
		}()
	}
	accepted := map[string][]*link{}
	dial := func(from string, ls *links) (ok bool) {
		client, server := net.Pipe()
		t.Cleanup(func() { client.Close() })
		ls.Listener.(callers).pipes <- caller{server, from}
		away := make(chan error, 1)
		go func() {
			_, err := client.Read(make([]byte, 1))
			away <- err
		}()
		select {
		case l := <-came:
			l.state(http.StateActive)
			accepted[from] = append(accepted[from], l)
			return true
		case err := <-away:
			if err != io.EOF {
				t.Errorf("a connection too many: %v, want EOF", err)
			}
			return false
		}
	}
	for _, want := range []struct {
		from  string
		links int
	}{{"198.51.100.1", 8}, {"2001:db8::1", 4}, {"2001:db8::2", 0}, {"192.0.2.1", 3}, {"192.0.2.2", 1}} {
		for i := range 20 {
			if len(accepted[want.from]) == want.links && want.from == "192.0.2.1" {
				break // it may have all, and leaves one
			}
			dial(want.from, listeners[i%2])
		}
		if got := len(accepted[want.from]); got != want.links {
			t.Errorf("%s has %d connections, want %d", want.from, got, want.links)
		}
	}
	if dial("203.0.113.1", listeners[0]) {
		t.Error("there is one more connection than there may be")
	}
	accepted["198.51.100.1"][3].state(http.StateIdle)
	if !dial("203.0.113.1", listeners[1]) {
		t.Error("a connection that is idle does not make room for one of another address")
	}
	if _, err := accepted["198.51.100.1"][3].Conn.Write([]byte{1}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the idle connection is still open: %v", err)
	}
	for _, all := range accepted {
		for _, l := range all {
			l.Close()
		}
	}
	if n := len(listeners[0].open) + len(listeners[1].open); n != 0 {
		t.Errorf("%d connections are still counted", n)
	}
}

// TestReadDeadlines: however seldom a link sets one, a read ends at the deadline that was asked for last.
func TestReadDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		l := newLink(server, func(*link) {})
		defer l.Close()
		start := time.Now()
		want := func(what string, at time.Duration) {
			t.Helper()
			if n, err := l.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %d bytes, %v", what, n, err)
			}
			if took := time.Since(start); took != at {
				t.Errorf("%s: it ended after %s, want %s", what, took, at)
			}
		}
		set := func(at time.Duration) {
			if err := l.SetReadDeadline(start.Add(at)); err != nil {
				t.Fatal(err)
			}
		}
		set(time.Second)
		set(3 * time.Second)
		want("a later one", 3*time.Second)
		want("one that has passed", 3*time.Second)
		set(9 * time.Second)
		set(5 * time.Second)
		want("an earlier one", 5*time.Second)

		// net/http takes one away, and ends a read that is under way by one in the past.
		set(6 * time.Second)
		if err := l.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(5*time.Second, func() { set(-time.Hour) })
		want("none, until it is ended", 10*time.Second)
		if err := l.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(5*time.Second, func() { client.Write([]byte{1}) })
		if n, err := l.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("with none: %d bytes, %v", n, err)
		}
	})
}

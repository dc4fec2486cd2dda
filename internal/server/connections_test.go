package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"firn/internal/fairlimit"
	"firn/internal/server/connlimit"
)

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
	tt.server.seats = fairlimit.NewSeats[*connlimit.Conn](16)
	tt.server.proxies = Proxies{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	listeners := make([]*connlimit.Listener, 2)
	came := make(chan *connlimit.Conn)
	for i := range listeners {
		listeners[i] = connlimit.Listen(callers{make(pipes)}, tt.server.seats, tt.server.ownerOf)
		go func() {
			for {
				c, err := listeners[i].Accept()
				if err != nil {
					return
				}
				came <- c.(*connlimit.Conn)
			}
		}()
	}
	accepted := map[string][]*connlimit.Conn{}
	dial := func(from string, ls *connlimit.Listener) (ok bool) {
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
			l.SetState(http.StateActive)
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
	accepted["198.51.100.1"][3].SetState(http.StateIdle)
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
	for _, l := range listeners {
		l.Close()
		if err := l.Drain(t.Context()); err != nil {
			t.Errorf("a connection is still counted: %v", err)
		}
	}
}

package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// accepted is a listener that tells which connections it has accepted.
type accepted struct {
	net.Listener
	conns chan *net.TCPConn
}

func (a accepted) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err == nil {
		a.conns <- c.(*net.TCPConn)
	}
	return c, err
}

func corked(t *testing.T, c *net.TCPConn) bool {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	var failed error
	if err := raw.Control(func(fd uintptr) { value, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return value != 0
}

// A connection is corked while a NAR is written, unless that is short, and not any more when it has been.
func TestCork(t *testing.T) {
	for _, size := range []int64{corkMin - 1, corkMin, 1 << 20} {
		conns, seen := make(chan *net.TCPConn, 1), make(chan bool, 1)
		var conn *net.TCPConn
		tt := newOdd(t, size, func(ctx context.Context, w io.Writer) error {
			conn = <-conns
			err := writeAll(size)(ctx, w)
			seen <- corked(t, conn)
			return err
		})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- tt.server.Serve(ctx, accepted{l, conns}) }()
		resp, err := http.Get("http://" + l.Addr().String() + helloNAR)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
			t.Errorf("%d bytes of %d, %v", n, size, err)
		}
		resp.Body.Close()
		if got, want := <-seen, size >= corkMin; got != want {
			t.Errorf("a NAR of %d bytes is corked: %v, want %v", size, got, want)
		}
		for deadline := time.Now().Add(10 * time.Second); corked(t, conn); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the connection is still corked after a NAR of %d bytes", size)
			}
		}
		http.DefaultClient.CloseIdleConnections()
		end()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

package server

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"firn/internal/cache"
)

// Over HTTP/2 a server that ends sends what it is sending to the end, while its client asks elsewhere, through another connection, for everything else.
func TestEndOverHTTP2(t *testing.T) {
	const streams, size = 3, 1 << 20
	more := make(chan struct{})
	old := newOdd(t, size, func(ctx context.Context, w io.Writer) error {
		if err := writeAll(size/2)(ctx, w); err != nil {
			return err
		}
		select {
		case <-more:
			return writeAll(size/2)(ctx, w)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	next := newOdd(t, 1, writeAll(1))
	next.server = newServer(cache.Only(next.cache), Options{Version: "the next server"})
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t, "cache.example.org")}}
	serve := func(s *Server) (addr string, end context.CancelFunc, served chan error) {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(context.Background())
		served = make(chan error, 1)
		go func() { served <- s.ServeTLS(ctx, l, config) }()
		return l.Addr().String(), end, served
	}
	oldAddr, endOld, oldServed := serve(old.server)
	defer endOld()
	nextAddr, endNext, nextServed := serve(next.server)
	defer endNext()

	// The name leads to the next server as soon as the old one has its first connection.
	var dials atomic.Int32
	transport := &http.Transport{
		ForceAttemptHTTP2: true, DisableCompression: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				return new(net.Dialer).DialContext(ctx, network, oldAddr)
			}
			return new(net.Dialer).DialContext(ctx, network, nextAddr)
		},
	}
	defer transport.CloseIdleConnections()
	ask := func(target string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://cache.example.org"+target, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatalf("GET %s: %v", target, err)
		}
		if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: %s by %s", target, resp.Status, resp.Proto)
		}
		return resp
	}
	text := func(resp *http.Response) string {
		t.Helper()
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}

	var nars [streams]*http.Response
	for i := range nars {
		nars[i] = ask(helloNAR)
		defer nars[i].Body.Close()
		if _, err := io.ReadFull(nars[i].Body, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if dials.Load() != 1 {
		t.Fatalf("%d streams took %d connections", streams, dials.Load())
	}
	endOld()
	awaitRefusal(t, oldAddr)
	// The first to ask is answered, and with that the client hears of the end: GOAWAY, which net/http acts on and does not show.
	first := text(ask("/version"))
	if strings.Contains(first, "the next server") {
		t.Error("the old server ended the connection without being asked again")
	}
	for asked := 0; !strings.Contains(text(ask("/version")), "the next server"); asked++ {
		if asked > 1000 {
			t.Fatal("the client is not told that the server ends")
		}
	}
	select {
	case err := <-oldServed:
		t.Fatalf("the old server ended while it was sending: %v", err)
	default:
	}
	close(more)
	for i, nar := range nars {
		if n := len(text(nar)); n != size-1 {
			t.Errorf("stream %d brought %d bytes, want %d", i, n+1, size)
		}
	}
	if err := <-oldServed; err != nil {
		t.Errorf("ServeTLS: %v", err)
	}
	if dials.Load() != 2 {
		t.Errorf("the client opened %d connections, want one to each server", dials.Load())
	}
	transport.CloseIdleConnections()
	endNext()
	if err := <-nextServed; err != nil {
		t.Errorf("ServeTLS: %v", err)
	}
}

// awaitRefusal waits until nobody listens at an address any more.
func awaitRefusal(t *testing.T, addr string) {
	t.Helper()
	for {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		conn.Close()
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("somebody listens yet")
		}
	}
}

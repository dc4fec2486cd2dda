package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/server/connlimit"
	"firn/nix"
	"firn/nix/nar"
)

// These tests run in bubbles in which time passes when all wait, over connections without a buffer:
// a write ends when its bytes have been read.

// pipes is a listener of such connections.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// pipeTester is a server in a bubble.
type pipeTester struct {
	*tester
	pipes  pipes
	end    context.CancelFunc // ends the server
	served chan error
}

// inBubble runs a test of a server in a bubble.
func inBubble(t *testing.T, test func(t *pipeTester)) {
	synctest.Test(t, func(t *testing.T) { test(&pipeTester{tester: &tester{T: t}}) })
}

// serve runs a server whose NARs have the given size and are written by write, until the test ends.
func (t *pipeTester) serve(size int64, write writeFunc) {
	t.tester = newOdd(t.T, size, write)
	t.pipes = make(pipes)
	t.served = make(chan error, 1)
	var ctx context.Context
	ctx, t.end = context.WithCancel(context.Background())
	go func() { t.served <- t.server.Serve(ctx, t.pipes) }()
	t.Cleanup(func() {
		t.end()
		if err := <-t.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// dial returns a connection to the server.
func (t *pipeTester) dial() (net.Conn, *bufio.Reader) {
	client, server := net.Pipe()
	t.pipes <- ofProxy{server}
	t.Cleanup(func() { client.Close() })
	return client, bufio.NewReaderSize(client, 16)
}

// ofProxy is a connection that comes through a Unix socket, as that of a proxy does.
type ofProxy struct{ net.Conn }

func (ofProxy) LocalAddr() net.Addr { return &net.UnixAddr{Name: "socket", Net: "unix"} }

// ask asks for a target, and returns the answer once its header is there.
func (t *pipeTester) ask(conn net.Conn, r *bufio.Reader, target string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatalf("GET %s: %v", target, err)
	}
	return t.answer(r)
}

// answer returns an answer once its header is there.
func (t *pipeTester) answer(r *bufio.Reader) *http.Response {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// wantCut checks that the server cuts a connection from which nothing is expected, after about the given time.
func (t *pipeTester) wantCut(r io.Reader, after time.Duration) {
	t.Helper()
	start := time.Now()
	n, err := io.Copy(io.Discard, r)
	took := time.Since(start)
	if err != nil || n != 0 {
		t.Errorf("%d bytes came, and %v, instead of the end", n, err)
	}
	if took < after*9/10 || took > after*11/10 {
		t.Errorf("the connection was cut after %s, want %s", took, after)
	}
}

// writeAll writes size zeros.
func writeAll(size int64) writeFunc {
	return func(_ context.Context, w io.Writer) (err error) {
		for chunk := make([]byte, 1<<20); size > 0 && err == nil; {
			n := min(size, int64(len(chunk)))
			_, err = w.Write(chunk[:n])
			size -= n
		}
		return err
	}
}

// A client that does not read is cut, and what it held is released.
func TestStalledReader(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		released := make(chan error, 1)
		t.serve(1<<40, func(ctx context.Context, w io.Writer) error {
			err := writeAll(1<<40)(ctx, w)
			released <- err
			return err
		})
		conn, r := t.dial()
		t.ask(conn, r, helloNAR)
		start := time.Now()
		if err := <-released; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("writing the NAR: %v, want %v", err, os.ErrDeadlineExceeded)
		}
		if took := time.Since(start); took < connlimit.Patience*9/10 || took > connlimit.Patience {
			t.Errorf("the client was cut after %s, want %s", took, connlimit.Patience)
		}
		synctest.Wait()
		t.wantMetric(`firn_http_aborts_total{by="slow client"} 1`)
	})
}

// A client that stalls on a short answer is cut too, and on the second as on the first.
func TestStalledReaderOfShortAnswers(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(0, nil)
		conn, r := t.dial()
		resp := t.ask(conn, r, "/nix-cache-info")
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(connlimit.Patience + time.Second)
		if _, err := http.ReadResponse(r, nil); err == nil {
			t.Error("the answer came though it was not read for so long")
		}
	})
}

// A client that reads slowly but steadily gets everything, however long that takes in all.
func TestSteadyReader(t *testing.T) {
	const size = 10 * connlimit.Slice
	inBubble(t, func(t *pipeTester) {
		t.serve(size, writeAll(size))
		conn, r := t.dial()
		resp := t.ask(conn, r, helloNAR)
		start := time.Now()
		for read := 0; read < size; read += connlimit.MinRate * 5 / 4 {
			if n, err := io.CopyN(io.Discard, resp.Body, connlimit.MinRate*5/4); err != nil && (err != io.EOF || read+int(n) != size) {
				t.Fatalf("after %d bytes and %s: %v", read+int(n), time.Since(start), err)
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took < 7*connlimit.Patience {
			t.Errorf("that took %s, which is not long enough to show anything", took)
		}
	})
}

// A connection can be used again after the two minutes for which Nix keeps it, but not for ever.
func TestIdleConnection(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(0, nil)
		conn, r := t.dial()
		for range 2 {
			if _, err := io.Copy(io.Discard, t.ask(conn, r, "/nix-cache-info").Body); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2*time.Minute + time.Second)
		}
		t.wantCut(r, idleLimit-2*time.Minute)
	})
}

// A header that does not end is not waited for.
func TestSlowHeader(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(0, nil)
		conn, r := t.dial()
		go io.Copy(io.Discard, r)
		start := time.Now()
		_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n")
		for err == nil {
			time.Sleep(time.Second)
			_, err = io.WriteString(conn, "x")
		}
		if took := time.Since(start); took > headerLimit+2*time.Second {
			t.Errorf("the connection was cut after %s, want %s", took, headerLimit)
		}
	})
}

// The body of a request that is refused is not waited for, nor taken for the next request.
func TestRequestBody(t *testing.T) {
	for _, request := range []string{
		"PUT /nix-cache-info HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
		"PUT /nix-cache-info HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
		"PUT /nix-cache-info HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n",
		"PUT /nix-cache-info HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4000\r\nx",
	} {
		inBubble(t, func(t *pipeTester) {
			t.serve(0, nil)
			conn, r := t.dial()
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusMethodNotAllowed || !resp.Close {
				t.Errorf("%.60q: %s, and the connection stays open: %t", request, resp.Status, !resp.Close)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Error(err)
			}
			start := time.Now()
			if n, err := io.Copy(io.Discard, r); n != 0 || err != nil {
				t.Errorf("%.60q: %d more bytes came, and %v", request, n, err)
			}
			if took := time.Since(start); took > bodyLimit+time.Second {
				t.Errorf("%.60q: the connection was closed after %s", request, took)
			}
		})
	}
}

// When the server ends, running answers are sent to their end, and nothing new is begun.
func TestGracefulEnd(t *testing.T) {
	const size = 4 * connlimit.Slice
	inBubble(t, func(t *pipeTester) {
		t.serve(size, writeAll(size))
		conn, r := t.dial()
		resp := t.ask(conn, r, helloNAR)
		t.end()
		synctest.Wait()
		if _, err := t.pipes.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error("the listener is still open")
		}
		time.Sleep(GraceLimit / 2)
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
			t.Errorf("%d bytes and %v, want all of the NAR", n, err)
		}
		t.wantCut(r, connlimit.QuietTime)
	})
}

// What takes longer than the server is ready to wait is cut.
func TestGraceIsLimited(t *testing.T) {
	const size = 4 * connlimit.Slice
	inBubble(t, func(t *pipeTester) {
		t.serve(size, writeAll(size))
		conn, r := t.dial()
		resp := t.ask(conn, r, helloNAR)
		t.end()
		start := time.Now()
		if err := <-t.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		t.served <- nil
		if took := time.Since(start); took < GraceLimit || took > GraceLimit+time.Second {
			t.Errorf("Serve returned after %s, want %s", took, GraceLimit)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Error("the client saw no error")
		}
	})
}

// crowded is a source whose listings are large.
type crowded struct{ *cachetest.Memory }

func (crowded) WriteListing(_ context.Context, _ *nix.PathInfo, w io.Writer) error {
	l := &nar.Listing{Entries: []nar.Header{{Type: nar.TypeDirectory}}}
	for i := range 2 * smallListing / 50 {
		l.Entries = append(l.Entries, nar.Header{Path: fmt.Sprintf("%07d", i), Type: nar.TypeSymlink, Target: "x"})
	}
	return nar.WriteListing(w, l.All())
}

// Clients that do not read their listings do not fill the memory.
func TestStalledListings(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(1, writeAll(1))
		path := cachetest.NewPath(t.T, nix.DefaultStoreDir, "hello.txt", "hello\n")
		c, err := cache.New([]cache.Source{crowded{cachetest.NewMemory(path)}}, cache.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.server.caches = cache.Only(c)
		var stalled []net.Conn
		for range largeListings {
			conn, r := t.dial()
			stalled = append(stalled, conn)
			if resp := t.ask(conn, r, "/"+helloHash+".ls"); resp.StatusCode != http.StatusOK {
				t.Errorf("one of the first: %s", resp.Status)
			}
		}
		conn, r := t.dial()
		resp := t.ask(conn, r, "/"+helloHash+".ls")
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("one more: %s", resp.Status)
		}
		io.Copy(io.Discard, resp.Body)
		for _, conn := range stalled {
			conn.Close()
		}
		synctest.Wait()
		resp = t.ask(conn, r, "/"+helloHash+".ls")
		var want bytes.Buffer
		if err := c.WriteListing(t.Context(), path.Info.Path.Hash(), &want); err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(text) != want.String()+"\n" {
			t.Errorf("after the first have gone: %s, %d bytes, %v", resp.Status, len(text), err)
		}
		conn.Close()
	})
}

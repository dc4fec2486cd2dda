//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseHead(t *testing.T) {
	tests := []struct {
		name string
		text string
		want head
		size int
		err  string
	}{
		{name: "plain", text: "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nbody", want: head{status: 200, length: 12}, size: 39},
		{name: "any case, spaces", text: "HTTP/1.1 206 Partial Content\r\nServer: x\r\ncontent-length:\t7 \r\n\r\n", want: head{status: 206, length: 7}, size: 63},
		{name: "no reason", text: "HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", want: head{status: 404}, size: 35},
		{name: "no length", text: "HTTP/1.1 200 OK\r\n\r\n", want: head{status: 200, length: -1}, size: 19},
		{name: "closing", text: "HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\n", want: head{status: 200, length: 1, close: true}, size: 57},
		{name: "old version closes", text: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", want: head{status: 200, length: 1, close: true}, size: 38},
		{name: "old version keeps", text: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", want: head{status: 200, length: 1}, size: 62},
		{name: "incomplete", text: "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r"},
		{name: "empty"},
		{name: "not HTTP", text: "SSH-2.0-x\r\n\r\n", err: `status line "SSH-2.0-x"`},
		{name: "bad status", text: "HTTP/1.1 2x0 OK\r\n\r\n", err: `status line "HTTP/1.1 2x0 OK"`},
		{name: "bad length", text: "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", err: `Content-Length "-1"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, size, err := parseHead([]byte(tt.text))
			if fmt.Sprint(err) != tt.err && (err != nil || tt.err != "") {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if err == nil && (got != tt.want || size != tt.size) {
				t.Errorf("got %+v of %d bytes, want %+v of %d", got, size, tt.want, tt.size)
			}
		})
	}
}

// FuzzParseHead looks for a panic, and for a head that reads differently when it arrives in two pieces.
func FuzzParseHead(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nbody"))
	f.Add([]byte("HTTP/1.0 404\r\n:\r\nConnection:close\r\n\r\n\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, size, err := parseHead(text)
		if err != nil || size == 0 {
			return
		}
		if again, n, err := parseHead(text[:size]); again != got || n != size || err != nil {
			t.Errorf("%+v of %d bytes; without what follows: %+v of %d, %v", got, size, again, n, err)
		}
		if _, n, err := parseHead(text[:size-1]); n != 0 || err != nil {
			t.Errorf("a head without its last byte is complete: %d bytes, %v", n, err)
		}
	})
}

// serve runs a handler and returns its address.
func serve(t *testing.T, h http.Handler) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// blobs answers /N with N bytes, and everything else with 404.
func blobs(w http.ResponseWriter, r *http.Request) {
	var n int64
	if _, err := fmt.Sscanf(r.URL.Path, "/%d", &n); err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(n))
	io.CopyN(w, zeros{}, n)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func newClient(t *testing.T) *Client {
	t.Helper()
	c, err := NewClient()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClientRun(t *testing.T) {
	addr := serve(t, http.HandlerFunc(blobs))
	var requests []Request
	var sum int64
	for i := range 100 {
		size := int64(i*i*i) * 7
		requests = append(requests, newRequest(addr.String(), fmt.Sprintf("/%d", size), "", 200, size))
		sum += size
	}
	client := newClient(t)
	for _, discard := range []Discard{DiscardCopy, DiscardTruncate} {
		for _, n := range []int{1, 4, 64, 256} {
			t.Run(fmt.Sprintf("%s on %d", discard, n), func(t *testing.T) {
				tally, err := client.Run(t.Context(), Load{Addr: addr, Connections: n, Discard: discard, Requests: requests})
				if err != nil {
					t.Fatal(err)
				}
				tally.Elapsed = 0
				if diff := cmp.Diff(Tally{Requests: 100, Bytes: sum}, tally); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func TestClientRunForATime(t *testing.T) {
	addr := serve(t, http.HandlerFunc(blobs))
	requests := []Request{newRequest(addr.String(), "/10", "", 200, 10), newRequest(addr.String(), "/x", "", 404, -1)}
	tally, err := newClient(t).Run(t.Context(), Load{Addr: addr, Connections: 8, Discard: DiscardCopy, Requests: requests, Duration: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if tally.Requests < 8 || tally.Elapsed < 50*time.Millisecond {
		t.Errorf("%d requests in %v", tally.Requests, tally.Elapsed)
	}
}

func TestClientRefusesWrongAnswers(t *testing.T) {
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/chunked":
			w.(http.Flusher).Flush()
		case "/cut":
			w.Header().Set("Content-Length", "100000")
			w.Write(make([]byte, 60000))
			panic(http.ErrAbortHandler)
		case "/long-head":
			w.Header().Set("X", strings.Repeat("x", headLimit))
		default:
			blobs(w, r)
		}
	}))
	tests := []struct {
		name    string
		request Request
		want    string
	}{
		{"status", newRequest("h", "/5", "", 404, -1), "GET /5: status 200 instead of 404"},
		{"length", newRequest("h", "/5", "", 200, 6), "GET /5: Content-Length 5 instead of 6"},
		{"no length", newRequest("h", "/chunked", "", 200, -1), "GET /chunked: no Content-Length"},
		{"short", newRequest("h", "/cut", "", 200, 100000), "GET /cut: connection closed by the server, "},
		{"long head", newRequest("h", "/long-head", "", 200, -1), fmt.Sprintf("GET /long-head: response head of more than %d bytes", headLimit)},
	}
	client := newClient(t)
	for _, tt := range tests {
		for _, n := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s on %d", tt.name, n), func(t *testing.T) {
				_, err := client.Run(t.Context(), Load{Addr: addr, Connections: n, Discard: DiscardTruncate, Requests: []Request{tt.request, tt.request}})
				if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
			})
		}
	}
}

func TestClientReconnects(t *testing.T) {
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		blobs(w, r)
	}))
	var requests []Request
	for range 20 {
		requests = append(requests, newRequest(addr.String(), "/100000", "", 200, 100000))
	}
	client := newClient(t)
	for _, n := range []int{1, 4} {
		tally, err := client.Run(t.Context(), Load{Addr: addr, Connections: n, Discard: DiscardCopy, Requests: requests})
		if err != nil {
			t.Fatal(err)
		}
		if tally.Requests != 20 || tally.Bytes != 20*100000 || tally.Reconnects != 20-n {
			t.Errorf("on %d connections: %+v", n, tally)
		}
	}
}

// A server may close a connection that it kept so far, without a word.
func TestClientReconnectsAfterSilentClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // answers twice, then hangs up
				defer c.Close()
				for range 2 {
					if _, err := c.Read(make([]byte, 1024)); err != nil {
						return
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			}()
		}
	}()
	addr := netip.MustParseAddrPort(l.Addr().String())
	var requests []Request
	for range 10 {
		requests = append(requests, newRequest(addr.String(), "/", "", 200, 2))
	}
	client := newClient(t)
	for _, n := range []int{1, 3} {
		tally, err := client.Run(t.Context(), Load{Addr: addr, Connections: n, Discard: DiscardCopy, Requests: requests})
		if err != nil {
			t.Fatal(err)
		}
		if tally.Requests != 10 || tally.Bytes != 20 || tally.Reconnects == 0 {
			t.Errorf("on %d connections: %+v", n, tally)
		}
	}
}

func TestClientEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		blobs(w, r)
	}))
	requests := []Request{newRequest("h", "/10", "", 200, 10), newRequest("h", "/10", "", 200, 10)}
	for _, n := range []int{1, 2} {
		if _, err := newClient(t).Run(ctx, Load{Addr: addr, Connections: n, Discard: DiscardCopy, Requests: requests}); !errors.Is(err, context.Canceled) {
			t.Errorf("on %d connections: error %v", n, err)
		}
	}
}

func TestClientFirstBytesAndHold(t *testing.T) {
	addr := serve(t, http.HandlerFunc(blobs))
	requests := []Request{newRequest("h", "/10", "", 200, 10), newRequest("h", "/9000000", "", 200, 9000000)}
	client := newClient(t)
	times, err := client.FirstBytes(t.Context(), Load{Addr: addr, Discard: DiscardCopy, Requests: requests})
	if err != nil {
		t.Fatal(err)
	}
	if len(times) != 2 || times[0] <= 0 || times[1] <= 0 {
		t.Errorf("times %v", times)
	}
	held := false
	if err := client.Hold(t.Context(), Load{Addr: addr, Connections: 2, Requests: requests}, func() error { held = true; return nil }); err != nil || !held {
		t.Errorf("held %v, error %v", held, err)
	}
}

// The bare Go server gives what the files have.
func TestBareServer(t *testing.T) {
	dir := t.TempDir()
	files := map[string][]byte{"nix-cache-info": []byte("StoreDir: /nix/store\n"), "small": []byte("0123456789"), "large": bytes.Repeat([]byte("0123456789"), 100_000), "empty": {}}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- serveBare(ctx, addr.String(), dir) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	s := &Server{Addr: addr, ended: make(chan error), begin: time.Now()}
	client := newClient(t)
	if err := s.awaitAnswer(ctx, func() error { return s.answer(ctx, client) }); err != nil {
		t.Fatal(err)
	}
	get := func(path, rng string, status int) string {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr.String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rng != "" {
			req.Header.Set("Range", rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status {
			t.Errorf("GET %s: status %d, want %d", path, resp.StatusCode, status)
		}
		return string(body)
	}
	for name, text := range files {
		if get("/"+name, "", 200) != string(text) {
			t.Errorf("%s: wrong bytes", name)
		}
	}
	if got := get("/large", "bytes=999995-", 206); got != "56789" {
		t.Errorf("range: %q", got)
	}
	get("/absent", "", 404)
	get("/../../etc/passwd", "", 404)
	http.DefaultClient.CloseIdleConnections()
}

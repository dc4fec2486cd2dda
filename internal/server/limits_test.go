package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// A client that does not read is cut, and what it held is released.
func TestSlowReader(t *testing.T) {
	released := make(chan error, 1)
	tt := newOdd(t, 1<<40, func(_ context.Context, w io.Writer) (err error) {
		defer func() { released <- err }()
		for chunk := make([]byte, 1<<20); err == nil; {
			_, err = w.Write(chunk)
		}
		return err
	})
	tt.server.patience = 50 * time.Millisecond
	tt.listen("127.0.0.1:0")
	resp, err := tt.client.Get(tt.url + helloNAR)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := <-released; err == nil {
		t.Error("the NAR was written to its end")
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the client saw no error")
	}
	tt.wantMetric(`firn_http_aborts_total{by="slow client"} 1`)
}

// A client that reads slowly but steadily gets everything, however long that takes in all.
func TestSteadyReader(t *testing.T) {
	const size = 40 * slice
	turns := make(chan struct{}) // the writer goes on when the reader has read
	tt := newOdd(t, size, func(_ context.Context, w io.Writer) error {
		for range 40 {
			if _, err := w.Write(make([]byte, slice)); err != nil {
				return err
			}
			<-turns
		}
		return nil
	})
	tt.server.patience = 200 * time.Millisecond
	tt.listen("127.0.0.1:0")
	resp, err := tt.client.Get(tt.url + helloNAR)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	tick := time.NewTicker(tt.server.patience / 10) // 40 ticks take several times patience
	defer tick.Stop()
	for i := range 40 {
		if _, err := io.CopyN(io.Discard, resp.Body, slice); err != nil {
			t.Fatalf("slice %d: %v", i, err)
		}
		<-tick.C
		turns <- struct{}{}
	}
}

// A client that goes away ends the writing of its NAR.
func TestClientGone(t *testing.T) {
	ended := make(chan error, 1)
	tt := newOdd(t, 1<<40, func(_ context.Context, w io.Writer) (err error) {
		defer func() { ended <- err }()
		for chunk := make([]byte, 1<<20); err == nil; {
			_, err = w.Write(chunk)
		}
		return err
	})
	tt.listen("127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", tt.url+helloNAR, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tt.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	if err := <-ended; err == nil {
		t.Error("the NAR was written to its end")
	}
	tt.wantMetric(`firn_http_aborts_total{by="client"} 1`)
}

// When the server ends, running answers are sent to their end, and nothing new is begun.
func TestGracefulEnd(t *testing.T) {
	s, l := gracefulServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(ctx, l) }()
	resp, err := s.client.Get(s.url + helloNAR)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	// The listener closes at once, though an answer is still being sent.
	for {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		c.Close()
	}
	close(s.proceed)
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 2*slice {
		t.Errorf("%d bytes and %v, want all of the NAR", n, err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// What takes longer than the server is ready to wait is cut.
func TestGraceIsLimited(t *testing.T) {
	s, l := gracefulServer(t)
	s.server.graceLimit = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(ctx, l) }()
	resp, err := s.client.Get(s.url + helloNAR)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the client saw no error")
	}
}

type graceful struct {
	*tester
	proceed chan struct{} // closed to let the second half of the NAR be written
}

func gracefulServer(t *testing.T) (*graceful, net.Listener) {
	g := &graceful{proceed: make(chan struct{})}
	g.tester = newOdd(t, 2*slice, func(ctx context.Context, w io.Writer) error {
		if _, err := w.Write(make([]byte, slice)); err != nil {
			return err
		}
		select {
		case <-g.proceed:
		case <-ctx.Done():
			return ctx.Err()
		}
		_, err := w.Write(make([]byte, slice))
		return err
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.connect(l.Addr().String())
	return g, l
}

// raw sends bytes to the server, and returns the answer to the first request in them.
func (t *tester) raw(request string) (*http.Response, net.Conn) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(t.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.100q: %v", request, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp, conn
}

func TestRawRequests(t *testing.T) {
	tt := newTester(t)
	for _, test := range []struct {
		name    string
		request string
		status  int
	}{
		{"HTTP/1.0", "GET /nix-cache-info HTTP/1.0\r\n\r\n", 200},
		{"absolute URL", "GET http://x/nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		{"absolute URL without a path", "GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"dots", "GET /nar/../nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"zero byte", "GET /%00.narinfo HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		{"CONNECT", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 405},
		{"headers that do not end", "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 40<<10), 431},
		{"long URL", "GET /" + strings.Repeat("x", 40<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 431},
	} {
		t.Run(test.name, func(t *testing.T) {
			tt := *tt
			tt.T = t
			if resp, _ := tt.raw(test.request); resp.StatusCode != test.status {
				t.Errorf("%s, want %d", resp.Status, test.status)
			}
		})
	}
}

// The body of a request that is refused is not waited for beyond its limit, nor taken for the next request.
func TestRequestBody(t *testing.T) {
	tt := newTester(t)
	tt.server.bodyLimit = 50 * time.Millisecond
	tt.listen("127.0.0.1:0")
	for _, request := range []string{
		"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nGET / HTTP/1.1\r\n",
		"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4000000\r\nxx",
	} {
		resp, conn := tt.raw(request)
		if !resp.Close {
			t.Errorf("%.60q: the connection stays open", request)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%.60q: %v", request, err)
		}
	}
}

// A file goes through body to the connection in a way that lets the kernel send it:
// the connection is given slices of the file itself.
func TestBodyHandsDownFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	content := strings.Repeat("0123456789abcdef", 5*slice/32) // two slices and a half
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int64{-1, 0, 1, slice, slice + 1, int64(len(content)), 1 << 40} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w := &recorder{t: t, file: f}
			b := &body{x: &exchange{w: w, patience: time.Minute}, status: 200}
			var r io.Reader = f
			want := content
			if limit >= 0 {
				r = &io.LimitedReader{R: f, N: limit}
				want = content[:min(limit, int64(len(content)))]
			}
			n, err := b.ReadFrom(r)
			if err != nil || n != int64(len(want)) || w.got.String() != want || b.x.sent != n {
				t.Errorf("ReadFrom is %d, %v, and %d bytes came, want %d", n, err, w.got.Len(), len(want))
			}
			if l, ok := r.(*io.LimitedReader); ok && l.N != limit-n {
				t.Errorf("the reader has %d bytes left, want %d", l.N, limit-n)
			}
		})
	}
}

// recorder is a connection that insists on slices of a file.
type recorder struct {
	http.ResponseWriter
	t    *testing.T
	file *os.File
	got  strings.Builder
}

func (r *recorder) WriteHeader(int) {}

func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	l, ok := src.(*io.LimitedReader)
	if !ok || l.R != r.file || l.N > slice {
		r.t.Errorf("the connection was given a %T, want a slice of the file", src)
	}
	return io.Copy(&r.got, src)
}

// growing is a log that is longer than it said.
type growing struct{ *strings.Reader }

func (g growing) Size() (int64, bool) { return g.Reader.Size() - 4, true }
func (g growing) Close() error        { return nil }

type growingLogs struct{ *cachetest.Memory }

func (growingLogs) OpenLog(context.Context, nix.StorePath) (cache.Log, error) {
	return growing{strings.NewReader("as long as it was, and more")}, nil
}

// A log that grows while it is sent is sent as long as it was.
func TestGrowingLog(t *testing.T) {
	tt := &tester{T: t}
	tt.serve(growingLogs{cachetest.NewMemory()})
	tt.listen("127.0.0.1:0")
	tt.wantAnswer(call{target: "/log/00000000000000000000000000000000-x.drv", status: 200, body: "as long as it was, and "}, "GET")
}

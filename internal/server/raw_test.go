package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

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
	tt.wantMetricSoon(`firn_http_aborts_total{by="client"} 1`) // it is counted after the writing has ended
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

// A file that is written to an answer reaches the connection in a form that lets the kernel send it,
// through all of net/http: of its bytes only the first few are copied.
func TestFilesAreHandedDown(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 8 << 20
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	tt := newOdd(t, size, func(_ context.Context, w io.Writer) error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = w.(io.ReaderFrom).ReadFrom(&io.LimitedReader{R: countReads{f, t}, N: size})
		return err
	})
	tt.listen("127.0.0.1:0")
	tt.wantAnswer(call{target: helloNAR, status: 200, body: "*"}, "GET")
}

// countReads is a file that is not to be read much.
type countReads struct {
	*os.File
	t *testing.T
}

func (c countReads) Read(p []byte) (int, error) {
	if len(p) > 4096 {
		c.t.Errorf("%d bytes of the file are copied, instead of sent by the kernel", len(p))
	}
	return c.File.Read(p)
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

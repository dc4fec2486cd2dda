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
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

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

// A file that is written to an answer reaches the connection in a form that lets the kernel send it: as slices of the file itself.
func TestFilesAreHandedDown(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 5*slice/32) // two slices and a half
	name := filepath.Join(t.TempDir(), "file")
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
			var r io.Reader = f
			want := content
			if limit >= 0 {
				r = &io.LimitedReader{R: f, N: limit}
				want = content[:min(limit, int64(len(content)))]
			}
			conn := &recorder{t: t, file: f}
			n, err := newLink(conn, func(*link) {}).ReadFrom(r)
			if err != nil || n != int64(len(want)) || conn.got.String() != want {
				t.Errorf("ReadFrom is %d, %v, and %d bytes came, want %d", n, err, conn.got.Len(), len(want))
			}
			if l, ok := r.(*io.LimitedReader); ok && l.N != limit-n {
				t.Errorf("the reader has %d bytes left, want %d", l.N, limit-n)
			}
		})
	}

	// The same through all of net/http: of the connection's bytes only the first few are copied.
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

// A section of a file is sent by the kernel as well, over TCP and over Unix sockets, and many
// connections may be sent the same file at once.
func TestSectionsAreHandedDown(t *testing.T) {
	content := make([]byte, 5*slice/2)
	for i := range content {
		content[i] = byte(i>>8 ^ i)
	}
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, address := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", filepath.Join(t.TempDir(), "s")}} {
		l, err := net.Listen(address[0], address[1])
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var all sync.WaitGroup
		for i, want := range [][2]int{{0, len(content)}, {1, slice}, {slice, slice + 1}, {len(content) - 1, 1}, {7, 0}, {0, 5000}, {3, 2 * slice}} {
			client, err := net.Dial(address[0], l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			off, size := want[0], want[1]
			all.Go(func() {
				link := newLink(server, func(*link) {})
				defer link.Close()
				section := io.NewSectionReader(f, int64(off), int64(size))
				skipped := min(512, size)
				if _, err := io.CopyN(io.Discard, section, int64(skipped)); err != nil {
					t.Error(err)
				}
				if n, err := link.ReadFrom(section); err != nil || n != int64(size-skipped) {
					t.Errorf("range %d: ReadFrom is %d, %v", i, n, err)
				}
				if runtime.GOOS == "linux" {
					if _, err := sendFile(server, f, 0, 0); err != nil {
						t.Errorf("%s is not sent by the kernel: %v", address[0], err)
					}
				}
			})
			all.Go(func() {
				defer client.Close()
				time.Sleep(10 * time.Millisecond) // so that the connection is full for a while
				skipped := min(512, size)
				if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, content[off+skipped:off+size]) {
					t.Errorf("range %d: %d other bytes, %v", i, len(got), err)
				}
			})
		}
		all.Wait()
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		t.Errorf("the offset of the file is %d, %v: others read from there", at, err)
	}

	// What is no socket, a file that is shorter, a client that has gone, and one that takes
	// nothing.
	client, server := net.Pipe()
	go func() {
		newLink(server, func(*link) {}).ReadFrom(io.NewSectionReader(f, 3, 2*slice))
		server.Close()
	}()
	if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, content[3:3+2*slice]) {
		t.Errorf("over a pipe: %d other bytes, %v", len(got), err)
	}
	client, server = socketPair(t)
	short := make(chan int64, 1)
	go func() {
		n, err := newLink(server, func(*link) {}).ReadFrom(io.NewSectionReader(f, int64(len(content))-10, 1000))
		if err != nil {
			t.Error(err)
		}
		server.Close()
		short <- n
	}()
	if got, err := io.ReadAll(client); err != nil || len(got) != 10 || <-short != 10 {
		t.Errorf("a file that is shorter: %d bytes, %v", len(got), err)
	}
	client, server = socketPair(t)
	client.Close()
	_, err = newLink(server, func(*link) {}).ReadFrom(io.NewSectionReader(f, 0, int64(len(content))))
	if by := abortedBy(httptest.NewRequest("GET", "/", nil), err); by != byClient {
		t.Errorf("a client that has gone: by %v, %v", by, err)
	}
	if runtime.GOOS == "linux" {
		_, server = socketPair(t)
		if err := server.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for err = nil; err == nil; {
			_, err = sendFile(server, f, 0, int64(len(content)))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a client that takes nothing: %v", err)
		}
	}
}

// socketPair returns the ends of a connection.
func socketPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
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

// recorder is a connection that insists on slices of a file.
type recorder struct {
	net.Conn
	t    *testing.T
	file *os.File
	got  strings.Builder
}

func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) Write(p []byte) (int, error)      { return 0, errors.New("not by sendfile") }

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

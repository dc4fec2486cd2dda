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
	"strconv"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// benchPaths is how many store paths the benchmarks ask for in turn.
const benchPaths = 1000

// benchServer returns a server over a store of benchPaths paths, and the requests for their narinfos.
func benchServer(b *testing.B) (*Server, []string) {
	key, err := nix.GenerateKey("bench-1")
	if err != nil {
		b.Fatal(err)
	}
	source := cachetest.NewMemory()
	targets := make([]string, benchPaths)
	for i := range targets {
		path := cachetest.NewPath(b, nix.DefaultStoreDir, "path-"+strconv.Itoa(i), strings.Repeat("x", i))
		source.Add(path)
		targets[i] = "/" + path.Info.Path.Hash().String() + ".narinfo"
	}
	c, err := cache.New([]cache.Source{source}, cache.Options{Keys: []nix.SecretKey{key}})
	if err != nil {
		b.Fatal(err)
	}
	return newServer(cache.Only(c), Options{}), targets
}

// benchListen lets a server answer on the loopback until the benchmark ends.
func benchListen(b testing.TB, s *Server) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, l) }()
	b.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	return l.Addr().String()
}

// The handlers alone, without net/http.
func BenchmarkHandler(b *testing.B) {
	s, targets := benchServer(b)
	for _, bench := range []struct {
		name    string
		targets []string
		status  int
	}{
		{"NARInfoHit", targets, http.StatusOK},
		{"NARInfoMiss", []string{"/" + absentHash + ".narinfo"}, http.StatusNotFound},
		{"NAR", []string{benchNAR(b, s, targets[0])}, http.StatusOK},
	} {
		requests := make([]*http.Request, len(bench.targets))
		for i, target := range bench.targets {
			r, err := http.NewRequestWithContext(b.Context(), "GET", target, nil)
			if err != nil {
				b.Fatal(err)
			}
			r.Header["Accept"] = []string{"*/*"}
			requests[i] = r
		}
		b.Run(bench.name, func(b *testing.B) {
			w := &nowhere{header: make(http.Header)}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				clear(w.header)
				s.answer(w, requests[i%len(requests)], nil)
				if w.status != bench.status {
					b.Fatalf("status %d", w.status)
				}
			}
		})
	}
}

// benchNAR returns the URL of the NAR of a narinfo.
func benchNAR(b *testing.B, s *Server, narinfo string) string {
	hash, err := nix.ParsePathHash(narinfo[1:33])
	if err != nil {
		b.Fatal(err)
	}
	c, err := s.caches.ByHost(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	info, err := c.Lookup(b.Context(), hash)
	if err != nil {
		b.Fatal(err)
	}
	return "/" + info.URL
}

// nowhere is a connection that takes everything.
type nowhere struct {
	header http.Header
	status int
}

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) WriteHeader(status int)      { n.status = status }

// Over real connections, as many as b.SetParallelism says, each asking for the next when it has the answer.
// The client is bare, so that it costs little beside the server.
func BenchmarkNARInfoHit(b *testing.B)  { benchConnections(b, true) }
func BenchmarkNARInfoMiss(b *testing.B) { benchConnections(b, false) }

func benchConnections(b *testing.B, hit bool) {
	s, targets := benchServer(b)
	if !hit {
		targets = []string{"/" + absentHash + ".narinfo"}
	}
	address := benchListen(b, s)
	b.Run("1", func(b *testing.B) {
		c := newBareClient(b, address)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			c.get(targets[i%len(targets)])
		}
	})
	b.Run("64", func(b *testing.B) {
		b.SetParallelism(32) // times two cores
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			c := newBareClient(b, address)
			for i := 0; pb.Next(); i++ {
				c.get(targets[i%len(targets)])
			}
		})
	})
}

// bareClient is the least that can ask over a kept connection.
type bareClient struct {
	testing.TB
	conn net.Conn
	r    *bufio.Reader
	line []byte
}

func newBareClient(b *testing.B, address string) *bareClient {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return &bareClient{b, conn, bufio.NewReader(conn), nil}
}

// get asks for a target, and reads the answer to its end.
func (c *bareClient) get(target string) int {
	c.line = fmt.Appendf(c.line[:0], "GET %s HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/8.14.1 Nix/2.31.2\r\nAccept: */*\r\n\r\n", target)
	if _, err := c.conn.Write(c.line); err != nil {
		c.Fatal(err)
	}
	length := 0
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			c.Fatal(err)
		}
		if value, ok := strings.CutPrefix(string(line), "Content-Length: "); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(value))
		}
		if len(line) == len("\r\n") {
			break
		}
	}
	n, err := c.r.Discard(length)
	if err != nil {
		c.Fatal(err)
	}
	return n
}

// A NAR of one large file, sent by the kernel: as its own file, and as a section of one that others
// read too.
func BenchmarkNARFile(b *testing.B) {
	const size = 256 << 20
	for name, of := range map[string]func(*os.File) io.Reader{
		"file":    func(f *os.File) io.Reader { return &io.LimitedReader{R: f, N: size} },
		"section": func(f *os.File) io.Reader { return io.NewSectionReader(f, 0, size) },
	} {
		b.Run(name, func(b *testing.B) { benchmarkNARFile(b, size, of) })
	}
}

func benchmarkNARFile(b *testing.B, size int64, of func(*os.File) io.Reader) {
	name := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	path := cachetest.NewPath(b, nix.DefaultStoreDir, "hello.txt", "hello\n")
	source := &odd{cachetest.NewMemory(path), size, func(_ context.Context, w io.Writer) error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, of(f))
		return err
	}}
	c, err := cache.New([]cache.Source{source}, cache.Options{})
	if err != nil {
		b.Fatal(err)
	}
	client := newBareClient(b, benchListen(b, newServer(cache.Only(c), Options{})))
	b.SetBytes(size)
	for b.Loop() {
		client.get(helloNAR)
	}
}

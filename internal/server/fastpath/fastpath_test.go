package fastpath

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	hash = "i9pmrzmpshapij2kin22pff6fc2adavx"
	nar  = "/nar/" + hash + "-04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw.nar"
)

// request is one as Nix sends it, with more fields in its header.
func request(method, path string, fields ...string) string {
	r := method + " " + path + " HTTP/1.1\r\nHost: cache.example.org:5000\r\nUser-Agent: curl/8.14.1 Nix/2.31.2\r\nAccept: */*\r\nAccept-Encoding: zstd, br, gzip, deflate, bzip2, xz\r\n"
	for _, f := range fields {
		r += f + "\r\n"
	}
	return r + "\r\n"
}

// Which requests are answered without net/http, and that net/http reads the same in them.
func TestSimpleRequests(t *testing.T) {
	const path = "/" + hash + ".narinfo"
	get := request("GET", path)
	for _, test := range []struct {
		name, request string
		simple        bool
	}{
		{"Nix", get, true},
		{"HEAD", request("HEAD", path), true},
		{"cache info", request("GET", "/nix-cache-info"), true},
		{"of a cache", request("GET", "/team_1"+path), true},
		{"not a path hash", request("GET", "/-.narinfo"), true},
		{"two slashes", request("GET", "//a"+path), true},
		{"two of them", get + request("GET", "/nix-cache-info"), true},
		{"with the start of another", get + "GET /", true},
		{"a token", request("GET", path, "Authorization: Basic eDp5"), true},
		{"through proxies", request("GET", path, "X-Forwarded-For: 1.2.3.4", "x-forwarded-for:5.6.7.8", "Via: 1.1 x"), true},
		{"spaces around a value", request("GET", path, "Via: \t 1.1 x \t"), true},
		{"kept alive", request("GET", path, "Connection: Keep-Alive"), true},

		{"nothing", "", false},
		{"the start of one", get[:len(get)-2], false},
		{"too long", request("GET", path, "Via: "+strings.Repeat("x", maxRequest)), false},
		{"PUT", request("PUT", path), false},
		{"no method", strings.TrimPrefix(get, "GET "), false},
		{"NAR", request("GET", nar), false},
		{"HTTP/1.0", strings.Replace(get, "HTTP/1.1", "HTTP/1.0", 1), false},
		{"no version", strings.Replace(get, " HTTP/1.1", "", 1), false},
		{"two spaces", strings.Replace(get, " HTTP", "  HTTP", 1), false},
		{"no slash", request("GET", path[1:]), false},
		{"absolute URL", request("GET", "http://x"+path), false},
		{"query", request("GET", path+"?json"), false},
		{"escape", request("GET", "/%61"+path), false},
		{"no host", "GET " + path + " HTTP/1.1\r\nAccept: */*\r\n\r\n", false},
		{"no header", "GET " + path + " HTTP/1.1\r\n\r\n", false},
		{"two hosts", request("GET", path, "Host: y"), false},
		{"an empty host before another", "GET " + path + " HTTP/1.1\r\nHost:\r\nHost: x\r\n\r\n", false},
		{"an empty host behind another", "GET " + path + " HTTP/1.1\r\nHost: x\r\nHost:\r\n\r\n", false},
		{"an odd host", request("GET", path+" HTTP/1.1\r\nHost: x/y"), false},
		{"closed", request("GET", path, "Connection: close"), false},
		{"upgraded", request("GET", path, "Connection: upgrade", "Upgrade: h2c"), false},
		{"body", request("GET", path, "Content-Length: 1") + "x", false},
		{"chunks", request("GET", path, "Transfer-Encoding: chunked") + "0\r\n\r\n", false},
		{"awaited body", request("GET", path, "Expect: 100-continue"), false},
		{"range", request("GET", path, "Range: bytes=0-1"), false},
		{"condition", request("GET", path, "If-None-Match: *"), false},
		{"space before a colon", request("GET", path, "Via : x"), false},
		{"no colon", request("GET", path, "Via"), false},
		{"continued line", request("GET", path, "Via: x", " y"), false},
		{"bare line feed", request("GET", path, "Via: x\nContent-Length: 1"), false},
		{"bare carriage return", request("GET", path, "Via: x\rContent-Length: 1"), false},
		{"line ends of Unix", strings.ReplaceAll(get, "\r\n", "\n"), false},
		{"zero byte", request("GET", path, "Via: \x00"), false},
		{"byte above ASCII", request("GET", path, "Via: \xff"), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if n := parseBoth(t, []byte(test.request)); (n > 0) != test.simple {
				t.Errorf("%d bytes are a simple request, want one: %v", n, test.simple)
			}
		})
	}
}

// parseBoth parses a request, and compares the result with what net/http reads.
func parseBoth(t *testing.T, b []byte) int {
	c := &conn{}
	c.request.URL = &c.url
	size := c.parse(b[:min(len(b), maxRequest)])
	if size == 0 {
		return 0
	}
	rest := bytes.NewReader(b)
	r := bufio.NewReader(rest)
	want, err := http.ReadRequest(r)
	if err != nil {
		t.Fatalf("net/http refuses %q: %v", b[:size], err)
	}
	if read := len(b) - rest.Len() - r.Buffered(); read != size {
		t.Errorf("net/http reads %d bytes of %q, and not %d", read, b, size)
	}
	type parts struct {
		Method, URI, Path, RawPath, Query, Host, Proto string
		Header                                         http.Header
		Close                                          bool
		Length                                         int64
	}
	of := func(r *http.Request) parts {
		return parts{r.Method, r.RequestURI, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.Host, "HTTP/1.1", r.Header, r.Close, r.ContentLength}
	}
	if diff := cmp.Diff(of(want), of(&c.request)); diff != "" {
		t.Errorf("%q: net/http has -, fastpath +\n%s", b[:size], diff)
	}
	return size
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(request("GET", "/"+hash+".narinfo", "Connection: keep-alive", "Authorization: Basic eDp5")))
	f.Add([]byte(request("HEAD", "/nix-cache-info", "X-Forwarded-For: 1.2.3.4", "Via:\t1.1 x ", "Via: ")))
	f.Add([]byte("GET /nix-cache-info HTTP/1.1\r\nHost:\r\nHost: x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) { parseBoth(t, b) })
}

// pipes is a listener of connections that a test makes.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// unreader is a connection of which nothing was read yet.
type unreader struct {
	net.Conn
	unread []byte
}

func (u *unreader) Unread(b []byte) { u.unread = b }

// A connection that brought a part of a request waits for the rest, and net/http gets what has come.
func TestPartOfRequest(t *testing.T) {
	in, states := make(pipes), make(chan http.ConnState, 9)
	srv := &http.Server{ReadHeaderTimeout: time.Minute, IdleTimeout: time.Minute, ConnState: func(_ net.Conn, s http.ConnState) { states <- s }}
	l := Listen(in, srv)
	client, server := net.Pipe()
	defer client.Close()
	in <- &unreader{Conn: server}
	if _, err := io.WriteString(client, "G"); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if unread := string(c.(*unreader).unread); unread != "G" {
		t.Errorf("net/http gets %q, want what was read", unread)
	}
	if first, last := <-states, <-states; first != http.StateActive || last != http.StateIdle {
		t.Errorf("the states are %v and %v: the connection does not wait for its request", first, last)
	}
	in.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end Accept is %v", err)
	}
}

// A handler that panics ends its connection, and nothing else.
func TestPanic(t *testing.T) {
	in := make(pipes)
	l := Listen(in, &http.Server{ReadHeaderTimeout: time.Minute, IdleTimeout: time.Minute, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("x") })})
	for range 2 {
		client, server := net.Pipe()
		in <- &unreader{Conn: server}
		if _, err := io.WriteString(client, request("GET", "/nix-cache-info")); err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(client); err != nil || len(text) > 0 {
			t.Errorf("%q, %v, want the end of the connection", text, err)
		}
	}
	in.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept is %v", err)
	}
}

// The answers to requests that came together with the one whose handler panics are sent.
func TestPanicBehindAnswers(t *testing.T) {
	in := make(pipes)
	l := Listen(in, &http.Server{ReadHeaderTimeout: time.Minute, IdleTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Length"] = []string{"2"}
		_, _ = io.WriteString(w, "ok")
		if r.Method == http.MethodHead {
			panic(http.ErrAbortHandler)
		}
	})})
	client, server := net.Pipe()
	in <- &unreader{Conn: server}
	get := request("GET", "/nix-cache-info")
	if _, err := io.WriteString(client, get+get+request("HEAD", "/nix-cache-info")); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(client)
	if n := strings.Count(string(text), "\r\n\r\nok"); err != nil || n != 2 || !strings.HasSuffix(string(text), "ok") {
		t.Errorf("%q, %v, want two answers and nothing of the third", text, err)
	}
	in.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept is %v", err)
	}
}

// broken is a connection whose client has gone.
type broken struct{ net.Conn }

func (broken) Unread([]byte)             {}
func (broken) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// The handler learns why a large answer could not be sent, so that the log does not blame the source
// for it.
func TestLargeAnswerToNobody(t *testing.T) {
	c := &conn{conn: broken{}, header: make(http.Header), out: new([]byte)}
	c.request.Method = http.MethodGet
	if _, err := c.Write(make([]byte, keptBytes+1)); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the error is %v, want %v", err, syscall.EPIPE)
	}
}

package server

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
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
func TestShortRequests(t *testing.T) {
	const path = "/" + helloHash + ".narinfo"
	get := request("GET", path)
	for _, test := range []struct {
		name, request string
		short         bool
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
		{"too long", request("GET", path, "Via: "+strings.Repeat("x", laneBytes)), false},
		{"PUT", request("PUT", path), false},
		{"no method", strings.TrimPrefix(get, "GET "), false},
		{"NAR", request("GET", helloNAR), false},
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
			if n := parseBoth(t, []byte(test.request)); (n > 0) != test.short {
				t.Errorf("%d bytes go the short way, want it: %v", n, test.short)
			}
		})
	}
}

// parseBoth has a lane parse a request, and compares what that takes for one with what net/http reads.
func parseBoth(t *testing.T, b []byte) int {
	n := &lane{}
	n.request.URL = &n.url
	size := n.parse(b[:min(len(b), laneBytes)])
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
	if diff := cmp.Diff(of(want), of(&n.request)); diff != "" {
		t.Errorf("%q: net/http has -, a lane +\n%s", b[:size], diff)
	}
	return size
}

func FuzzShortRequest(f *testing.F) {
	f.Add([]byte(request("GET", "/"+helloHash+".narinfo", "Connection: keep-alive", "Authorization: Basic eDp5")))
	f.Add([]byte(request("HEAD", "/nix-cache-info", "X-Forwarded-For: 1.2.3.4", "Via:\t1.1 x ", "Via: ")))
	f.Add([]byte("GET /nix-cache-info HTTP/1.1\r\nHost:\r\nHost: x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) { parseBoth(t, b) })
}

// Answers of a lane are those of net/http, which a field that only it knows brings a request to.
func TestShortAnswers(t *testing.T) {
	tt := newTester(t)
	for _, method := range []string{"GET", "HEAD"} {
		for _, path := range []string{"/" + helloHash + ".narinfo", "/" + absentHash + ".narinfo", "/x.narinfo", "/nix-cache-info", "/team/nix-cache-info"} {
			for _, accept := range []string{"Accept: */*", "Accept: application/json"} {
				ask := func(fields ...string) (status int, header http.Header, body string) {
					resp, conn := tt.raw(request(method, path, append(fields, accept)...))
					defer conn.Close()
					if method == "GET" {
						text, err := io.ReadAll(resp.Body)
						if err != nil {
							t.Error(err)
						}
						body = string(text)
					}
					if date, err := http.ParseTime(resp.Header.Get("Date")); err != nil || time.Since(date) > time.Minute {
						t.Errorf("the date is %v, %v", date, err)
					}
					resp.Header.Del("Date")
					return resp.StatusCode, resp.Header, body
				}
				wantStatus, wantHeader, wantBody := ask("Pragma: no-cache")
				status, header, body := ask()
				if status != wantStatus || body != wantBody || !cmp.Equal(header, wantHeader) {
					t.Errorf("%s %s, %s: %d %q\n%s", method, path, accept, status, body, cmp.Diff(wantHeader, header))
				}
			}
		}
	}
}

// A connection goes on with net/http where a lane leaves it: nothing of what came meanwhile is lost, and answers come in order.
func TestShortGivesOn(t *testing.T) {
	tt := newTester(t)
	requests := request("GET", "/nix-cache-info") + request("GET", "/"+helloHash+".narinfo") + request("HEAD", "/"+helloHash+".narinfo") +
		request("GET", helloNAR) + request("GET", "/"+absentHash+".narinfo") + request("GET", "/nix-cache-info", "Connection: close")
	for _, step := range []int{1, 7, 300, len(requests)} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(tt.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for rest := requests; rest != ""; {
				n := min(step, len(rest))
				if _, err := io.WriteString(conn, rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
		}()
		r := bufio.NewReader(conn)
		for i, want := range []struct {
			method, kind string
			status       int
		}{
			{"GET", "text/x-nix-cache-info", 200},
			{"GET", "text/x-nix-narinfo", 200},
			{"HEAD", "text/x-nix-narinfo", 200},
			{"GET", "application/x-nix-nar", 200},
			{"GET", "text/plain; charset=utf-8", 404},
			{"GET", "text/x-nix-cache-info", 200},
		} {
			resp, err := http.ReadResponse(r, &http.Request{Method: want.method})
			if err != nil {
				t.Fatalf("in steps of %d, answer %d: %v", step, i, err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Errorf("in steps of %d, answer %d: %v", step, i, err)
			}
			if kind := resp.Header.Get("Content-Type"); resp.StatusCode != want.status || kind != want.kind {
				t.Errorf("in steps of %d, answer %d is %d, %s, want %d, %s", step, i, resp.StatusCode, kind, want.status, want.kind)
			}
		}
		if _, err := r.ReadByte(); err != io.EOF {
			t.Errorf("in steps of %d: %v after the last answer", step, err)
		}
		conn.Close()
	}
}

// Requests that come together are answered together, however many they are.
func TestShortPipeline(t *testing.T) {
	tt := newTester(t)
	const count = 5000
	conn, err := net.Dial("tcp", strings.TrimPrefix(tt.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		one := request("GET", "/"+helloHash+".narinfo")
		if _, err := io.WriteString(conn, strings.Repeat(one, count)); err != nil {
			t.Error(err)
		}
	}()
	r := bufio.NewReader(conn)
	for i := range count {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("answer %d: %s, %v", i, resp.Status, err)
		}
	}
}

// A lane waits for requests as long as net/http does.
func TestShortIdle(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(1, nil)
		_, r := t.dial()
		t.wantCut(r, headerLimit)

		conn, r := t.dial()
		for range 3 {
			time.Sleep(headerLimit / 2)
			if _, err := io.WriteString(conn, request("GET", "/nix-cache-info")); err != nil {
				t.Fatal(err)
			}
			resp := t.answer(r)
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s, %v", resp.Status, err)
			}
			synctest.Wait()
		}
		start := time.Now()
		if _, err := r.ReadByte(); err == nil {
			t.Error("more came than was asked for")
		}
		if waited := time.Since(start); waited < idleLimit-deadlineStep || waited > idleLimit {
			t.Errorf("the connection was idle for %v, want %v", waited, idleLimit)
		}
	})
}

// A connection that brought a part of a request waits for the rest: it makes room for others, and does not hold up the end.
func TestShortPart(t *testing.T) {
	inBubble(t, func(t *pipeTester) {
		t.serve(1, nil)
		conn, r := t.dial()
		if _, err := io.WriteString(conn, "G"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		start := time.Now()
		t.end()
		if _, err := io.Copy(io.Discard, r); err != nil { // net/http may say that this was no request
			t.Error(err)
		}
		if took := time.Since(start); took > 2*quietTime {
			t.Errorf("the connection was open for %v after the end had begun", took)
		}
	})

	inBubble(t, func(t *pipeTester) {
		t.serve(1, nil)
		client, server := net.Pipe()
		defer client.Close()
		l := newLink(server, func(*link) {})
		more := make(chan bool)
		go func() { more <- t.server.short(t.Context(), l, nil) }()
		if _, err := io.WriteString(client, "G"); err != nil {
			t.Fatal(err)
		}
		if _, idle := l.idleSince(); !<-more || !idle {
			t.Error("the connection does not wait for its request")
		}
		l.Close()
	})
}

// failing is a listener that cannot accept.
type failing struct{ pipes }

func (failing) Accept() (net.Conn, error) { return nil, syscall.ENOMEM }

// A listener that fails for good ends Serve, also at the moment at which that is to end anyway.
func TestFailingListener(t *testing.T) {
	tt := newTester(t)
	for range 500 {
		ctx, end := context.WithCancel(t.Context())
		served := make(chan struct{})
		go func() {
			_ = tt.server.Serve(ctx, failing{make(pipes)}) // with an error, unless ctx ended first
			close(served)
		}()
		end()
		select {
		case <-served:
		case <-time.After(time.Minute):
			t.Fatal("Serve does not return")
		}
	}
}

package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"firn/internal/server/connlimit"

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

// Answers of a lane are those of net/http, which a field that only it knows brings a request to.
func TestFastAnswers(t *testing.T) {
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
func TestFastGivesOn(t *testing.T) {
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
func TestFastPipeline(t *testing.T) {
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
func TestFastIdle(t *testing.T) {
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
		if waited := time.Since(start); waited < idleLimit-time.Second /* by which the fast path may be early */ || waited > idleLimit {
			t.Errorf("the connection was idle for %v, want %v", waited, idleLimit)
		}
	})
}

// A connection that brought a part of a request waits for the rest: it makes room for others, and does not hold up the end.
func TestFastPart(t *testing.T) {
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
		if took := time.Since(start); took > 2*connlimit.QuietTime {
			t.Errorf("the connection was open for %v after the end had begun", took)
		}
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

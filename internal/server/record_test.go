package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"firn/internal/cache/cachetest"
	"firn/internal/logs"
	"firn/nix"
)

// logTo has a server log its requests, and returns what reads the log to its end.
func (s *Server) logTo(t *testing.T, format logs.Format) (read func() string) {
	t.Helper()
	var b bytes.Buffer
	s.requests = logs.NewRequests(&b, logs.RequestOptions{Format: format})
	closed := false
	read = func() string {
		if !closed {
			closed = true
			s.requests.Close()
		}
		return b.String()
	}
	t.Cleanup(func() { read() })
	return read
}

// Lines say who asked for what and what came of it, and never hold what may be a secret.
func TestRequestLog(t *testing.T) {
	secrets := []string{"push-team", "s3cret"}
	for _, format := range []logs.Format{logs.Combined, logs.JSON} {
		p := newCaches(t, Options{Access: tokens})
		read := p.server.logTo(t, format)
		p.listen("127.0.0.1:0")
		p.do("GET", "/nix-cache-info", "User-Agent: curl/8.0")
		p.do("HEAD", "/team/nix-cache-info", as("push-team"))
		p.do("GET", "/team/nix-cache-info", as("s3cret"))
		p.do("GET", "/"+absentHash+".narinfo?json")
		p.do("GET", "/nix-cache-info?token=s3cret", "Referer: http://any:s3cret@example.org/page?token=s3cret#s3cret")
		p.do("GET", "/nar/"+otherNARHash+".nar?hash="+helloHash)
		p.do("GET", "/log/"+logName)
		p.do("GET", "/log/x?s3cret")
		p.do("GET", "/%0a%22forged", `User-Agent: "\"`)
		p.do("PUT", "/nix-cache-info", as("push-main"))
		p.do("POST", "/")
		p.raw("GET http://any:s3cret@x/health HTTP/1.0\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
		p.client.CloseIdleConnections()
		got := read()
		for _, secret := range secrets {
			if strings.Contains(got, secret) {
				t.Errorf("%s: the log holds %q:\n%s", format, secret, got)
			}
		}
		lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
		want := []struct{ user, request, status, rest string }{
			{"-", "GET /nix-cache-info HTTP/1.1", "200", `"-" "curl/8.0"`},
			{"c", "HEAD /team/nix-cache-info HTTP/1.1", "200", `"-" "Go-http-client/1.1"`},
			{"-", "GET /team/nix-cache-info HTTP/1.1", "401", `"-" "Go-http-client/1.1"`},
			{"-", "GET /" + absentHash + ".narinfo?json HTTP/1.1", "404", `"-" "Go-http-client/1.1"`},
			{"-", "GET /nix-cache-info?... HTTP/1.1", "200", `"http://example.org/page" "Go-http-client/1.1"`},
			{"-", "GET /nar/" + otherNARHash + ".nar?hash=" + helloHash + " HTTP/1.1", "404", `"-" "Go-http-client/1.1"`},
			{"-", "GET /log/" + logName + " HTTP/1.1", "404", `"-" "Go-http-client/1.1"`},
			{"-", "GET /log/x?... HTTP/1.1", "404", `"-" "Go-http-client/1.1"`},
			{"-", "GET /%0a%22forged HTTP/1.1", "404", `"-" "\"\\\""`},
			{"a", "PUT /nix-cache-info HTTP/1.1", "", `"-" "Go-http-client/1.1"`},
			{"-", "POST / HTTP/1.1", "405", `"-" "Go-http-client/1.1"`},
			{"-", "GET /health HTTP/1.0", "200", `"-" "-"`},
		}
		if len(lines) != len(want) {
			t.Fatalf("%s: %d lines, want %d:\n%s", format, len(lines), len(want), got)
		}
		for i, w := range want {
			if format == logs.Combined {
				before, after, _ := strings.Cut(lines[i], "] ")
				if !strings.HasPrefix(before, "127.0.0.1 - "+w.user+" [") || !strings.HasPrefix(after, `"`+w.request+`" `+w.status) || !strings.HasSuffix(after, w.rest) {
					t.Errorf("line %d is\n%s\nwant %v", i, lines[i], w)
				}
				continue
			}
			var r struct{ Method, URI, Proto, Remote, User string }
			if err := json.Unmarshal([]byte(lines[i]), &r); err != nil {
				t.Fatalf("%s: %v", lines[i], err)
			}
			if request := r.Method + " " + r.URI + " " + r.Proto; request != w.request || strings.Trim(w.user, "-") != r.User || r.Remote != "127.0.0.1" {
				t.Errorf("line %d is\n%s\nwant %v", i, lines[i], w)
			}
		}
	}
}

// The line of an answer that was cut says so, and how much was sent.
func TestAbortedIsLogged(t *testing.T) {
	written, gone := make(chan struct{}), make(chan struct{})
	tt := newOdd(t, 1<<40, func(ctx context.Context, w io.Writer) error {
		if _, err := w.Write(make([]byte, 64<<10)); err != nil { // which a socket takes that nobody reads from
			return err
		}
		close(written)
		<-gone
		<-ctx.Done()
		return ctx.Err()
	})
	read := tt.server.logTo(t, logs.JSON)
	tt.listen("127.0.0.1:0")
	resp, conn := tt.raw("GET " + helloNAR + " HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	<-written
	conn.Close()
	close(gone)
	for tt.server.metrics.inFlight.Load() > 0 {
		time.Sleep(time.Millisecond) // the line is written before it is counted as answered
	}
	tt.client.CloseIdleConnections()
	got, _, _ := strings.Cut(read(), "\n")
	for _, want := range []string{`"aborted":"client"`, `"status":200`, `"bytes":65536,`, `"route":"nar"`, `"cache":"main"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
}

// Behind a trusted proxy the address is that of the client.
func TestRequestLogBehindProxy(t *testing.T) {
	tt := &tester{T: t, source: cachetest.NewMemory(), path: cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n")}
	tt.serve(tt.source)
	tt.server.proxies.Ranges = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	read := tt.server.logTo(t, logs.Combined)
	tt.listen("127.0.0.1:0")
	tt.do("GET", "/nix-cache-info", "X-Forwarded-For: 2001:db8::7")
	tt.client.CloseIdleConnections()
	if got := read(); !strings.HasPrefix(got, "2001:db8::7 - - [") {
		t.Errorf("the log is %q", got)
	}
}

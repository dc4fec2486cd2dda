package doctor

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestRanges(t *testing.T) {
	only := func(text string) map[string]string { return map[string]string{"ranges": text} }
	// ranged has ranges of the NAR answered in another way.
	ranged := func(answer http.HandlerFunc) func(*fixture) {
		return around(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Header.Get("Range") == "" {
				next.ServeHTTP(w, r)
				return
			}
			answer(w, r)
		})
	}
	// hide has the NAR sent without a header.
	hide := func(key string, ranges bool) func(*fixture) {
		return around(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !ranges {
				r.Header.Del("Range")
			}
			next.ServeHTTP(&hiding{w, key}, r)
		})
	}
	findAll(t, map[string]fault{
		"ignored":        {ranged(answerWith(200, "all of it")), only("fail answers one with the whole NAR")},
		"refused":        {ranged(answerWith(416, "")), only("fail answers one with 416")},
		"nothing":        {ranged(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), only("fail is not answered")},
		"none":           {hide("Accept-Ranges", false), only("warn there are none (200 OK)")},
		"not advertised": {hide("Accept-Ranges", true), only("warn does not say so")},
		"other range":    {ranged(answerWith(206, "abc", "Content-Range", "bytes 0-2/3")), only(`fail the server says "bytes 0-2/3"`)},
		"other bytes": {func(f *fixture) {
			f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("Range") != "" {
					content := f.files["nar/hello.nar"]
					f = &fixture{files: map[string][]byte{"nar/hello.nar": make([]byte, len(content))}}
					next = f
				}
				next.ServeHTTP(w, r)
			}
		}, only("fail not those of the whole")},
		"short": {func(f *fixture) {
			f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("Range") == "" {
					next.ServeHTTP(w, r)
					return
				}
				next.ServeHTTP(&shortening{ResponseWriter: w}, r)
			}
		}, only("fail has 3")},
		"compressed": {func(f *fixture) {
			f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Header.Get("Range") != "" {
					w.Header().Set("Content-Encoding", "identity")
				}
				next.ServeHTTP(w, r)
			}
		}, only(`fail as "identity"`)},
		"without the whole": {func(f *fixture) { f.opts.MaxSize = -1 }, skips(map[string]string{}, "nar", "nar-encoding", "compression", "nar-hash")},
	})
}

// hiding hides a header.
type hiding struct {
	http.ResponseWriter
	key string
}

func (h *hiding) WriteHeader(code int) {
	h.Header().Del(h.key)
	h.ResponseWriter.WriteHeader(code)
}

// shortening sends three bytes.
type shortening struct{ http.ResponseWriter }

func (s *shortening) WriteHeader(code int) {
	s.Header().Set("Content-Length", "3")
	s.ResponseWriter.WriteHeader(code)
	io.WriteString(s.ResponseWriter, "abc")
}

func (s *shortening) Write(p []byte) (int, error) { return len(p), nil }

func TestHeaders(t *testing.T) {
	only := func(check, text string) map[string]string { return map[string]string{check: text} }
	path := strings.Repeat("1", 32) + ".narinfo"
	findAll(t, map[string]fault{
		"empty ETag":            {around(header("cache-info", "Etag", "")), only("etag", `fail "nix-cache-info" comes with an empty ETag`)},
		"empty ETag of a path":  {around(header(path, "Etag", "")), only("etag", `fail narinfo" comes with an empty ETag`)},
		"two ETags":             {around(on(".nar", answerWith(200, "", "Etag", `"other"`), http.MethodHead)), only("etag", `warn "\"other\""`)},
		"gzip":                  {around(on("cache-info", answerWith(200, gzipped("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"), "Content-Encoding", "gzip"))), nil},
		"identity":              {around(header(path, "Content-Encoding", "identity")), only("encoding", "warn before 2.31")},
		"xz, which Nix offered": {around(on("cache-info", answerWith(200, xzed("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"), "Content-Encoding", "xz"))), only("encoding", `warn "xz", which no client offers`)},
		"deflate":               {around(on("cache-info", answerWith(200, deflated("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"), "Content-Encoding", "deflate"))), only("encoding", "warn deflate")},
		"clock":                 {func(f *fixture) { f.opts.Now = func() time.Time { return time.Now().Add(time.Hour) } }, only("clock", "warn apart")},
		"no clock":              {around(header("cache-info", "Date", "")), only("clock", "skip")},
		"connections":           {around(header("", "Connection", "close")), only("connections", "warn 9 requests took 9 connections")},
		"latency":               {func(f *fixture) { f.opts.slow = 1 }, only("latency", "warn a narinfo takes")},
		"limits": {func(f *fixture) {
			var asked atomic.Int32
			f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasSuffix(r.URL.Path, path) && asked.Add(1) > 5 {
					w.WriteHeader(http.StatusTooManyRequests)
					return
				}
				next.ServeHTTP(w, r)
			}
		}, map[string]string{"connections": "fail 429 Too Many Requests", "latency": "fail 429"}},
	})
}

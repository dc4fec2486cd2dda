package server

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

func TestParsePath(t *testing.T) {
	for path, want := range map[string]target{
		"":                              {"", routePage, "", ""},
		"/":                             {"", routePage, "", ""},
		"//":                            {"", routePage, "", ""},
		"/x.narinfo":                    {"", routeNARInfo, "x", ""},
		"/.narinfo":                     {"", routeNARInfo, "", ""},
		"/x.ls":                         {"", routeListing, "x", ""},
		"/nar/x.nar":                    {"", routeNAR, "x", ""},
		"/nar/x.nar.zst":                {"", routeZstdNAR, "x", ".zst"},
		"/nar/x.nar.xz":                 {"", routeNAR, "x", ".xz"},
		"/nar/x.nar.exe":                {},
		"/nar/x.nar/":                   {},
		"/nar/":                         {},
		"/nar":                          {},
		"/nar/x.narinfo":                {},
		"/log/x.drv":                    {"", routeLog, "x.drv", ""},
		"/log/x.narinfo":                {"", routeLog, "x.narinfo", ""},
		"/realisations/x!out.doi":       {"", routeRealisation, "x!out", ""},
		"/build-trace-v2/x/out.doi":     {"", routeBuildTrace, "x/out", ""},
		"/debuginfo/x":                  {"", routeDebugInfo, "x", ""},
		"/nix-cache-info":               {"", routeCacheInfo, "", ""},
		"/nix-cache-info/":              {},
		"///nix-cache-info":             {"", routeCacheInfo, "", ""},
		"/metrics":                      {"", routeMetrics, "", ""},
		"/health":                       {"", routeHealth, "", ""},
		"/version":                      {"", routeVersion, "", ""},
		"/robots.txt":                   {"", routeRobots, "", ""},
		"/../nix-cache-info":            {},
		"/nar/../../nix-cache-info.nar": {"", routeNAR, "../../nix-cache-info", ""},

		"/index.html":                       {"index.html", routeNoSlash, "", ""},
		"/team":                             {"team", routeNoSlash, "", ""},
		"/team/":                            {"team", routePage, "", ""},
		"//team//":                          {"team", routePage, "", ""},
		"/team/x.narinfo":                   {"team", routeNARInfo, "x", ""},
		"/team/nar/x.nar.zst":               {"team", routeZstdNAR, "x", ".zst"},
		"/team/nix-cache-info":              {"team", routeCacheInfo, "", ""},
		"/team/team/":                       {"team", routeOther, "", ""},
		"/team/health":                      {"team", routeOther, "", ""},
		"/team/metrics":                     {"team", routeOther, "", ""},
		"/Team/":                            {},
		"/-team/":                           {},
		"/api/x":                            {},
		"/x.ls/":                            {},
		"/" + strings.Repeat("a", 65) + "/": {},
	} {
		if got := parsePath(path); got != want {
			t.Errorf("parsePath(%q) is %v, want %v", path, got, want)
		}
	}
}

// Whatever is asked for, the answer is one of a reader's, and is not a failure of ours.
func FuzzAnswer(f *testing.F) {
	path := cachetest.NewPath(f, nix.DefaultStoreDir, "hello.txt", "hello\n")
	c, err := cache.New([]cache.Source{cachetest.NewMemory(path)}, cache.Options{})
	if err != nil {
		f.Fatal(err)
	}
	h := newServer(cache.Only(c), Options{}).Handler()
	for _, target := range []string{
		"/", "/nix-cache-info", "/" + helloHash + ".narinfo", "/" + helloHash + ".ls", helloNAR, "//x", "/log/" + logName, realisation,
		"/nar/" + helloHash + ".nar", "/nar/" + helloNARHash + ".nar?hash=" + helloHash, "/build-trace-v2/" + logName + "/out.doi",
	} {
		path, query, _ := strings.Cut(target, "?")
		f.Add("GET", path, query, "bytes=0-1", "x")
	}
	f.Fuzz(func(t *testing.T, method, path, query, byteRange, host string) {
		r := &http.Request{
			Method: method,
			URL:    &url.URL{Path: path, RawQuery: query},
			Host:   host,
			Header: http.Header{"Range": {byteRange}, "If-None-Match": {query}, "Accept": {host}},
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(t.Context()))
		switch w.Code {
		case 200, 206, 304, 308, 400, 401, 404, 405, 416:
		default:
			t.Errorf("%s %q %q: status %d", method, path, query, w.Code)
		}
		if method == http.MethodHead && w.Body.Len() > 0 {
			t.Errorf("HEAD %q: a body", path)
		}
		for name, values := range w.Header() {
			if strings.EqualFold(name, "ETag") && (name != "ETag" || len(values) != 1 || values[0] == "") {
				t.Errorf("%s %q: %s: %q", method, path, name, values)
			}
		}
		if kind := w.Header().Get("Content-Type"); strings.HasPrefix(kind, "text/html") != (w.Code == 200 && parsePath(path).route == routePage) {
			t.Errorf("%s %q: %s", method, path, kind)
		}
	})
}

func FuzzParseRange(f *testing.F) {
	for _, header := range []string{"bytes=0-0", "bytes=1-", "bytes=-1", "bytes=5-4", "bytes=0-1,2-3", "bytes=-0", "lines=1-2", "bytes=99999999999999999999-"} {
		f.Add(header, int64(120))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size <= 0 {
			return
		}
		off, n, ok, err := parseRange(header, size)
		if ok && err == nil && (off < 0 || n <= 0 || n > size || off > size-n) {
			t.Errorf("parseRange(%q, %d) is %d bytes at %d", header, size, n, off)
		}
	})
}

package server

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/nar"
)

// noFastPath has the servers of all tests leave all requests to net/http.
var noFastPath bool

// newServer is New for tests.
func newServer(caches cache.Registry, opts Options) *Server {
	opts.NoFastPath = noFastPath
	return New(caches, opts)
}

// bothWays runs all tests twice: with the fast path, and with net/http alone.
type bothWays struct{ *testing.M }

func (m bothWays) Run() int {
	code := m.M.Run()
	for _, name := range []string{"test.bench", "test.fuzz", "test.list"} {
		if flag.Lookup(name).Value.String() != "" {
			return code
		}
	}
	if code == 0 {
		noFastPath = true
		code = m.M.Run()
	}
	return code
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(bothWays{m}) }

// tester is a server, what it serves, and a client that keeps its connection.
type tester struct {
	*testing.T
	server *Server
	cache  *cache.Cache
	source *cachetest.Memory
	path   cachetest.Path
	key    nix.SecretKey
	url    string
	client *http.Client
}

const (
	helloHash    = "i9pmrzmpshapij2kin22pff6fc2adavx"
	helloNARHash = "04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw"
	otherNARHash = "0ip26j2h11n1kgkz36rl4akv694yz65hr72q4kv4b3lxcbi65b3p"
	absentHash   = "00000000000000000000000000000000"
	helloNAR     = "/nar/" + helloHash + "-" + helloNARHash + ".nar"
	logName      = absentHash + "-a+b-c._?d=e.drv" // with all the characters that names may have
	realisation  = "/realisations/sha256:0000000000000000000000000000000000000000000000000000000000000000!out.doi"
)

// newTester runs a server over a store of one path, with a log, a realisation and a build trace.
func newTester(t *testing.T) *tester {
	t.Helper()
	key, err := nix.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n")
	source := cachetest.NewMemory(path)
	drv, err := nix.DefaultStoreDir.ParseBase(logName)
	if err != nil {
		t.Fatal(err)
	}
	source.AddLog(drv, []byte("<script>alert(1)</script>\n"))
	id := nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{}), Output: "out"}
	source.AddRealisation(&nix.Realisation{ID: id, OutPath: path.Info.Path})
	source.AddBuildTrace(&nix.BuildTrace{Drv: drv, Output: "out", OutPath: path.Info.Path})

	tt := &tester{T: t, source: source, path: path, key: key}
	tt.serve(source)
	tt.listen("127.0.0.1:0")
	return tt
}

// serve makes a server over the sources, which does not listen yet.
func (t *tester) serve(sources ...cache.Source) {
	t.Helper()
	opts := cache.Options{Priority: 30}
	if !t.key.IsZero() {
		opts.Keys = []nix.SecretKey{t.key}
	}
	c, err := cache.New(sources, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.cache = c
	t.server = newServer(cache.Only(c), Options{Version: "1.2.3"})
}

// listen lets the server answer on an address, until the test ends.
func (t *tester) listen(address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	server := t.server // a test may make another
	go func() { served <- server.Serve(ctx, l) }()
	t.connect(l.Addr().String())
	t.Cleanup(func() {
		t.client.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// connect gives the tester a client of its own.
func (t *tester) connect(address string) {
	t.url = "http://" + address
	t.client = &http.Client{
		Transport:     &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(t.client.CloseIdleConnections)
}

// do asks, with headers in the form "Name: value".
func (t *tester) do(method, target string, headers ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequest(method, t.url+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		} else {
			r.Header.Add(name, value)
		}
	}
	resp, err := t.client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return resp, text
}

func TestCalls(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		tt := newTester(t)
		tt.listen(address)
		for _, c := range calls(tt) {
			t.Run(address+" "+c.name, func(t *testing.T) {
				tt := *tt
				tt.T = t
				if c.method != "" {
					tt.wantAnswer(c, c.method)
					return
				}
				get := tt.wantAnswer(c, http.MethodGet)
				head := tt.wantAnswer(c, http.MethodHead)
				if diff := cmp.Diff(get, head, ignoreDate); diff != "" {
					t.Errorf("headers of GET (-) and HEAD (+) differ:\n%s", diff)
				}
			})
		}
	}
}

var ignoreDate = cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == `["Date"]` }, cmp.Ignore())

// wantAnswer makes a call, checks the answer, and returns its headers.
func (t *tester) wantAnswer(c call, method string) http.Header {
	t.Helper()
	resp, text := t.do(method, c.target, c.headers...)
	if resp.StatusCode != c.status {
		t.Errorf("%s %s: %s, want %d", method, c.target, resp.Status, c.status)
	}
	for _, want := range c.want {
		name, value, _ := strings.Cut(want, ": ")
		got := resp.Header[http.CanonicalHeaderKey(name)]
		if value == "" && len(got) > 0 || value != "" && (len(got) != 1 || got[0] != value) {
			t.Errorf("%s %s: %s is %q, want %q", method, c.target, name, got, value)
		}
	}
	switch {
	case method == http.MethodHead:
		if len(text) > 0 {
			t.Errorf("HEAD %s: a body: %q", c.target, text)
		}
	case c.body != "*" && string(text) != c.body:
		t.Errorf("%s %s: body is %q, want %q", method, c.target, text, c.body)
	}
	if c.status != http.StatusNotModified && resp.ContentLength < 0 {
		t.Errorf("%s %s: no Content-Length", method, c.target)
	}
	return resp.Header
}

// What a client gets is what the signature is of.
func TestNARInfoVerifies(t *testing.T) {
	tt := newTester(t)
	_, text := tt.do("GET", "/"+helloHash+".narinfo")
	info, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Signatures) != 1 || !tt.key.Public().Verify(info.AppendFingerprint(nil), info.Signatures[0]) {
		t.Errorf("the narinfo is not signed by %s:\n%s", tt.key.Name(), text)
	}
	resp, body := tt.do("GET", "/"+info.URL)
	if resp.StatusCode != 200 || !bytes.Equal(body, tt.path.NAR) {
		t.Errorf("GET %s: %s, and the body is not the NAR", info.URL, resp.Status)
	}
	_, text = tt.do("GET", "/"+helloHash+".narinfo?json")
	if want := `"path":"/nix/store/` + helloHash + `-hello.txt"`; !strings.Contains(string(text), want) {
		t.Errorf("the JSON form has no %s: %s", want, text)
	}
}

func TestUnavailable(t *testing.T) {
	tt := newTester(t)
	tt.source.Fail(errors.New("open /secret/place: disk on fire"))
	for _, target := range []string{
		"/" + helloHash + ".narinfo", "/" + helloHash + ".narinfo?json", "/" + absentHash + ".narinfo", helloNAR,
		"/" + helloHash + ".ls", "/log/" + logName, realisation, "/health",
	} {
		get := tt.wantAnswer(call{target: target, status: 503,
			want: []string{"Retry-After: 5", "Cache-Control: no-store", "Content-Type: text/plain; charset=utf-8"},
			body: "unavailable now, try again later\n"}, "GET")
		head := tt.wantAnswer(call{target: target, status: 503}, "HEAD")
		if diff := cmp.Diff(get, head, ignoreDate); diff != "" {
			t.Errorf("%s: headers of GET (-) and HEAD (+) differ:\n%s", target, diff)
		}
	}
	tt.wantAnswer(call{target: "/nix-cache-info", status: 200, body: "*"}, "GET")
	tt.source.Fail(nil)
	tt.wantAnswer(call{target: "/" + helloHash + ".narinfo", status: 200, body: "*"}, "GET")
	tt.wantAnswer(call{target: "/health", status: 200, body: "ok\n"}, "GET")
}

func TestNothingToServe(t *testing.T) {
	tt := &tester{T: t}
	tt.serve()
	tt.listen("127.0.0.1:0")
	const note = "; this cache has nothing to serve yet\n"
	for _, c := range []call{
		{target: "/" + absentHash + ".narinfo", status: 404, body: "no store path with hash " + absentHash + " here" + note},
		{target: "/api/x", status: 404, body: "nothing here" + note},
		{target: "/health", status: 200, body: "ok\n"},
		{target: "/nix-cache-info", status: 200, body: "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"},
	} {
		tt.wantAnswer(c, "GET")
	}
	if _, page := tt.do("GET", "/"); !strings.Contains(string(page), "nothing to serve yet") {
		t.Errorf("the front page does not say that there is nothing to serve:\n%s", page)
	}
}

// odd is a source whose NARs have any size, and are written by a test.
type odd struct {
	*cachetest.Memory
	size  int64
	write writeFunc
}

type writeFunc func(ctx context.Context, w io.Writer) error

func (o *odd) OpenNAR(context.Context, *nix.PathInfo) (cache.NAR, error) { return oddNAR{o}, nil }

type oddNAR struct{ *odd }

func (n oddNAR) Size() int64  { return n.size }
func (n oddNAR) Close() error { return nil }
func (n oddNAR) WriteRange(ctx context.Context, w io.Writer, _, _ int64) error {
	return n.write(ctx, w)
}

// newOdd makes a server whose NARs have the given size and are written by write. It does not listen yet.
func newOdd(t *testing.T, size int64, write writeFunc) *tester {
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n")
	tt := &tester{T: t}
	tt.serve(&odd{cachetest.NewMemory(path), size, write})
	return tt
}

// A NAR that cannot be written to its end is seen as that by the client, and counted.
func TestAborted(t *testing.T) {
	for _, test := range []struct {
		name    string
		written int
		err     error
		metric  string
	}{
		{"after much", 1 << 20, io.ErrUnexpectedEOF, `firn_http_aborts_total{by="source"} 1`},
		{"after a little", 10, io.ErrUnexpectedEOF, `firn_http_aborts_total{by="source"} 1`},
		{"too short", 1 << 20, nil, `firn_http_aborts_total{by="source"} 1`},
		{"wrong", 1 << 20, fmt.Errorf("write NAR: %w", nar.ErrMismatch), `firn_http_aborts_total{by="source"} 1`},
	} {
		t.Run(test.name, func(t *testing.T) {
			tt := newOdd(t, 2<<20, func(_ context.Context, w io.Writer) error {
				if _, err := w.Write(make([]byte, test.written)); err != nil {
					return err
				}
				return test.err
			})
			tt.listen("127.0.0.1:0")
			resp, err := tt.client.Get(tt.url + helloNAR)
			if err == nil {
				var body []byte
				body, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if len(body) > test.written {
					t.Errorf("%d bytes came, of %d that were written", len(body), test.written)
				}
			}
			if err == nil {
				t.Error("the client saw no error")
			}
			tt.wantMetric(test.metric)
		})
	}
}

// A NAR that fails before its first byte is answered with a status.
func TestFailedBeforeFirstByte(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		body   string
	}{
		{fmt.Errorf("open /secret/place: %w", cache.ErrUnavailable), 503, "unavailable now, try again later\n"},
		{fmt.Errorf("open /secret/place: %w", cache.ErrNotFound), 404, "not found\n"},
		{fmt.Errorf("write /secret/place: %w", nar.ErrMismatch), 404, "it is damaged, and not served any more\n"},
		{errors.New("open /secret/place: disk on fire"), 500, "internal error\n"},
	} {
		tt := newOdd(t, 1000, func(context.Context, io.Writer) error { return test.err })
		tt.listen("127.0.0.1:0")
		tt.wantAnswer(call{target: helloNAR, status: test.status, body: test.body,
			want: []string{"ETag: ", "Accept-Ranges: ", "Content-Security-Policy: ", "Content-Type: text/plain; charset=utf-8"}}, "GET")
	}
}

// wantMetric checks that a line is in the metrics.
func (t *tester) wantMetric(line string) {
	t.Helper()
	if text := t.metrics(); !strings.Contains("\n"+text, "\n"+line+"\n") {
		t.Errorf("metrics have no %s:\n%s", line, text)
	}
}

// wantMetricSoon is wantMetric for what is counted when the client may have its answer already.
func (t *tester) wantMetricSoon(line string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if strings.Contains("\n"+t.metrics(), "\n"+line+"\n") {
			return
		}
	}
	t.wantMetric(line)
}

func (t *tester) metrics() string {
	w := httptest.NewRecorder()
	t.server.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	return w.Body.String()
}

func TestMetrics(t *testing.T) {
	tt := newTester(t)
	for range 3 {
		tt.do("GET", "/"+helloHash+".narinfo")
	}
	tt.do("HEAD", "/"+absentHash+".narinfo")
	tt.do("GET", helloNAR)
	tt.do("GET", helloNAR, "Range: bytes=0-9")
	tt.do("GET", "/nothing")
	tt.do("POST", "/nothing")
	for _, line := range []string{
		`firn_http_requests_total{route="narinfo",status="2xx"} 3`,
		`firn_http_requests_total{route="narinfo",status="4xx"} 1`,
		`firn_http_requests_total{route="nar",status="2xx"} 2`,
		`firn_http_requests_total{route="other",status="4xx"} 2`,
		`firn_http_response_bytes_total{route="nar"} 130`,
		`firn_http_request_duration_seconds_count{route="narinfo"} 4`,
		`firn_narinfo_lookups_total{result="hit"} 3`,
		`firn_narinfo_lookups_total{result="miss"} 1`,
		`firn_narinfo_lookups_total{result="failed"} 0`,
		`firn_nar_verification_failures_total 0`,
		`firn_http_requests_in_flight 1`, // this one
	} {
		tt.wantMetric(line)
	}
	if tt.source.Open() != 0 {
		t.Errorf("%d NARs are still open", tt.source.Open())
	}
}

// A client that goes away before its answer begins is no failure of ours.
func TestGoneBeforeFirstByte(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	tt := newOdd(t, 1000, func(ctx context.Context, _ io.Writer) error {
		leave()
		<-ctx.Done()
		return ctx.Err()
	})
	tt.listen("127.0.0.1:0")
	r, err := http.NewRequestWithContext(ctx, "GET", tt.url+helloNAR, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tt.client.Do(r); err == nil {
		t.Error("the client got an answer")
	}
	for tt.server.metrics.inFlight.Load() > 0 {
		runtime.Gosched()
	}
	tt.wantMetric(`firn_http_requests_total{route="nar",status="none"} 1`)
	tt.wantMetric(`firn_http_requests_total{route="nar",status="5xx"} 0`)
	tt.wantMetric(`firn_http_aborts_total{by="client"} 1`)
}

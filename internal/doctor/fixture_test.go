package doctor

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"go.uber.org/goleak"

	"firn/nix"
	"firn/nix/nar"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fixture is a cache that is as it should be, until a test breaks it. It has one path, with a reference.
type fixture struct {
	t      testing.TB
	secret nix.SecretKey
	info   nix.NARInfo
	nar    []byte
	files  map[string][]byte

	// edit changes the text of the narinfo, after it was signed. Nil: nothing does.
	edit func(text string) string
	// around sees every request before it is answered. Nil: nothing does.
	around func(w http.ResponseWriter, r *http.Request, next http.Handler)
	// server begins to serve; nil: plain HTTP.
	server func(http.Handler) *httptest.Server
	// url changes the URL that is examined.
	url  func(string) string
	opts Options
	ctx  context.Context // nil: that of the test
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	secret, err := nix.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	path := func(digit, name string) nix.StorePath {
		p, err := nix.DefaultStoreDir.ParseBase(strings.Repeat(digit, 32) + "-" + name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	f := &fixture{t: t, secret: secret, files: map[string][]byte{}}
	f.setNAR(fileNAR(t, bytes.Repeat([]byte("what is in the path, which does not compress to nothing: 0123456789"), 4000)))
	f.info.Path = path("1", "hello")
	f.info.References = []nix.StorePath{path("1", "hello"), path("2", "dep")}
	f.info.Deriver = path("3", "hello.drv")
	f.info.Compression = nix.Zstd
	f.files["nix-cache-info"] = []byte("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n")
	f.files[path("2", "dep").Hash().String()+".narinfo"] = []byte("not looked at\n")
	f.opts = Options{Path: f.info.Path.Hash(), TrustedKeys: []nix.PublicKey{secret.Public()}, TrustedBy: "the test", Patience: 10 * time.Second}
	return f
}

func fileNAR(t testing.TB, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	if err := w.WriteHeader(&nar.Header{Type: nar.TypeRegular, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// setNAR sets the NAR, and what the narinfo says of it.
func (f *fixture) setNAR(b []byte) {
	f.nar = b
	f.info.NARHash, f.info.NARSize = nix.SHA256Sum(sha256.Sum256(b)), int64(len(b))
}

func compress(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// finish makes the files of the path.
func (f *fixture) finish() {
	file := f.nar
	if f.info.Compression == nix.Zstd {
		file = compress(f.nar)
	}
	if f.info.URL == "" {
		f.info.URL = "nar/hello.nar"
	}
	if _, set := f.files["nar/hello.nar"]; !set {
		f.files["nar/hello.nar"] = file
	}
	if f.info.FileSize == 0 {
		f.info.FileSize = int64(len(f.files["nar/hello.nar"]))
	}
	if f.info.FileHash.IsZero() {
		f.info.FileHash = nix.SHA256Sum(sha256.Sum256(f.files["nar/hello.nar"]))
	}
	if f.info.Signatures == nil {
		f.info.Signatures = []nix.Signature{f.secret.Sign(f.info.AppendFingerprint(nil))}
	}
	text := string(f.info.AppendText(nil))
	if f.edit != nil {
		text = f.edit(text)
	}
	f.files[f.info.Path.Hash().String()+".narinfo"] = []byte(text)
}

func (f *fixture) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	content, ok := f.files[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	if strings.HasPrefix(name, "nar/") {
		w.Header().Set("Etag", fmt.Sprintf("%q", name))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(content)))
	if r.Method != http.MethodHead {
		w.Write(content)
	}
}

// examine serves the cache and examines it.
func (f *fixture) examine() []Finding {
	f.t.Helper()
	f.finish()
	var handler http.Handler = f
	if f.around != nil {
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f.around(w, r, f) })
	}
	serve := f.server
	if serve == nil {
		serve = httptest.NewServer
	}
	s := serve(handler)
	f.t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	at := s.URL
	if f.url != nil {
		at = f.url(at)
	}
	if f.opts.Substituters == nil {
		f.opts.Substituters = []string{"https://cache.nixos.org/", strings.TrimSuffix(at, "/") + "?priority=10"}
	}
	ctx := f.ctx
	if ctx == nil {
		ctx = f.t.Context()
	}
	findings, err := Examine(ctx, at, f.opts)
	if err != nil {
		f.t.Fatal(err)
	}
	return findings
}

// wantFindings compares what is not good, or not looked at, with what should be: verdict and a part of what was seen, by check.
func wantFindings(t *testing.T, findings []Finding, want map[string]string) {
	t.Helper()
	left := maps.Clone(want)
	for _, f := range findings {
		expected, is := left[f.Check]
		delete(left, f.Check)
		verdict, text, _ := strings.Cut(expected, " ")
		switch {
		case !is && f.Verdict != OK:
			t.Errorf("%s: %s: %s", f.Check, f.Verdict, f.Seen)
		case is && (string(f.Verdict) != verdict || !strings.Contains(f.Seen, text)):
			t.Errorf("%s: %s: %s\nwant %s", f.Check, f.Verdict, f.Seen, expected)
		case (f.Verdict == Warn || f.Verdict == Fail) && f.Advice == "":
			t.Errorf("%s: %s: %s\nwithout advice", f.Check, f.Verdict, f.Seen)
		}
		if strings.ContainsAny(f.Seen+f.Advice, "\n\r\x1b") {
			t.Errorf("%s: %q is not one line", f.Check, f.Seen+f.Advice)
		}
	}
	if len(left) > 0 {
		t.Errorf("there are no checks %v", slices.Collect(maps.Keys(left)))
	}
}

// on has f answer requests whose path ends in name and that are of one of the methods, all if there are none.
func on(name string, f http.HandlerFunc, methods ...string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, name) && (len(methods) == 0 || slices.Contains(methods, r.Method)) {
			f(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// answer answers with a status, a text, and headers, as name and value in turn.
func answerWith(code int, text string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header()[headers[i]] = []string{headers[i+1]}
		}
		w.WriteHeader(code)
		io.WriteString(w, text)
	}
}

// header has answers whose path ends in name come with a header.
func header(name, key, value string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, name) {
			w.Header()[key] = []string{value}
		}
		next.ServeHTTP(w, r)
	}
}

func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, text)
	w.Close()
	return b.String()
}

func deflated(text string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	io.WriteString(w, text)
	w.Close()
	return b.String()
}

func xzed(text string) string {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		panic(err)
	}
	io.WriteString(w, text)
	w.Close()
	return b.String()
}

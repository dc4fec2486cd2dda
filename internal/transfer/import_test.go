package transfer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/transfer"
	"firn/nix"
)

// exported writes the cache of newCache into a directory.
func exported(t *testing.T) (c *cache.Cache, source *listed, dir string) {
	t.Helper()
	c, source = newCache(t)
	dir = t.TempDir()
	if _, err := transfer.Export(t.Context(), c, nil, dir, transfer.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	return c, source, dir
}

// newSink returns an empty cache that can be pushed to.
func newSink(t *testing.T) (*cache.Cache, *cachetest.Memory) {
	t.Helper()
	sink := cachetest.NewMemory()
	c, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink)})
	if err != nil {
		t.Fatal(err)
	}
	return c, sink
}

// wantPaths checks that c has exactly these of the paths, with their bytes.
func wantPaths(t *testing.T, c *cache.Cache, all []cachetest.Path, want ...int) {
	t.Helper()
	for i, p := range all {
		hash := p.Info.Path.Hash()
		info, err := c.Lookup(t.Context(), hash)
		switch {
		case !slices.Contains(want, i):
			if !errors.Is(err, cache.ErrNotFound) {
				t.Errorf("%s is there: %v", p.Info.Path, err)
			}
			continue
		case err != nil:
			t.Errorf("look up %s: %v", p.Info.Path, err)
			continue
		case info.NARHash != p.Info.NARHash, info.Deriver != p.Info.Deriver, info.CA != p.Info.CA, !slices.Equal(info.References, p.Info.References),
			!slices.Equal(info.Extra, p.Info.Extra), !slices.Equal(info.Signatures[:len(p.Info.Signatures)], p.Info.Signatures):
			t.Errorf("got %+v, want %+v", info.PathInfo, p.Info)
		}
		n, _, err := c.OpenNAR(t.Context(), cache.Archive{Path: hash})
		if err != nil {
			t.Error(err)
			continue
		}
		var got bytes.Buffer
		if err := n.WriteRange(t.Context(), &got, 0, n.Size()); err != nil || !bytes.Equal(got.Bytes(), p.NAR) {
			t.Errorf("the NAR of %s has %d bytes, want %d: %v", p.Info.Path, got.Len(), len(p.NAR), err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestImport(t *testing.T) {
	from, source, dir := exported(t)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	root := source.paths[0].Info.Path
	for _, test := range []struct {
		name  string
		from  string
		roots []nix.StorePath
		opts  transfer.ImportOptions
		files int
		paths []int
	}{
		{"directory", dir, nil, transfer.ImportOptions{}, 3, []int{0, 1, 2}},
		{"file", "file://" + dir, nil, transfer.ImportOptions{Workers: 1}, 3, []int{0, 1, 2}},
		{"closure of a directory", dir, []nix.StorePath{source.paths[1].Info.Path}, transfer.ImportOptions{}, 0, []int{1, 2}},
		{"HTTP", server.URL, []nix.StorePath{root, root}, transfer.ImportOptions{}, 0, []int{0, 1, 2}},
		{"HTTP with logs", server.URL + "/", []nix.StorePath{root}, transfer.ImportOptions{Logs: true}, 1, []int{0, 1, 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, sink := newSink(t)
			var last transfer.Progress
			test.opts.Progress = func(p transfer.Progress) { last = p }
			got, err := transfer.Import(t.Context(), test.from, c, test.roots, test.opts)
			if err != nil {
				t.Fatal(err)
			}
			var size int64
			for _, i := range test.paths {
				size += source.paths[i].Info.NARSize
			}
			want := transfer.Progress{Known: len(test.paths), Paths: len(test.paths), Moved: len(test.paths), Files: test.files, Bytes: size, KnownBytes: size, DoneBytes: size}
			if got != want || last != want {
				t.Errorf("the result is %+v, the last progress %+v, want %+v", got, last, want)
			}
			wantPaths(t, c, source.paths, test.paths...)
			// Signatures stay.
			theirs, err := from.Lookup(t.Context(), source.paths[1].Info.Path.Hash())
			if err != nil {
				t.Fatal(err)
			}
			ours, err := c.Lookup(t.Context(), source.paths[1].Info.Path.Hash())
			if err != nil || !slices.Equal(theirs.Signatures, ours.Signatures) {
				t.Errorf("signatures %v, want %v: %v", ours.Signatures, theirs.Signatures, err)
			}

			// Again, there is nothing to do.
			got, err = transfer.Import(t.Context(), test.from, c, test.roots, test.opts)
			if err != nil || got.Moved != 0 || got.Bytes != 0 || got.Paths != len(test.paths) {
				t.Errorf("again: %+v, %v", got, err)
			}
			if n := sink.Open(); n != 0 {
				t.Errorf("%d NARs are still open", n)
			}
		})
	}
}

// What was imported whole is not fetched again after the import was killed.
func TestImportResumes(t *testing.T) {
	_, source, dir := exported(t)
	var mu sync.Mutex
	fetched := map[string]int{}
	files := http.FileServer(http.Dir(dir))
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if strings.HasPrefix(r.URL.Path, "/nar/") {
			fetched[r.URL.Path]++
			if len(fetched) == 2 {
				cancel()
			}
		}
		mu.Unlock()
		files.ServeHTTP(w, r)
	}))
	defer server.Close()
	c, _ := newSink(t)
	roots := []nix.StorePath{source.paths[0].Info.Path}
	if _, err := transfer.Import(ctx, server.URL, c, roots, transfer.ImportOptions{Workers: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("the one that is ended: %v", err)
	}
	if _, err := transfer.Import(t.Context(), server.URL, c, roots, transfer.ImportOptions{Workers: 1}); err != nil {
		t.Error(err)
	}
	wantPaths(t, c, source.paths, 0, 1, 2)
	total := 0
	for _, n := range fetched {
		total += n
	}
	if total > 4 {
		t.Errorf("fetched %v", fetched)
	}
}

// A server that fails, breaks off and asks for patience is asked again, and for no byte twice.
func TestImportRetries(t *testing.T) {
	_, source, dir := exported(t)
	files := http.FileServer(http.Dir(dir))
	var requests, ranges atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		switch requests.Add(1) % 4 {
		case 0: // in words that clear a terminal
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 503 \x1b[2Jall is well\r\nContent-Length: 0\r\n\r\n")
		case 1:
			http.Error(w, "later", http.StatusInternalServerError)
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			files.ServeHTTP(&cut{ResponseWriter: w, left: 300}, r)
		}
	}))
	defer server.Close()
	c, _ := newSink(t)
	var told []string // by one worker
	opts := transfer.ImportOptions{Workers: 1, Retry: func(err error, _ time.Duration) { told = append(told, err.Error()) }}.WithoutPauses()
	if _, err := transfer.Import(t.Context(), server.URL, c, []nix.StorePath{source.paths[0].Info.Path}, opts); err != nil {
		t.Fatal(err)
	}
	wantPaths(t, c, source.paths, 0, 1, 2)
	for _, want := range []string{"503 Service Unavailable", "500 Internal Server Error", "EOF", "it broke off after "} {
		if !slices.ContainsFunc(told, func(text string) bool { return strings.Contains(text, server.URL) && strings.Contains(text, want) }) {
			t.Errorf("nobody is told of %q: %q", want, told)
		}
	}
	if slices.ContainsFunc(told, func(text string) bool { return strings.Contains(text, "\x1b") }) {
		t.Errorf("the server says to the terminal: %q", told)
	}
	if ranges.Load() == 0 {
		t.Error("nothing was taken up where it broke off")
	}
}

// cut breaks an answer off after some bytes.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	c.ResponseWriter.Write(p[:c.left])
	c.ResponseWriter.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// A server that is down ends it soon.
func TestImportUnreachable(t *testing.T) {
	var down atomic.Bool
	_, source, dir := exported(t)
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/nar/") || down.Load() {
			http.Error(w, "broken", http.StatusBadGateway)
			return
		}
		files.ServeHTTP(w, r)
	}))
	defer server.Close()
	c, _ := newSink(t)
	opts := transfer.ImportOptions{}.WithoutPauses()
	result, err := transfer.Import(t.Context(), server.URL, c, []nix.StorePath{source.paths[0].Info.Path}, opts)
	if err == nil || !strings.Contains(err.Error(), "502") || result.Failed != 3 {
		t.Errorf("without NARs: %+v, %v", result, err)
	}
	down.Store(true)
	_, err = transfer.Import(t.Context(), server.URL, c, []nix.StorePath{source.paths[0].Info.Path}, opts)
	if err == nil || !strings.Contains(err.Error(), "502") {
		t.Errorf("without anything: %v", err)
	}
}

// What HTTP cannot tell, and what is no cache, is said.
func TestImportErrors(t *testing.T) {
	_, source, dir := exported(t)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	other := filepath.Join(t.TempDir(), "other")
	if err := os.MkdirAll(other, 0o755); err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	if err := os.WriteFile(filepath.Join(elsewhere, "nix-cache-info"), []byte("StoreDir: /gnu/store\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	absent := parsePath(t, "0c0ppk5jhpl1ym9qd9vv1yh9rgpy4jm7-absent")
	for _, test := range []struct {
		from  string
		roots []nix.StorePath
		want  string
	}{
		{server.URL, nil, "cannot list what it has; name the store paths"},
		{server.URL, []nix.StorePath{absent}, absent.Hash().String()},
		{server.URL + "/nowhere", []nix.StorePath{absent}, "there is no binary cache without it"},
		{other, nil, "not found: " + other + "/nix-cache-info; there is no binary cache without it"},
		{other + "/absent", nil, "no such file"},
		{elsewhere, nil, "that cache is for the store directory /gnu/store"},
		{"s3://bucket", nil, "buckets are not read; copy this one to a directory"},
		{"ftp://host", nil, "ftp:// is no binary cache that can be read"},
		{"file://host" + dir, nil, "a file:// URL has no host"},
		{"http:///x", nil, "want http://HOST/PATH"},
	} {
		c, _ := newSink(t)
		_, err := transfer.Import(t.Context(), test.from, c, test.roots, transfer.ImportOptions{}.WithoutPauses())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("from %s: %v, want %q", test.from, err, test.want)
		}
		wantPaths(t, c, source.paths)
	}
}

// A narinfo that lies keeps its path out, with what refers to it, and nothing else.
func TestImportHostile(t *testing.T) {
	victim := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("another host was asked for %s", r.URL)
	}))
	defer victim.Close()
	_, source, _ := exported(t)
	middle := source.paths[1]
	bomb := compress(t, bytes.Repeat([]byte{0}, 64<<20))
	for name, change := range map[string]func(dir string, n *nix.NARInfo){
		"another host":      func(_ string, n *nix.NARInfo) { n.URL = victim.URL + "/" + n.URL },
		"without a scheme":  func(_ string, n *nix.NARInfo) { n.URL = strings.TrimPrefix(victim.URL, "http:") + "/" + n.URL },
		"out of the cache":  func(_ string, n *nix.NARInfo) { n.URL = "../../../../../../etc/passwd" },
		"absent NAR":        func(_ string, n *nix.NARInfo) { n.URL = "nar/absent.nar" },
		"another NAR":       func(_ string, n *nix.NARInfo) { n.URL = narURL(t, source.paths[2]) },
		"no NAR":            func(_ string, n *nix.NARInfo) { n.URL = "nix-cache-info" },
		"another hash":      func(_ string, n *nix.NARInfo) { n.NARHash = nix.SHA256Sum(sha256.Sum256(nil)) },
		"another size":      func(_ string, n *nix.NARInfo) { n.NARSize += 8; n.FileSize += 8 },
		"another file hash": func(_ string, n *nix.NARInfo) { n.FileHash = nix.SHA256Sum(sha256.Sum256(nil)) },
		"another file size": func(_ string, n *nix.NARInfo) { n.FileSize++ },
		"shorter file":      func(_ string, n *nix.NARInfo) { n.FileSize -= 100 },
		"wrong compression": func(_ string, n *nix.NARInfo) { n.Compression = nix.XZ },
		"no compression":    func(_ string, n *nix.NARInfo) { n.Compression = "best" },
		"another path":      func(_ string, n *nix.NARInfo) { n.Path = source.paths[2].Info.Path },
		"a CA that is not":  func(_ string, n *nix.NARInfo) { n.CA = source.paths[2].Info.CA },
		"absent reference": func(_ string, n *nix.NARInfo) {
			n.References = append(n.References, parsePath(t, "0c0ppk5jhpl1ym9qd9vv1yh9rgpy4jm7-absent"))
		},
		"cycle":              func(_ string, n *nix.NARInfo) { n.References = append(n.References, source.paths[0].Info.Path) },
		"a link out of here": func(dir string, n *nix.NARInfo) { link(t, dir, n) },
		"a pipe":             func(dir string, n *nix.NARInfo) { pipe(t, dir, n) },
		"bomb": func(dir string, n *nix.NARInfo) {
			n.URL, n.Compression, n.FileHash, n.FileSize = "nar/bomb.nar.zst", nix.Zstd, nix.Hash{}, 0
			if err := os.WriteFile(filepath.Join(dir, n.URL), bomb, 0o644); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, over := range []string{"directory", "HTTP"} {
			t.Run(name+"/"+over, func(t *testing.T) {
				from, _, dir := exportedOf(t, source)
				info, err := from.Lookup(t.Context(), middle.Info.Path.Hash())
				if err != nil {
					t.Fatal(err)
				}
				changed := *info
				changed.References = slices.Clone(info.References)
				change(dir, &changed)
				nix.SortPaths(changed.References)
				if err := os.WriteFile(filepath.Join(dir, middle.Info.Path.Hash().String()+".narinfo"), changed.AppendText(nil), 0o644); err != nil {
					t.Fatal(err)
				}
				if over == "HTTP" {
					if name == "a link out of here" || name == "a pipe" {
						return // for the server there
					}
					server := httptest.NewServer(http.FileServer(http.Dir(dir)))
					defer server.Close()
					dir = server.URL
				}
				c, sink := newSink(t)
				result, err := transfer.Import(t.Context(), dir, c, []nix.StorePath{source.paths[0].Info.Path}, transfer.ImportOptions{}.WithoutPauses())
				if err == nil || result.Failed == 0 {
					t.Errorf("%+v, %v", result, err)
				}
				want := []int{2}
				if name == "another path" {
					want = nil // what it refers to is not known then
				}
				wantPaths(t, c, source.paths, want...)
				if n := sink.Open(); n != 0 {
					t.Errorf("%d NARs are still open", n)
				}
			})
		}
	}
}

func exportedOf(t *testing.T, source *listed) (*cache.Cache, *listed, string) {
	t.Helper()
	c, err := cache.New([]cache.Source{source}, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := transfer.Export(t.Context(), c, nil, dir, transfer.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	return c, source, dir
}

func narURL(t *testing.T, p cachetest.Path) string {
	return fmt.Sprintf("nar/%s-%s.nar", p.Info.Path.Hash(), p.Info.NARHash.Nix32())
}

func compress(t *testing.T, text []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(text, nil)
}

// link moves the NAR out of the cache and puts a link in its place.
func link(t *testing.T, dir string, n *nix.NARInfo) {
	t.Helper()
	outside := filepath.Join(t.TempDir(), "nar")
	if err := errors.Join(os.Rename(filepath.Join(dir, n.URL), outside), os.Symlink(outside, filepath.Join(dir, n.URL))); err != nil {
		t.Fatal(err)
	}
}

// Trusted are those paths only that have a signature by one of the keys, or are content-addressed.
func TestImportTrusts(t *testing.T) {
	from, source, dir := exported(t)
	other, err := nix.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := newSink(t)
	result, err := transfer.Import(t.Context(), dir, c, nil, transfer.ImportOptions{TrustedKeys: []nix.PublicKey{other.Public()}})
	if err == nil || !strings.Contains(err.Error(), "no trusted key has signed it") || result.Failed != 2 {
		t.Errorf("with another key: %+v, %v", result, err)
	}
	wantPaths(t, c, source.paths, 2)
	if _, err := transfer.Import(t.Context(), dir, c, nil, transfer.ImportOptions{TrustedKeys: append(from.PublicKeys(), other.Public())}); err != nil {
		t.Error(err)
	}
	wantPaths(t, c, source.paths, 0, 1, 2)
}

// New signatures of what is there are added.
func TestImportAddsSignatures(t *testing.T) {
	from, source, dir := exported(t)
	key, err := nix.GenerateKey("new-1")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := newSink(t)
	if _, err := transfer.Import(t.Context(), dir, c, nil, transfer.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	hash := source.paths[1].Info.Path.Hash()
	info, err := from.Lookup(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	signed := *info
	signed.Signatures = append(slices.Clone(info.Signatures), key.Sign(info.AppendFingerprint(nil)))
	if err := os.WriteFile(filepath.Join(dir, hash.String()+".narinfo"), signed.AppendText(nil), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := transfer.Import(t.Context(), dir, c, nil, transfer.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Lookup(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fmt.Sprint(signed.Signatures), fmt.Sprint(got.Signatures)); diff != "" {
		t.Error(diff)
	}
}

// A sink that cannot keep more ends it at once.
func TestImportUnavailable(t *testing.T) {
	_, _, dir := exported(t)
	c, sink := newSink(t)
	sink.Fail(fmt.Errorf("%w: disk full", cache.ErrUnavailable))
	if _, err := transfer.Import(t.Context(), dir, c, nil, transfer.ImportOptions{}); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// A password goes to the server that it is for, and into no error.
func TestImportPassword(t *testing.T) {
	_, source, dir := exported(t)
	files := http.FileServer(http.Dir(dir))
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); ok {
			t.Errorf("the password came to another server with %s", r.URL)
		}
		files.ServeHTTP(w, r)
	}))
	defer store.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "secret" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
		} else if strings.HasPrefix(r.URL.Path, "/nar/") {
			http.Redirect(w, r, strings.Replace(store.URL, "127.0.0.1", "localhost", 1)+r.URL.Path, http.StatusFound)
		} else {
			files.ServeHTTP(w, r)
		}
	}))
	defer server.Close()
	roots := []nix.StorePath{source.paths[0].Info.Path}
	c, _ := newSink(t)
	_, err := transfer.Import(t.Context(), strings.Replace(server.URL, "://", "://me:wrong-one@", 1), c, roots, transfer.ImportOptions{})
	if err == nil || strings.Contains(err.Error(), "wrong-one") || !errors.Is(err, cache.ErrDenied) {
		t.Errorf("with a wrong password: %v", err)
	}
	if _, err := transfer.Import(t.Context(), strings.Replace(server.URL, "://", "://me:secret@", 1), c, roots, transfer.ImportOptions{}); err != nil {
		t.Error(err)
	}
	wantPaths(t, c, source.paths, 0, 1, 2)

	for content, ok := range map[string]bool{
		"machine 127.0.0.1 login me password secret\n":                                                         true,
		"# machine 127.0.0.1\nmachine other login me password no\nmachine 127.0.0.1\npassword secret\n":        true,
		"macdef x\nmachine 127.0.0.1 password no\n\nmachine other password no default login x password secret": true,
		"machine 127.0.0.1 password no machine 127.0.0.1 password secret":                                      false,
		"machine 127.0.0.10 password secret":                                                                   false,
		"machine 127.0.0.1 password":                                                                           false,
		"":                                                                                                     false,
	} {
		netrc := filepath.Join(t.TempDir(), "netrc")
		if err := os.WriteFile(netrc, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c, _ := newSink(t)
		_, err := transfer.Import(t.Context(), server.URL, c, roots, transfer.ImportOptions{Netrc: netrc})
		if (err == nil) != ok {
			t.Errorf("with %q: %v", content, err)
		}
	}
}

// pipe puts a pipe in the place of the NAR, from which nothing ever comes.
func pipe(t *testing.T, dir string, n *nix.NARInfo) {
	t.Helper()
	name := filepath.Join(dir, n.URL)
	if err := errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o644)); err != nil {
		t.Fatal(err)
	}
}

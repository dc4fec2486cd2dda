package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/decompress"
	"firn/nix"
)

// shelf is a directory of caches by name, of which one may have a host name.
type shelf struct {
	caches map[string]*cache.Cache
	hosts  map[string]string
}

func (s shelf) ByName(_ context.Context, name string) (*cache.Cache, error) {
	if c, ok := s.caches[name]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("find cache %s: %w", name, cache.ErrNotFound)
}

func (s shelf) ByHost(_ context.Context, host string) (*cache.Cache, error) {
	if name, ok := s.hosts[host]; ok {
		return s.caches[name], nil
	}
	return s.caches[cache.Main], nil
}

func (s shelf) All(context.Context) (all []*cache.Cache, err error) {
	for _, c := range s.caches {
		all = append(all, c)
	}
	return all, nil
}

// guard knows a few tokens. They come as the password of any user.
type guard map[string]holder

type holder struct {
	name   string
	rights map[string]cache.Rights // by cache
}

func (h holder) Name() string                          { return h.name }
func (h holder) May(want cache.Rights, in string) bool { return h.rights[in]&want == want }

func (g guard) Authenticate(_ context.Context, authorization string, remote netip.Addr) (cache.Principal, error) {
	basic, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(authorization, "Basic "))
	_, password, _ := strings.Cut(string(basic), ":")
	if password == "often" {
		return nil, fmt.Errorf("%s: %w", remote, &cache.TooOftenError{Wait: 2500 * time.Millisecond})
	}
	if h, ok := g[password]; ok {
		return h, nil
	}
	return nil, fmt.Errorf("%w: no such token", cache.ErrUnauthenticated)
}

// as returns the header with which a client shows a token.
func as(token string) string {
	if token == "" {
		return "X-No: token"
	}
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("any:"+token))
}

var tokens = guard{
	"push-main":  {"a", map[string]cache.Rights{"main": cache.Read | cache.Push}},
	"read-team":  {"b", map[string]cache.Rights{"team": cache.Read}},
	"push-team":  {"c", map[string]cache.Rights{"team": cache.Read | cache.Push}},
	"admin-main": {"e", map[string]cache.Rights{"main": cache.Read | cache.Push | cache.Admin}},
	"admin-team": {"f", map[string]cache.Rights{"team": cache.Read | cache.Push | cache.Admin}},
	"all": {"d", map[string]cache.Rights{
		"main": cache.Read | cache.Push, "team": cache.Read | cache.Push, "empty": cache.Read, "nowhere": cache.Read | cache.Push}},
}

// pushTester is a server with three caches: main, which is public, team, which is private and has hello.txt, and fixed, which keeps nothing.
type pushTester struct {
	*tester
	sinks map[string]*cachetest.Memory
}

// newCaches makes a server that does not listen yet.
func newCaches(t *testing.T, opts Options) *pushTester {
	t.Helper()
	p := &pushTester{&tester{T: t, path: cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n")}, map[string]*cachetest.Memory{}}
	all := shelf{map[string]*cache.Cache{}, map[string]string{"team.example.org": "team"}}
	add := func(c cache.Options, paths ...cachetest.Path) {
		key, err := nix.GenerateKey(c.Name + "-1")
		if err != nil {
			t.Fatal(err)
		}
		sink := cachetest.NewMemory(paths...)
		c.Keys = []nix.SecretKey{key}
		if c.Name != "fixed" {
			p.sinks[c.Name], c.Sink = sink, cache.SinkOf(sink)
		}
		if all.caches[c.Name], err = cache.New([]cache.Source{sink}, c); err != nil {
			t.Fatal(err)
		}
	}
	add(cache.Options{Name: "main"})
	add(cache.Options{Name: "team", Private: true}, p.path)
	add(cache.Options{Name: "fixed"}, p.path)
	p.cache, p.source = all.caches["main"], p.sinks["main"]
	opts.Access = tokens
	p.server = newServer(all, opts)
	return p
}

func newPushTester(t *testing.T) *pushTester {
	p := newCaches(t, Options{})
	p.listen("127.0.0.1:0")
	return p
}

// put uploads, as push-main unless the headers say something else.
func (p *pushTester) put(target, body string, headers ...string) (*http.Response, string) {
	p.Helper()
	r, err := http.NewRequest("PUT", p.url+target, strings.NewReader(body))
	if err != nil {
		p.Fatal(err)
	}
	for _, h := range append([]string{as("push-main")}, headers...) {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := p.client.Do(r)
	if err != nil {
		p.Fatalf("PUT %s: %v", target, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.Fatalf("PUT %s: %v", target, err)
	}
	return resp, string(text)
}

// wantPut uploads what must be taken.
func (p *pushTester) wantPut(status int, target, body string, headers ...string) {
	p.Helper()
	if resp, text := p.put(target, body, headers...); resp.StatusCode != status {
		p.Errorf("PUT %s: %s: %s, want %d", target, resp.Status, text, status)
	}
}

// wantGet checks the status of an answer, and returns its body.
func (p *pushTester) wantGet(status int, target string, headers ...string) []byte {
	p.Helper()
	resp, text := p.do("GET", target, headers...)
	if resp.StatusCode != status {
		p.Errorf("GET %s: %s: %s, want %d", target, resp.Status, text, status)
	}
	head, _ := p.do("HEAD", target, headers...)
	if head.StatusCode != status {
		p.Errorf("HEAD %s: %s, want %d", target, head.Status, status)
	}
	return text
}

// narinfo returns the narinfo of a path whose NAR is uploaded as a file.
func narinfo(p cachetest.Path, file []byte, compression nix.Compression, ext string) *nix.NARInfo {
	return &nix.NARInfo{PathInfo: *p.Info, URL: cachetest.URL(file, ext), Compression: compression,
		FileHash: nix.SHA256Sum(sha256.Sum256(file)), FileSize: int64(len(file))}
}

func text(n *nix.NARInfo) string { return string(n.AppendText(nil)) }

// compressors are the programs of each compression.
var compressors = map[nix.Compression][]string{
	nix.XZ: {"xz"}, nix.Zstd: {"zstd"}, nix.LZ4: {"lz4", "-c"}, nix.Brotli: {"brotli", "-c"}, nix.Gzip: {"gzip"},
	nix.Bzip2: {"bzip2"}, nix.LZMA: {"xz", "--format=lzma"}, nix.Lzip: {"lzip"},
}

// compress returns a NAR compressed.
func compress(t testing.TB, archive []byte, c nix.Compression) []byte {
	t.Helper()
	program := compressors[c]
	cmd := exec.CommandContext(t.Context(), program[0], program[1:]...)
	cmd.Stdin = bytes.NewReader(archive)
	file, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	return file
}

// A NAR that is uploaded is served as itself under its narinfo, and under its old URL as what that says.
// TestNotStored has the compressions of which the old URL has no answer.
func TestPush(t *testing.T) {
	for _, test := range []struct {
		compression nix.Compression
		ext         string
	}{
		{nix.None, ""}, {nix.XZ, ".xz"},
	} {
		t.Run(string(test.compression), func(t *testing.T) {
			p := newPushTester(t)
			p.T = t
			file := p.path.NAR
			if test.compression != nix.None {
				file = compress(t, file, test.compression)
			}
			n := narinfo(p.path, file, test.compression, test.ext)
			p.wantGet(404, "/"+n.URL)
			p.wantPut(201, "/"+n.URL, string(file), "Content-Type: application/x-nix-nar")
			p.wantPut(204, "/"+n.URL, string(file))
			p.wantGet(404, "/"+helloHash+".narinfo")
			p.wantPut(201, "/"+helloHash+".narinfo", text(n), "Content-Type: text/x-nix-narinfo")
			p.wantPut(204, "/"+helloHash+".narinfo", text(n))
			got, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, p.wantGet(200, "/"+helloHash+".narinfo"))
			if err != nil {
				t.Fatal(err)
			}
			if body := p.wantGet(200, "/"+got.URL); !bytes.Equal(body, p.path.NAR) {
				t.Errorf("GET %s: not the NAR", got.URL)
			}
			body := p.wantGet(200, "/"+n.URL)
			plain, err := decompress.Decode(t.Context(), test.compression, bytes.NewReader(body), decompress.NewLimits(decompress.Options{}))
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			if archive, err := io.ReadAll(plain); err != nil || !bytes.Equal(archive, p.path.NAR) {
				t.Errorf("GET %s: not the NAR, %v", n.URL, err)
			}
			for _, method := range []string{"GET", "HEAD"} {
				resp, part := p.do(method, "/"+n.URL, "Range: bytes=10-")
				if got := resp.Header.Get("Accept-Ranges"); resp.StatusCode != 206 || got != "bytes" || resp.ContentLength != int64(len(body)-10) ||
					method == "GET" && !bytes.Equal(part, body[10:]) {
					t.Errorf("%s %s from byte 10 on: %s, %d bytes, Accept-Ranges: %s", method, n.URL, resp.Status, len(part), got)
				}
			}
			p.wantMetric(`firn_nars_received_total{front_end="http"} 1`)
			p.wantMetric(`firn_paths_published_total{front_end="http"} 1`)
			p.wantMetric(fmt.Sprintf(`firn_upload_bytes_total{front_end="http"} %d`, 2*len(file)+2*len(text(n))))
			p.wantMetric(`firn_http_requests_total{route="upload nar",status="2xx"} 2`)
			if p.source.Open() != 0 {
				t.Errorf("%d NARs are still open", p.source.Open())
			}
		})
	}
}

// What Determinate Nix writes is served as it came.
func TestPushOfDeterminateNix(t *testing.T) {
	p := newPushTester(t)
	n := narinfo(p.path, p.path.NAR, nix.None, "")
	p.wantPut(201, "/"+n.URL, string(p.path.NAR))
	lines := "Provenance: {\"type\":\"copied\",\"from\":\"https://example.org/é\"}\nPartialClosure: " + helloHash + "-hello.txt\n"
	var sigs string
	for _, size := range []int{103, 2420, 4627} {
		sigs += fmt.Sprintf("Sig: other-%d:%s\n", size, base64.StdEncoding.EncodeToString(make([]byte, size)))
	}
	p.wantPut(400, "/"+helloHash+".narinfo", text(n)+"Provenance: a\nProvenance: b\n")
	p.wantPut(400, "/"+helloHash+".narinfo", text(n)+"sig: a\n")
	p.wantPut(201, "/"+helloHash+".narinfo", text(n)+sigs+lines)
	got := string(p.wantGet(200, "/"+helloHash+".narinfo"))
	if !strings.Contains(got, sigs) || !strings.HasSuffix(got, lines) {
		t.Errorf("it is served as\n%s", got)
	}
}

const buildID = "0123456789abcdef0123456789abcdef01234567"

// Everything else that Nix uploads, encoded or not.
func TestPushOthers(t *testing.T) {
	p := newPushTester(t)
	p.wantPut(201, "/"+cachetest.URL(p.path.NAR, ""), string(p.path.NAR))
	p.wantPut(201, "/"+helloHash+".narinfo", text(narinfo(p.path, p.path.NAR, nix.None, "")))

	debug := cachetest.NewTree(t, nix.DefaultStoreDir, "debug", map[string]string{"lib/debug/.build-id/01/" + buildID[2:] + ".debug": "x"})
	for _, target := range []string{"/debuginfo/" + buildID, "/debuginfo/" + buildID + ".debug"} {
		p.wantGet(404, target)
		p.wantPut(204, target, `{"archive":"../nar/x.nar","member":"lib/x.debug"}`)
		p.wantGet(404, target) // it is in no path of the cache
	}
	p.wantPut(201, "/"+cachetest.URL(debug.NAR, ""), string(debug.NAR))
	p.wantPut(201, "/"+debug.Info.Path.Hash().String()+".narinfo", text(narinfo(debug, debug.NAR, nix.None, "")))
	want := `{"archive":"../nar/` + debug.Info.Path.Hash().String() + "-" + debug.Info.NARHash.Nix32() + `.nar","member":"lib/debug/.build-id/01/` + buildID[2:] + `.debug"}` + "\n"
	for _, target := range []string{"/debuginfo/" + buildID, "/debuginfo/" + buildID + ".debug"} {
		if got := p.wantGet(200, target); string(got) != want {
			t.Errorf("GET %s: %s, want %s", target, got, want)
		}
	}

	listing := string(p.wantGet(200, "/"+helloHash+".ls"))
	p.wantPut(204, "/"+helloHash+".ls", listing)
	p.wantPut(204, "/"+helloHash+".ls", string(compress(t, []byte(listing), nix.Brotli)), "Content-Encoding: br")
	p.wantPut(204, "/nix-cache-info", "StoreDir: /nix/store\n")

	log := strings.Repeat("a line of a log\n", 1000)
	escaped := strings.ReplaceAll(logName, "?", "%3F")
	for _, target := range []string{"/log/" + logName, "/log/" + escaped} {
		p.wantPut(204, target, log)
		if got := p.wantGet(200, target); string(got) != log {
			t.Errorf("GET %s: %.100q", target, got)
		}
	}
	for _, encoding := range []nix.Compression{nix.XZ, nix.Gzip, nix.Zstd} {
		log += string(encoding) + "\n"
		p.wantPut(204, "/log/"+escaped, string(compress(t, []byte(log), encoding)), "Content-Encoding: "+string(encoding))
		if got := p.wantGet(200, "/log/"+escaped); string(got) != log {
			t.Errorf("log that was sent with %s: %.100q", encoding, got)
		}
	}

	r := `{"dependentRealisations":{},"id":"` + strings.TrimSuffix(strings.TrimPrefix(realisation, "/realisations/"), ".doi") +
		`","outPath":"` + helloHash + `-hello.txt","signatures":[]}`
	p.wantPut(204, realisation, r)
	p.wantGet(200, realisation)
	trace := "/build-trace-v2/" + escaped + "/out.doi"
	p.wantPut(204, trace, `{"outPath":"`+helloHash+`-hello.txt","signatures":[]}`)
	p.wantGet(200, trace)
}

// What is wrong is refused, says why, and changes nothing.
func TestHostileUploads(t *testing.T) {
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n")
	other := cachetest.NewTree(t, nix.DefaultStoreDir, "other", map[string]string{"a": "b"})
	url := "/" + cachetest.URL(path.NAR, "")
	target := "/" + helloHash + ".narinfo"
	info := narinfo(path, path.NAR, nix.None, "")
	spoiled := func(spoil func(n *nix.NARInfo)) string {
		n := *info
		spoil(&n)
		return text(&n)
	}
	named := func(file []byte, ext string) string { return "/" + cachetest.URL(file, ext) }
	tooDeep := cachetest.TreeNAR(t, map[string]string{strings.Repeat("d/", 62) + "f": ""})
	tooDeep = bytes.Replace(tooDeep, []byte("nix-archive-1"), []byte("nix-archive-2"), 1)
	bomb := compress(t, cachetest.FileNAR(strings.Repeat("\x00", 1<<20)), nix.Zstd)
	trailing := append(bytes.Clone(path.NAR), 0)
	cut := compress(t, path.NAR, nix.XZ)[:100]
	key, err := nix.GenerateKey("main-1")
	if err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		name    string
		target  string
		body    string
		headers []string
		status  int
		says    string
	}{
		{"NAR under another hash", "/nar/" + otherNARHash + ".nar", string(path.NAR), nil, 400, helloNARHash},
		{"compressed NAR under another hash", "/nar/" + otherNARHash + ".nar.xz", string(compress(t, path.NAR, nix.XZ)), nil, 400, "not the one in its name"},
		{"no NAR", named([]byte("x"), ""), "x", nil, 400, "NAR"},
		{"nothing", named(nil, ""), "", nil, 400, "NAR"},
		{"NAR that is not strict", named(tooDeep, ""), string(tooDeep), nil, 400, "NAR"},
		{"bytes behind the NAR", named(trailing, ""), string(trailing), nil, 400, "NAR"},
		{"compressed bytes behind the NAR", named(compress(t, trailing, nix.XZ), ".xz"), string(compress(t, trailing, nix.XZ)), nil, 400, "NAR"},
		{"cut file", named(cut, ".xz"), string(cut), nil, 400, ""},
		{"bytes behind the file", named(append(compress(t, path.NAR, nix.Gzip), 'x'), ""), string(append(compress(t, path.NAR, nix.Gzip), 'x')), nil, 400, ""},
		{"another compression", named(bomb, ".xz"), string(bomb), nil, 400, ""},
		{"a compression that nobody has", named([]byte("LRZI0000"), ""), "LRZI0000", nil, 400, "lrzip"},
		{"encoded NAR", url, string(compress(t, path.NAR, nix.Gzip)), []string{"Content-Encoding: gzip"}, 400, "Content-Encoding"},
		{"NAR with a name of ours", helloNAR, string(path.NAR), nil, 400, "nar/HASH.nar"},
		{"NAR with a short name", "/nar/x.nar", string(path.NAR), nil, 400, "nar/HASH.nar"},
		{"NAR with a query", url + "?hash=" + helloHash, string(path.NAR), nil, 400, "nar/HASH.nar"},
		{"NAR with another extension", url + ".exe", string(path.NAR), nil, 405, ""},
		{"NAR elsewhere", "/nar/../" + helloNARHash + ".nar", string(path.NAR), nil, 400, "nar/HASH.nar"},

		{"narinfo before its NAR", target, strings.Replace(text(info), helloNARHash+".nar", otherNARHash+".nar", 1), nil, 400, "nothing was uploaded"},
		{"narinfo of something else", "/" + absentHash + ".narinfo", text(info), nil, 400, "StorePath"},
		{"narinfo with a malformed hash", "/x.narinfo", text(info), nil, 400, "path hash"},
		{"no narinfo", target, "<html>", nil, 400, "parse narinfo"},
		{"narinfo that is too large", target, text(info) + strings.Repeat("X: y\n", 4_000_000), nil, 413, "larger"},
		{"narinfo that decompresses to too much", target, string(compress(t, bytes.Repeat([]byte("X: y\n"), 4_000_000), nix.Zstd)),
			[]string{"Content-Encoding: zstd"}, 413, "larger"},
		{"narinfo in an unknown encoding", target, text(info), []string{"Content-Encoding: rot13"}, 400, "rot13"},
		{"URL that leads elsewhere", target, spoiled(func(n *nix.NARInfo) { n.URL = "http://evil.example/x.nar" }), nil, 400, "URL"},
		{"URL that leads up", target, spoiled(func(n *nix.NARInfo) { n.URL = "../x.nar" }), nil, 400, "URL"},
		{"URL of another cache", target, spoiled(func(n *nix.NARInfo) { n.URL = "nar/" + helloHash + "-" + helloNARHash + ".nar" }), nil, 400, "nothing was uploaded"},
		{"NAR hash", target, spoiled(func(n *nix.NARInfo) {
			n.NARHash, n.CA, n.FileHash = other.Info.NARHash, nix.ContentAddress{}, nix.Hash{}
		}), nil, 400, "NarHash"},
		{"NAR size", target, spoiled(func(n *nix.NARInfo) { n.NARSize += 8; n.FileSize = 0 }), nil, 400, "NarSize"},
		{"file size", target, spoiled(func(n *nix.NARInfo) { n.FileSize++ }), nil, 400, "FileSize"},
		{"file hash", target, spoiled(func(n *nix.NARInfo) { n.FileHash = other.Info.NARHash }), nil, 400, "FileHash"},
		{"missing reference", target, spoiled(func(n *nix.NARInfo) {
			n.References, n.CA = []nix.StorePath{other.Info.Path}, nix.ContentAddress{}
		}), nil, 400, other.Info.Path.Base()},
		{"forged signature", target, spoiled(func(n *nix.NARInfo) { n.Signatures = []nix.Signature{key.Sign(n.AppendFingerprint(nil))} }), nil, 400, "main-1"},
		{"malformed signature", target, text(info) + "Sig: main-1:AAAA\n", nil, 400, "Sig"},
		{"another content address", target, spoiled(func(n *nix.NARInfo) { n.CA, _ = nix.NewContentAddress(nix.NARMethod, other.Info.NARHash) }), nil, 400, "CA"},
		{"another store directory", target, strings.ReplaceAll(text(info), "/nix/store", "/gnu/store"), nil, 400, "StorePath"},

		{"listing of a malformed hash", "/x.ls", "{}", nil, 400, "path hash"},
		{"no listing", "/" + helloHash + ".ls", "<html>", nil, 400, "listing"},
		{"log of what is no derivation", "/log/" + absentHash + "-x", "x", nil, 400, "derivation"},
		{"no realisation", realisation, "{}", nil, 400, "realisation"},
		{"realisation of something else", realisation, `{"id":"sha256:` + strings.Repeat("1", 64) + `!out","outPath":"` + helloHash + `-hello.txt","signatures":[]}`, nil, 400, "id"},
		{"realisation of what is not there", realisation, `{"id":"sha256:` + strings.Repeat("0", 64) + `!out","outPath":"` + helloHash + `-hello.txt","signatures":[]}`, nil, 400, "outPath"},
		{"realisation without a name", "/realisations/x.doi", "{}", nil, 400, "realisation"},
		{"build trace of what is no derivation", "/build-trace-v2/x/out.doi", "{}", nil, 400, "derivation"},
		{"no build trace", "/build-trace-v2/" + absentHash + "-x.drv/out.doi", "{}", nil, 400, "build trace"},
		{"debug info of no build ID", "/debuginfo/../x", "{}", nil, 400, "build ID"},
		{"no debug info", "/debuginfo/" + buildID, "{}", nil, 400, "debug info"},
		{"cache info of another store directory", "/nix-cache-info", "StoreDir: /gnu/store\n", nil, 400, "/nix/store"},
		{"the front page", "/", "x", nil, 405, "GET and HEAD"},
		{"metrics", "/metrics", "x", nil, 405, "GET and HEAD"},
		{"something else", "/nothing/here/", "x", nil, 403, "push"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPushTester(t)
			p.wantPut(201, url, string(path.NAR))
			resp, said := p.put(test.target, test.body, test.headers...)
			if resp.StatusCode != test.status || !strings.Contains(said, test.says) || strings.Count(said, "\n") != 1 {
				t.Errorf("PUT %s: %s: %s, want %d that says %q", test.target, resp.Status, said, test.status, test.says)
			}
			p.wantGet(404, target)
			p.wantGet(404, realisation)
			if strings.HasPrefix(test.target, "/nar/") && test.status == 400 && !strings.HasPrefix(test.target, url) {
				p.wantGet(404, test.target)
			}
			p.wantPut(201, target, text(info)) // the server goes on
		})
	}
}

// Who may do what where, and what is told to those who may not.
func TestAccess(t *testing.T) {
	p := newPushTester(t)
	const tokenFree, pass, wrong, often = "", "push-team", "no-such-token", "often"
	for _, test := range []struct {
		method, target, host, token string
		status                      int
	}{
		{"GET", "/nix-cache-info", "", tokenFree, 200},
		{"GET", "/nix-cache-info", "", wrong, 200}, // nobody looks at it
		{"GET", "/main/nix-cache-info", "", tokenFree, 200},
		{"GET", "/main/", "", tokenFree, 200},
		{"GET", "/main", "", tokenFree, 308},
		{"GET", "/" + helloHash + ".narinfo", "", tokenFree, 404},
		{"GET", "/nothing", "", tokenFree, 404},
		{"GET", "/api/x", "", tokenFree, 404},
		{"GET", "/fixed/" + helloHash + ".narinfo", "", tokenFree, 200},
		{"GET", "/fixed" + helloNAR, "", tokenFree, 200},
		{"PUT", "/fixed/" + helloHash + ".narinfo", "", "all", 405},
		{"PUT", "/nix-cache-info", "", tokenFree, 401},
		{"PUT", "/nix-cache-info", "", wrong, 401},
		{"PUT", "/nix-cache-info", "", often, 429},
		{"PUT", "/nix-cache-info", "", "read-team", 403},
		{"PUT", "/nix-cache-info", "", "push-main", 204}, // empty

		{"GET", "/team", "", tokenFree, 404},
		{"GET", "/team/", "", tokenFree, 401},
		{"GET", "/team", "", "read-team", 308},
		{"GET", "/team/", "", "read-team", 200},
		{"GET", "/team/nix-cache-info", "", tokenFree, 401},
		{"GET", "/team/nix-cache-info", "", wrong, 401},
		{"GET", "/team/nix-cache-info", "", often, 429},
		{"GET", "/team/nix-cache-info", "", "push-main", 403},
		{"GET", "/team/nix-cache-info", "", "read-team", 200},
		{"GET", "/team/" + helloHash + ".narinfo", "", tokenFree, 401},
		{"GET", "/team/" + helloHash + ".narinfo", "", "read-team", 200},
		{"GET", "/team/" + absentHash + ".narinfo", "", "read-team", 404},
		{"GET", "/team" + helloNAR, "", tokenFree, 401},
		{"GET", "/team" + helloNAR, "", "push-main", 403},
		{"GET", "/team" + helloNAR, "", "read-team", 200},
		{"GET", "/team/" + helloHash + ".ls", "", "push-main", 403},
		{"PUT", "/team/nix-cache-info", "", "read-team", 403},
		{"PUT", "/team/nix-cache-info", "", pass, 204},
		{"GET", "/nowhere/nix-cache-info", "", "all", 404},
		{"PUT", "/nowhere/nix-cache-info", "", "all", 404},
		{"GET", "/nowhere/nix-cache-info", "", "push-main", 403},

		{"GET", "/nix-cache-info", "team.example.org", tokenFree, 401},
		{"GET", "/nix-cache-info", "team.example.org", "read-team", 200},
		{"GET", "/" + helloHash + ".narinfo", "team.example.org", "read-team", 200},
		{"GET", "/", "team.example.org", tokenFree, 401},
		{"GET", "/nothing", "team.example.org", tokenFree, 404},
		{"GET", "/health", "team.example.org", tokenFree, 200},
		{"GET", "/version", "team.example.org", tokenFree, 200},
		{"GET", "/metrics", "team.example.org", tokenFree, 200},
		{"GET", "/robots.txt", "team.example.org", wrong, 200},
		{"POST", "/team/nix-cache-info", "", "all", 405},
	} {
		resp, text := p.do(test.method, test.target, as(test.token), "Host: "+test.host)
		if resp.StatusCode != test.status {
			t.Errorf("%s %s of host %q with token %q: %s: %s, want %d", test.method, test.target, test.host, test.token, resp.Status, text, test.status)
		}
		denied := "there is no cache of this name that this token may read"
		if test.method == "PUT" {
			denied = "this token may not push here"
		}
		want := map[int]string{401: "`firn token create`", 403: denied}[test.status]
		if !strings.Contains(string(text), want) {
			t.Errorf("%s %s with token %q says %q, want %q", test.method, test.target, test.token, text, want)
		}
		if got := resp.Header.Get("WWW-Authenticate") == `Basic realm="firn"`; got != (test.status == 401) {
			t.Errorf("%s %s: %s, WWW-Authenticate %t", test.method, test.target, resp.Status, got)
		}
		if got := resp.Header.Get("Retry-After"); test.status == 429 && got != "3" {
			t.Errorf("%s %s: Retry-After %q, want 3", test.method, test.target, got)
		}
		if caching := resp.Header.Get("Cache-Control"); strings.Contains(caching, "public") && (strings.Contains(test.target, "team") || test.host != "") &&
			test.status != 404 && test.target != "/robots.txt" {
			t.Errorf("%s %s: Cache-Control is %q", test.method, test.target, caching)
		}
	}
}

// A private cache cannot be told from one that does not exist.
func TestPrivateIsUnknown(t *testing.T) {
	p := newPushTester(t)
	for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE"} {
		for _, token := range []string{"", "no-such-token", "push-main", "often"} {
			for _, target := range []string{
				"", "/", "/nix-cache-info", "/" + helloHash + ".narinfo", "/" + helloHash + ".narinfo?json", "/" + absentHash + ".narinfo", "/" + helloHash + ".ls",
				helloNAR, helloNAR + ".zst", "/nar/" + helloNARHash + ".nar", "/nar/" + helloNARHash + ".nar.xz", "/log/" + logName, realisation,
				"/debuginfo/" + buildID, "/health", "/metrics", "/nothing", "/../team/", "/x.narinfo", "/nar/x",
			} {
				there, body := p.do(method, "/team"+target, as(token))
				absent, other := p.do(method, "/tent"+target, as(token))
				if there.StatusCode < 400 || there.Status != absent.Status || !bytes.Equal(body, other) {
					t.Errorf("%s %s with token %q: %s: %s, and of a cache that is not there %s: %s", method, target, token, there.Status, body, absent.Status, other)
				}
				if diff := cmp.Diff(there.Header, absent.Header, ignoreDate); diff != "" {
					t.Errorf("%s %s with token %q: headers (-there +not there):\n%s", method, target, token, diff)
				}
			}
		}
	}
}

// What one cache has is not to be had through another, nor is it told that it was uploaded there.
func TestCachesAreApart(t *testing.T) {
	p := newPushTester(t)
	url := "/" + cachetest.URL(p.path.NAR, "")
	p.wantPut(201, "/team"+url, string(p.path.NAR), as("push-team"))
	p.wantGet(200, "/team"+url, as("push-team"))
	p.wantGet(404, url)
	p.wantGet(404, url, as("push-main"))
	p.wantGet(404, "/"+helloHash+".narinfo")
	p.wantGet(404, helloNAR)
	if resp, said := p.put("/"+helloHash+".narinfo", text(narinfo(p.path, p.path.NAR, nix.None, ""))); resp.StatusCode != 400 || !strings.Contains(said, "nothing was uploaded") {
		t.Errorf("PUT of a narinfo whose NAR another cache has: %s: %s", resp.Status, said)
	}
	metrics, _ := p.do("GET", "/metrics")
	if strings.Contains(fmt.Sprint(metrics), "team") {
		t.Error("the metrics name a private cache")
	}
}

// The page of a cache below the root leads to that.
func TestPageOfCache(t *testing.T) {
	p := newPushTester(t)
	page := string(p.wantGet(200, "/team/", as("read-team"), "Host: cache.example.org"))
	for _, want := range []string{
		`extra-substituters = <span class="url">http://cache.example.org/team</span>`, `<a href="nix-cache-info">`, `<a href="../health">`,
		`<a href="../metrics">`, "Reading needs a token", "team-1:",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s:\n%s", want, page)
		}
	}
	if page := string(p.wantGet(200, "/main/")); strings.Contains(page, "Reading needs a token") {
		t.Error("the page of a public cache says that reading needs a token")
	}
	resp, _ := p.do("GET", "/team", as("read-team"))
	if got := resp.Header.Get("Location"); got != "team/" {
		t.Errorf("Location is %q, want team/, which is right behind any proxy", got)
	}
}

package server

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/zstdcache"
	"firn/nix"
)

// zstdTester is a server that compresses one NAR of several frames.
func zstdTester(t *testing.T, hold <-chan struct{}) (tt *tester, url string) {
	t.Helper()
	contents := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{}).Read(contents)
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "noise", string(contents))
	source := &odd{cachetest.NewMemory(path), int64(len(path.NAR)), func(_ context.Context, w io.Writer) error {
		half := len(path.NAR) / 2
		if _, err := w.Write(path.NAR[:half]); err != nil {
			return err
		}
		<-hold
		_, err := w.Write(path.NAR[half:])
		return err
	}}
	encoder, err := zstdcache.Open(t.TempDir(), zstdcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := encoder.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := cache.New([]cache.Source{source}, cache.Options{Encoder: encoder, Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	tt = &tester{T: t, path: path, server: newServer(cache.Only(c), Options{})}
	tt.listen("127.0.0.1:0")
	info, err := c.Lookup(t.Context(), path.Info.Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	return tt, "/" + info.URL
}

func TestCompressed(t *testing.T) {
	hold := make(chan struct{})
	tt, url := zstdTester(t, hold)

	// Nothing is known of the file before it is made, and HEAD does not have it made.
	resp, _ := tt.do("HEAD", url)
	if resp.StatusCode != http.StatusOK || resp.ContentLength != -1 {
		t.Errorf("HEAD before it was made: status %d, length %d", resp.StatusCode, resp.ContentLength)
	}

	// The first bytes come while the rest is still to be made.
	making, err := tt.client.Get(tt.url + url)
	if err != nil {
		t.Fatal(err)
	}
	defer making.Body.Close()
	if making.StatusCode != http.StatusOK || making.ContentLength != -1 || making.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("while it was made: status %d, length %d, header %v", making.StatusCode, making.ContentLength, making.Header)
	}
	whole := make([]byte, 1000)
	if _, err := io.ReadFull(making.Body, whole); err != nil {
		t.Fatal(err)
	}
	close(hold)

	// Who resumes meanwhile gets the rest, and nothing but the rest.
	resumed, tail := tt.do("GET", url, "Range: bytes=1000-", "If-Range: "+making.Header.Get("ETag"))
	rest, err := io.ReadAll(making.Body)
	if err != nil {
		t.Fatal(err)
	}
	whole = append(whole, rest...)
	if resumed.StatusCode != http.StatusPartialContent || !bytes.Equal(tail, rest) {
		t.Errorf("resumed with status %d and %d bytes, want 206 and %d", resumed.StatusCode, len(tail), len(rest))
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	if got, err := decoder.DecodeAll(whole, nil); err != nil || !bytes.Equal(got, tt.path.NAR) {
		t.Errorf("it decompresses to something else (error: %v)", err)
	}

	// From then on it is a file.
	kept, body := tt.do("GET", url)
	if !bytes.Equal(body, whole) || kept.ContentLength != int64(len(whole)) {
		t.Errorf("kept: %d bytes, length %d, want %d", len(body), kept.ContentLength, len(whole))
	}
	head, _ := tt.do("HEAD", url)
	if head.ContentLength != int64(len(whole)) {
		t.Errorf("HEAD: length %d, want %d", head.ContentLength, len(whole))
	}
	head.Header.Del("Date")
	kept.Header.Del("Date")
	if diff := cmp.Diff(kept.Header, head.Header); diff != "" {
		t.Errorf("HEAD differs from GET:\n%s", diff)
	}
	if part, body := tt.do("GET", url, "Range: bytes=-10"); part.StatusCode != 206 || !bytes.Equal(body, whole[len(whole)-10:]) {
		t.Errorf("a range: status %d, %d bytes", part.StatusCode, len(body))
	}
	if past, _ := tt.do("GET", url, "Range: bytes="+strconv.Itoa(len(whole))+"-"); past.StatusCode != 416 {
		t.Errorf("a range behind the end: status %d", past.StatusCode)
	}

	// Its URL has the tag of its bytes. Older forms are answered with the same bytes, for a while.
	base, ok := strings.CutSuffix(url, "-v1-default.nar.zst")
	if caching := kept.Header.Get("Cache-Control"); !ok || caching != "public, max-age=31536000, immutable" {
		t.Errorf("%s: %s", url, caching)
	}
	for _, older := range []string{base + ".nar.zst", base + "-v0.nar.zst"} {
		resp, body := tt.do("GET", older)
		if caching := resp.Header.Get("Cache-Control"); !bytes.Equal(body, whole) || caching != "public, max-age=300" || resp.Header.Get("ETag") != kept.Header.Get("ETag") {
			t.Errorf("%s: %d bytes, %v", older, len(body), resp.Header)
		}
	}

	// The plain NAR is another thing with another tag.
	plain, body := tt.do("GET", base+".nar")
	if !bytes.Equal(body, tt.path.NAR) || plain.Header.Get("ETag") == kept.Header.Get("ETag") {
		t.Errorf("plain: %d bytes, tag %s", len(body), plain.Header.Get("ETag"))
	}
}

// A NAR that cannot be read to its end never ends cleanly in its compressed form.
func TestCompressedAborted(t *testing.T) {
	path := cachetest.NewPath(t, nix.DefaultStoreDir, "noise", string(make([]byte, 40<<20)))
	source := &odd{cachetest.NewMemory(path), int64(len(path.NAR)), func(_ context.Context, w io.Writer) error {
		if _, err := w.Write(path.NAR[:30<<20]); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}}
	encoder, err := zstdcache.Open(t.TempDir(), zstdcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	c, err := cache.New([]cache.Source{source}, cache.Options{Encoder: encoder, Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	tt := &tester{T: t, server: newServer(cache.Only(c), Options{})}
	tt.listen("127.0.0.1:0")
	info, err := c.Lookup(t.Context(), path.Info.Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tt.client.Get(tt.url + "/" + info.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the client saw no error")
	}

	// In HTTP/1.0 a body without a length ends with its connection.
	resp, _ = tt.raw("GET /" + info.URL + " HTTP/1.0\r\n\r\n")
	if resp.StatusCode != http.StatusOK || resp.ContentLength != -1 {
		t.Errorf("HTTP/1.0: status %d, length %d", resp.StatusCode, resp.ContentLength)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the client of HTTP/1.0 saw no error")
	}
}

// A Nix that knows no zstd is led to the NAR as it is, under the same signatures, and shared caches do not give that to others.
func TestOldNix(t *testing.T) {
	hold := make(chan struct{})
	close(hold)
	tt, _ := zstdTester(t, hold)
	narInfo := func(agent string) (*nix.NARInfo, string) {
		t.Helper()
		resp, body := tt.do("GET", "/"+tt.path.Info.Path.Hash().String()+".narinfo", "User-Agent: "+agent)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d for %q", resp.StatusCode, agent)
		}
		info, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, body)
		if err != nil {
			t.Fatal(err)
		}
		return info, resp.Header.Get("Cache-Control")
	}
	for _, agent := range []string{
		"curl/8.14.1 Nix/2.31.2", "curl/7.88.1 Nix/2.4", "curl/7.88.1 Nix/2.30.0", "curl/7.88.1 Nix/2.8.0", "curl/7.88.1 Nix/2.40", "curl/8.0 Lix/2.93.0",
		"curl/7.74.0", "", "Nix/", "Nix/2.", "Nix/3.1",
	} {
		if info, caching := narInfo(agent); info.Compression != nix.Zstd || caching != "public, max-age=300" {
			t.Errorf("%q gets %s, %s", agent, info.Compression, caching)
		}
	}
	want, _ := narInfo("")
	for _, agent := range []string{"curl/7.74.0 Nix/2.3.7", "curl/7.70.0 Nix/2.3", "curl/7.70.0 Nix/2.3pre6895_84de821", "curl/7.64.0 Nix/2.2.2 ours", "Nix/1.11.16", "curl/7.47.0 Nix/2.0"} {
		info, caching := narInfo(agent)
		if info.Compression != nix.None || caching != "no-store" {
			t.Errorf("%q gets %s, %s", agent, info.Compression, caching)
		}
		if diff := cmp.Diff(want.Signatures, info.Signatures); diff != "" || info.FileSize != info.NARSize {
			t.Errorf("%q gets a file of %d bytes, and other signatures (-want +got):\n%s", agent, info.FileSize, diff)
		}
		if resp, body := tt.do("GET", "/"+info.URL); resp.StatusCode != http.StatusOK || !bytes.Equal(body, tt.path.NAR) {
			t.Errorf("GET %s: status %d, not the NAR", info.URL, resp.StatusCode)
		}
	}
}

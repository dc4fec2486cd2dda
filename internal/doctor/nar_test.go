package doctor

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"firn/nix"
)

// whole has the NAR, where all of it is asked for, sent in another way. What it says of itself stays as it is.
func whole(send func(w http.ResponseWriter, r *http.Request, content []byte)) func(*fixture) {
	return func(f *fixture) {
		f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, ".nar") || r.Method != http.MethodGet || r.Header.Get("Range") != "" {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Accept-Ranges", "bytes")
			w.Header().Set("Etag", `"nar/hello.nar"`)
			send(w, r, f.files["nar/hello.nar"])
		}
	}
}

// with is a map with one more entry.
func with(want map[string]string, key, value string) map[string]string {
	want = maps.Clone(want)
	want[key] = value
	return want
}

// When the time is over, that is no fault of the cache.
func TestTime(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.ctx = ctx
	whole(func(w http.ResponseWriter, r *http.Request, content []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		w.Write(content[:100])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
	})(f)
	want := skips(map[string]string{"certificate": "skip", "nar": "skip the time was over"}, after("nar")...)
	wantFindings(t, f.examine(), want)
}

func TestNAR(t *testing.T) {
	none := func(text string) map[string]string {
		return skips(map[string]string{"nar": text}, "nar-encoding", "compression", "nar-hash")
	}
	broken := func(text string) map[string]string {
		return skips(map[string]string{"nar": text}, "compression", "nar-hash")
	}
	only := func(check, text string) map[string]string { return map[string]string{check: text} }
	file := func(change func([]byte) []byte) func(*fixture) {
		return func(f *fixture) { f.files["nar/hello.nar"] = change(compress(f.nar)) }
	}
	// archive puts another NAR where the one of the narinfo should be.
	archive := func(change func([]byte) []byte) func(*fixture) {
		return func(f *fixture) { f.files["nar/hello.nar"] = compress(change(bytes.Clone(f.nar))) }
	}
	zipped := func(ranges string) func(*fixture) {
		return whole(func(w http.ResponseWriter, r *http.Request, content []byte) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Accept-Ranges", ranges)
			z := gzip.NewWriter(w)
			z.Write(content)
			z.Close()
		})
	}
	unadvertised := map[string]string{"nar-encoding": "fail compressed once more", "ranges": "warn does not say so"}
	findAll(t, map[string]fault{
		"uncompressed": {func(f *fixture) { f.info.Compression = nix.None }, nil},
		"not there":    {around(on(".nar", http.NotFound, http.MethodGet)), skips(map[string]string{"nar": "fail its NAR is 404", "ranges": "fail 404"}, "nar-encoding", "compression", "nar-hash")},
		"not wanted":   {func(f *fixture) { f.opts.MaxSize = -1 }, none("skip as you wish")},
		"too large":    {func(f *fixture) { f.opts.MaxSize = f.info.NARSize - 1 }, none("skip it has")},
		"much larger than it says": {func(f *fixture) {
			f.info.FileSize = 1000
			f.opts.MaxSize = f.info.NARSize
			f.files["nar/hello.nar"] = make([]byte, f.info.NARSize+1)
		}, broken("fail longer than --max-size allows")},
		"breaks off": {around(on(".nar", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5000")
			w.Header().Set("Etag", `"nar/hello.nar"`)
			w.Write(make([]byte, 3000))
			panic(http.ErrAbortHandler)
		}, http.MethodGet)), with(broken("fail breaks off after"), "ranges", "fail is not answered")},
		"stops": {func(f *fixture) {
			f.opts.Patience = 200 * time.Millisecond
			whole(func(w http.ResponseWriter, r *http.Request, content []byte) {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				w.Write(content[:100])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			})(f)
		}, broken("fail breaks off after 100 bytes: the server takes too long")},
		"no length": {whole(func(w http.ResponseWriter, r *http.Request, content []byte) {
			w.(http.Flusher).Flush()
			w.Write(content)
		}), only("nar", "warn without Content-Length")},
		"file size": {func(f *fixture) { f.info.FileSize = 7 }, only("nar", "warn the narinfo says 7")},
		"file hash": {func(f *fixture) { f.info.FileHash = nix.SHA256Sum([32]byte{}) }, only("nar", "warn the hash of the file is")},
		"HEAD":      {around(on(".nar", answerWith(200, "", "Content-Length", "1", "Etag", `"nar/hello.nar"`), http.MethodHead)), only("nar", "fail its HEAD says 1 bytes")},

		"gzip of a proxy, and ranges": {zipped("bytes"), only("nar-encoding", "fail said to be had in ranges")},
		"gzip of a proxy":             {zipped("none"), unadvertised},
		"gzip of a proxy, of what is not compressed": {func(f *fixture) {
			f.info.Compression = nix.None
			zipped("none")(f)
		}, with(unadvertised, "nar-encoding", "warn cannot resume")},

		"other compression": {func(f *fixture) { f.info.Compression, f.files["nar/hello.nar"] = nix.XZ, compress(f.nar) }, skips(only("compression", "fail the narinfo says xz, and the file is zstd"), "nar-hash")},
		"rare compression":  {func(f *fixture) { f.info.Compression, f.files["nar/hello.nar"] = nix.Lzop, []byte("lzop") }, skips(map[string]string{}, "compression", "nar-hash")},
		"a web page":        {file(func([]byte) []byte { return []byte(webPage) }), skips(only("compression", "fail the file is a web page"), "nar-hash")},
		"damaged":           {file(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), skips(only("compression", "fail cannot be decompressed"), "nar-hash")},
		"cut":               {file(func(b []byte) []byte { return b[:len(b)-5] }), skips(only("compression", "fail cannot be decompressed"), "nar-hash")},

		"other bytes":    {archive(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), only("nar-hash", "fail the hash of the NAR is")},
		"other size":     {archive(func([]byte) []byte { return fileNAR(t, []byte("short")) }), only("nar-hash", "fail the NAR has")},
		"no NAR":         {archive(func(b []byte) []byte { b[8] = 'N'; return b }), only("nar-hash", "fail it is no NAR")},
		"trailing bytes": {archive(func(b []byte) []byte { return append(b, "more"...) }), only("nar-hash", "fail it is no NAR")},
		"an early end":   {archive(func(b []byte) []byte { return b[:len(b)/2] }), only("nar-hash", "fail it is no NAR")},
	})
}

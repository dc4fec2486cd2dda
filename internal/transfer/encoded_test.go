package transfer_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/transfer"
	"firn/nix"
)

// encoders are what servers encode with.
func encoders(t *testing.T) map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"zstd": func(text []byte) []byte { return compress(t, text) },
		"gzip": func(text []byte) []byte {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			w.Write(text)
			w.Close()
			return b.Bytes()
		},
		"br": func(text []byte) []byte {
			var b bytes.Buffer
			w := brotli.NewWriter(&b)
			w.Write(text)
			w.Close()
			return b.Bytes()
		},
	}
}

// encoding is a server that encodes all that it sends, though it was not asked to.
func encoding(t *testing.T, dir, name string, encode func([]byte) []byte) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := os.ReadFile(filepath.Join(dir, r.URL.Path))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Encoding", name)
		w.Write(encode(text))
	}))
	t.Cleanup(server.Close)
	return server
}

// What comes with a Content-Encoding is decoded, NARs too, also those that are compressed by
// themselves.
func TestImportEncoded(t *testing.T) {
	for name, encode := range encoders(t) {
		for _, compressed := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " of compressed NARs: ", compressed), func(t *testing.T) {
				c, source, dir := exported(t)
				if compressed {
					for _, p := range source.paths {
						info, err := c.Lookup(t.Context(), p.Info.Path.Hash())
						if err != nil {
							t.Fatal(err)
						}
						n := *info
						file := compress(t, p.NAR)
						n.URL, n.Compression, n.FileHash, n.FileSize = cachetest.URL(file, ".zst"), nix.Zstd, nix.Hash{}, int64(len(file))
						for name, text := range map[string][]byte{n.URL: file, n.Path.Hash().String() + ".narinfo": n.AppendText(nil)} {
							if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				into, _ := newSink(t)
				root := source.paths[0].Info.Path
				if _, err := transfer.Import(t.Context(), encoding(t, dir, name, encode).URL, into, []nix.StorePath{root}, transfer.ImportOptions{Logs: true}.WithoutPauses()); err != nil {
					t.Fatal(err)
				}
				wantPaths(t, into, source.paths, 0, 1, 2)
				if _, err := into.OpenLog(t.Context(), source.paths[2].Info.Deriver); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// An encoding that makes a NAR longer than its narinfo says, or that firn does not know, is
// refused.
func TestImportEncodedHostile(t *testing.T) {
	bomb := compress(t, bytes.Repeat([]byte{0}, 64<<20))
	for name, test := range map[string]struct {
		encoding string
		encode   func([]byte) []byte
	}{
		"bomb":    {"zstd", func([]byte) []byte { return bomb }},
		"empty":   {"zstd", func([]byte) []byte { return bytes.Repeat(compress(t, nil), 1<<20) }},
		"unknown": {"best", func(text []byte) []byte { return text }},
	} {
		t.Run(name, func(t *testing.T) {
			_, source, dir := exported(t)
			plain := http.FileServer(http.Dir(dir))
			encoded := encoding(t, dir, test.encoding, test.encode).Config.Handler
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/nar/") {
					encoded.ServeHTTP(w, r)
				} else {
					plain.ServeHTTP(w, r)
				}
			}))
			defer server.Close()
			into, _ := newSink(t)
			_, err := transfer.Import(t.Context(), server.URL, into, []nix.StorePath{source.paths[0].Info.Path}, transfer.ImportOptions{}.WithoutPauses())
			if !errors.Is(err, cache.ErrInvalid) {
				t.Errorf("%v, want ErrInvalid", err)
			}
			wantPaths(t, into, source.paths)
		})
	}
}

// A chain of paths with large narinfos is imported: each waits for the one that it refers to.
func TestImportLargeNARInfos(t *testing.T) {
	_, source, _ := exported(t)
	for i, p := range source.paths[:2] {
		p.Info.References = append(p.Info.References, p.Info.References...)
		for j := range 2000 {
			ref := cachetest.NewPath(t, nix.DefaultStoreDir, fmt.Sprintf("%d-%d-%s", i, j, strings.Repeat("x", 30)), "")
			p.Info.References = append(p.Info.References, ref.Info.Path)
		}
		p.Info.References = nix.SortPaths(p.Info.References)
	}
	_, _, dir := exportedOf(t, source)
	sink := cachetest.NewMemory()
	into, err := cache.New([]cache.Source{sink}, cache.Options{Sink: cache.SinkOf(sink), AllowMissingReferences: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := transfer.Import(t.Context(), dir, into, nil, transfer.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	wantPaths(t, into, source.paths, 0, 1, 2)
}

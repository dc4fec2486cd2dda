package server

import (
	"bytes"
	"strings"
	"testing"

	"firn/nix"
)

// The old URL of a NAR that was uploaded in another compression than xz is not answered with something
// else, and the answer says why.
func TestNotStored(t *testing.T) {
	for _, test := range []struct {
		compression nix.Compression
		ext         string
	}{
		{nix.LZMA, ""}, {nix.Gzip, ""}, {nix.Bzip2, ".bz2"}, {nix.Lzip, ".lzip"}, {nix.LZ4, ".lz4"}, {nix.Brotli, ".br"},
		{nix.Zstd, ".zst"}, // by a sink that keeps NARs as they are
	} {
		t.Run(string(test.compression), func(t *testing.T) {
			p := newPushTester(t)
			p.T = t
			file := compress(t, p.path.NAR, test.compression)
			n := narinfo(p.path, file, test.compression, test.ext)
			p.wantPut(201, "/"+n.URL, string(file))
			p.wantPut(204, "/"+n.URL, string(file))
			p.wantPut(201, "/"+helloHash+".narinfo", text(n))
			if resp, _ := p.do("HEAD", "/"+n.URL); resp.StatusCode != 200 {
				t.Errorf("HEAD %s: %s", n.URL, resp.Status)
			}
			resp, body := p.do("GET", "/"+n.URL)
			if resp.StatusCode != 404 || !strings.Contains(string(body), string(test.compression)) {
				t.Errorf("GET %s: %s: %q, want 404 and a word of %s", n.URL, resp.Status, body, test.compression)
			}
			got, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, p.wantGet(200, "/"+helloHash+".narinfo"))
			if err != nil {
				t.Fatal(err)
			}
			if body := p.wantGet(200, "/"+got.URL); !bytes.Equal(body, p.path.NAR) {
				t.Errorf("GET %s: not the NAR", got.URL)
			}
		})
	}
}

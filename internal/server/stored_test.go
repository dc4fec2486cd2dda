//go:build programs

package server

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"firn/nix"
)

// TestNotStored: what has no form without compression is not taken for something else, and who asks for it is told.
func TestNotStored(t *testing.T) {
	for _, test := range []struct {
		compression nix.Compression
		ext         string
		command     []string
	}{
		{nix.LZMA, "", []string{"xz", "--format=lzma"}},
		{nix.Bzip2, ".bz2", []string{"bzip2"}},
		{nix.Lzip, ".lzip", []string{"lzip"}},
	} {
		t.Run(string(test.compression), func(t *testing.T) {
			p := newPushTester(t)
			p.T = t
			cmd := exec.CommandContext(t.Context(), test.command[0], test.command[1:]...)
			cmd.Stdin = bytes.NewReader(p.path.NAR)
			file, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s: %v", test.command, err)
			}
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

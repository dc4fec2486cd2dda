// Nothing is done at once here, so the race detector has nothing to see.

//go:build !race

package decompress

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"firn/nix"
)

// Nix itself compresses what is decoded, and substitutes from what WrapXZ makes of it.
func TestNix(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "NIX_CONFIG=experimental-features = nix-command\nsandbox = false")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, &stderr)
		}
		return strings.TrimSpace(string(out))
	}
	data := sample(2 << 20)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "store")
	path := run("nix-store", "--store", store, "--add", file)

	var plain []byte
	for _, c := range []nix.Compression{
		nix.None, nix.Brotli, nix.Bzip2, nix.Gzip, nix.LZ4, nix.Lzip, nix.LZMA, nix.XZ, "xz&parallel-compression=true", nix.Zstd,
	} {
		url := "file://" + filepath.Join(t.TempDir(), "cache")
		kept := strings.TrimPrefix(url, "file://")
		c, options, _ := strings.Cut(string(c), "&")
		compression := nix.Compression(c)
		run("nix", "copy", "--from", store, "--to", url+"?compression="+c+"&"+options, path)

		narInfo := filepath.Join(kept, strings.SplitN(filepath.Base(path), "-", 2)[0]+".narinfo")
		text, err := os.ReadFile(narInfo)
		if err != nil {
			t.Fatal(err)
		}
		info, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
		if err != nil {
			t.Fatal(err)
		}
		sent, err := os.ReadFile(filepath.Join(kept, info.URL))
		if err != nil {
			t.Fatal(err)
		}
		if info.Compression != compression {
			t.Fatalf("compressed by %s instead of %s", info.Compression, c)
		}
		if plain == nil {
			plain = sent
		}
		wantAll(t, compression, sent, plain)

		if compression != nix.XZ {
			continue
		}
		wrapped := WrapXZ(&bytesNAR{data: plain, piece: 1 << 16})
		// The narinfo stays as the client remembers it: with the hash and size of the file that it knew.
		if err := os.WriteFile(filepath.Join(kept, info.URL), whole(t, wrapped), 0o644); err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(t.TempDir(), "copy")
		run("nix", "copy", "--no-check-sigs", "--from", url, "--to", copied, path)
		got, err := os.ReadFile(filepath.Join(copied, path))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%s: Nix got other bytes", c)
		}
	}
}

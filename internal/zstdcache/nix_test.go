//go:build programs

package zstdcache

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"firn/nix"
)

// Nix itself substitutes what comes out, from NARs of one frame and of several.
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
	join := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }

	trees := map[string]*dump{"small": randomDump(5000, 1), "large": randomDump(2*frameSize, 2)}
	h := newHouse(t, Options{})
	for name, d := range trees {
		if err := os.Mkdir(join(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(join(name, "file"), d.data, 0o644); err != nil {
			t.Fatal(err)
		}
		path := run("nix-store", "--store", join("store"), "--add", join(name))
		run("nix", "copy", "--from", join("store"), "--to", "file://"+join("cache")+"?compression=none", path)

		// The binary cache that Nix wrote, with the NAR as it is here.
		narInfo := join("cache", strings.SplitN(filepath.Base(path), "-", 2)[0]+".narinfo")
		text, err := os.ReadFile(narInfo)
		if err != nil {
			t.Fatal(err)
		}
		info, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(join("cache", info.URL))
		if err != nil {
			t.Fatal(err)
		}
		compressed := h.encode(newDump(data))
		os.Remove(join("cache", info.URL))
		if err := os.WriteFile(join("cache", info.URL+".zst"), compressed, 0o644); err != nil {
			t.Fatal(err)
		}
		info.URL += ".zst"
		info.Compression = h.Compression()
		info.FileHash, info.FileSize = nix.Hash{}, int64(len(compressed))
		if err := os.WriteFile(narInfo, info.AppendText(nil), 0o644); err != nil {
			t.Fatal(err)
		}

		run("nix", "copy", "--no-check-sigs", "--from", "file://"+join("cache"), "--to", join("copy"), path)
		got, err := os.ReadFile(join("copy", path, "file"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, d.data) {
			t.Errorf("%s: other bytes", name)
		}
	}
}

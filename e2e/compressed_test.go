package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"firn/nix"
)

// With --compression zstd the first client gets NARs while they are compressed, and later clients get the result that was kept.
// The URL of a compressed NAR outlives the setting: clients may remember it for a month.
func TestCompressed(t *testing.T) {
	t.Parallel()
	state := filepath.Join(tempDir(t), "state")
	path := debianPath(t, "perl")
	var kept *nix.NARInfo
	var file []byte

	t.Run("on", func(t *testing.T) {
		s := startFirn(newMachine(t, systemNix()), "--store", debian(t).Root, "--state", state, "--compression", "zstd")
		info, err := s.narInfo(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Compression != nix.Zstd || !strings.HasSuffix(info.URL, ".nar.zst") || info.FileSize != 0 {
			t.Errorf("the narinfo says %s, %d bytes, at %s", info.Compression, info.FileSize, info.URL)
		}
		if file, err = s.fetch(info.URL); err != nil {
			t.Fatal(err)
		}
		if kept, err = s.narInfo(path); err != nil {
			t.Fatal(err)
		}
		if kept.FileSize != int64(len(file)) || kept.FileSize >= kept.NARSize {
			t.Errorf("the narinfo says %d bytes, want %d", kept.FileSize, len(file))
		}

		want := closure(t, path.String())
		eachNix(t, func(t *testing.T, n nixSystem) {
			first, later := newMachine(t, n), newMachine(t, n)
			first.run(append([]string{"nix-store", "--realise", path.String()}, s.trust()...)...)
			wantStore(first, s, want)
			sameTree(t, first.path(path.String()), debian(t).Root+path.String())
			later.run("nix", "copy", "--from", s.url, path.String(), "--option", "trusted-public-keys", s.publicKey)
			wantStore(later, s, want)
		})
	})

	t.Run("off", func(t *testing.T) {
		s := startFirn(newMachine(t, systemNix()), "--store", debian(t).Root, "--state", state)
		if got, err := s.fetch(kept.URL); err != nil || string(got) != string(file) {
			t.Errorf("%d bytes at the old URL, want %d (error: %v)", len(got), len(file), err)
		}
		info, err := s.narInfo(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Compression != nix.None {
			t.Errorf("the narinfo still says %s", info.Compression)
		}
	})
}

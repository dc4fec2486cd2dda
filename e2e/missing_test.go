package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"firn/nix"
)

// A path whose pack is missing is one that the cache does not have: clients build it, and those
// that have it push it again.
func TestMissingPack(t *testing.T) {
	t.Parallel()
	const script = "echo built >$out"
	eachNix(t, func(t *testing.T, n nixSystem) {
		host := newMachine(t, systemNix())
		s := startDepot(host)
		builder := newMachine(t, n)
		login(builder, newToken(host, "ci", "--push", "main"))
		output, _ := build(builder, "", script)
		push := func() {
			builder.run("nix", "copy", "--to", s.url+"?compression=none", output, "--option", "narinfo-cache-positive-ttl", "0")
		}
		push()
		packs, err := filepath.Glob(filepath.Join(host.dir, "state/depot/packs/*/*.pack"))
		if err != nil || len(packs) != 1 {
			t.Fatalf("the packs are %v, %v", packs, err)
		}
		away := filepath.Join(host.dir, "away")
		if err := os.Rename(packs[0], away); err != nil {
			t.Fatal(err)
		}

		m := newMachine(t, n)
		if got, _ := build(m, "", script, s.trust()...); got != output {
			t.Errorf("built %s, want %s", got, output)
		}
		p, err := nix.DefaultStoreDir.ParsePath(output)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.narInfo(p); err == nil || !strings.Contains(err.Error(), "404") {
			t.Errorf("its narinfo: %v", err)
		}
		if logs := s.errors.String(); !strings.Contains(logs, filepath.Base(packs[0])) {
			t.Errorf("the log does not name the pack:\n%s", logs)
		}

		push()
		fetch := func() {
			t.Helper()
			m := newMachine(t, n)
			m.run("nix", "copy", "--from", s.url, output, "--option", "trusted-public-keys", s.publicKey)
			sameTree(t, builder.path(output), m.path(output))
		}
		fetch()
		if err := os.Rename(away, packs[0]); err != nil {
			t.Fatal(err)
		}
		fetch()
		admin(host, "verify")
	})
}

// A small path of the local store that is not what the database says was never there: no client is
// sent a byte of it, nor an error of the server.
func TestDamagedSmallPath(t *testing.T) {
	t.Parallel()
	for _, compression := range []string{"none", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			m := newMachine(t, systemNix())
			file := m.write("small", "a few bytes\n")
			path, err := nix.DefaultStoreDir.ParsePath(m.run("nix-store", "--add", file))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(m.path(path.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(m.path(path.String()), []byte("A few bytes\n"), 0o444); err != nil {
				t.Fatal(err)
			}
			s := startFirn(m, "--compression", compression)
			info, err := s.narInfo(path)
			if err != nil {
				t.Fatal(err)
			}
			res, err := s.get(info.URL)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusNotFound {
				t.Errorf("the NAR is answered with %s", res.Status)
			}
			if _, err := s.narInfo(path); err == nil || !strings.Contains(err.Error(), "404") {
				t.Errorf("its narinfo: %v", err)
			}
			if !strings.Contains(s.errors.String(), "withheld") {
				t.Errorf("the log does not say so:\n%s", s.errors)
			}
		})
	}
}

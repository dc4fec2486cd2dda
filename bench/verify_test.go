//go:build linux

package main

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// material is a small store, and the flat files that real Nix makes of it.
func material(t *testing.T) *Material {
	t.Helper()
	if err := needTools(t.Context(), t.Logf); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for name, size := range map[string]int{"small": 10, "large": 20 << 20, "larger": 20<<20 + 1} {
		text := make([]byte, size)
		rand.Read(text)
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if text, err := exec.CommandContext(t.Context(), "nix-store", "--store", root, "--add", file).CombinedOutput(); err != nil {
			t.Fatalf("nix-store --add: %v\n%s", err, text)
		}
	}
	m, err := prepare(t.Context(), dir, root, false, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Closure) != 3 {
		t.Fatalf("closure %v", m.Closure)
	}
	return m
}

// A whole shootout between nginx and nginx.
func TestShootout(t *testing.T) {
	m := material(t)
	b := &shootout{client: newClient(t), discard: DiscardTruncate, rateTime: 10 * time.Millisecond, work: t.TempDir(), progress: t.Logf, targets: make(map[*Server]*Target), samples: make(Samples)}
	defer b.leave()
	for _, spec := range []Spec{nginxSpec(nginxPlain, "", m.Plain), nginxSpec(firnPlain, nginxPlain, m.Plain), nginxSpec(nginxZstd, "", m.Zstd), nginxSpec(firnZstd, nginxZstd, m.Zstd)} {
		if err := b.enter(t.Context(), spec, m.Closure); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := b.run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.inFlight(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, bar := range bars(b.samples) {
		if measured := bar.Verdict != NotMeasured; measured == strings.Contains(bar.What, "1,000,000") {
			t.Errorf("%s: %s", bar.What, bar.Verdict)
		}
	}
	for _, s := range b.servers {
		for _, metric := range metrics() {
			want := 2
			if metric == metricFlight || metric == metricSent { // once, not in each run
				want = 1
			}
			if got := b.samples.of(s.Name, metric.Key); len(got) != want {
				t.Errorf("%s: %s: %d samples, want %d", s.Name, metric.Title, len(got), want)
			}
		}
	}
}

// A server whose bytes are wrong is not measured.
func TestVerifyFindsWrongBytes(t *testing.T) {
	m := material(t)
	client := newClient(t)
	for _, flat := range []string{m.Plain, m.Zstd} {
		s, err := start(t.Context(), client, nginxSpec(nginxPlain, "", flat), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer s.stop()
		if _, err := verify(t.Context(), s, m.Closure); err != nil {
			t.Fatal(err)
		}
		nars, err := filepath.Glob(filepath.Join(flat, "nar", "*"))
		if err != nil || len(nars) != 3 {
			t.Fatalf("NARs %v, error %v", nars, err)
		}
		damage(t, nars[0], func(text []byte) []byte { text[len(text)/2] ^= 1; return text })
		if _, err := verify(t.Context(), s, m.Closure); err == nil {
			t.Errorf("%s: no error for a changed byte", filepath.Base(flat))
		}
		damage(t, nars[0], func(text []byte) []byte { text[len(text)/2] ^= 1; return text })
		if _, err := verify(t.Context(), s, m.Closure); err != nil {
			t.Fatal(err)
		}
		narinfos, err := filepath.Glob(filepath.Join(flat, "*.narinfo"))
		if err != nil {
			t.Fatal(err)
		}
		damage(t, narinfos[0], func(text []byte) []byte { return bytes.Replace(text, []byte("NarSize: "), []byte("NarSize: 1"), 1) })
		if _, err := verify(t.Context(), s, m.Closure); err == nil {
			t.Errorf("%s: no error for a wrong NarSize", filepath.Base(flat))
		}
	}
}

func damage(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestGenerateStore(t *testing.T) {
	if err := needTools(t.Context(), t.Logf); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	made, err := generateStore(t.Context(), dir, 2000, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if len(made.paths) != 2000 {
		t.Fatalf("%d paths", len(made.paths))
	}
	found, err := generateStore(t.Context(), dir, 2000, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if found.paths[0] != made.paths[0] {
		t.Error("the store was made again")
	}
	// Real Nix reads what was made.
	text, err := exec.CommandContext(t.Context(), "nix-store", "--store", made.root, "--query", "--hash", made.paths[7].String()).CombinedOutput()
	if err != nil || !bytes.Contains(text, []byte("sha256:")) {
		t.Errorf("nix-store --query --hash: %v\n%s", err, text)
	}
}

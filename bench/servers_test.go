//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"firn/nix"
	"firn/nix/nar"
)

// answers is a server of some answers by path; the answer to "/cut" is not whole.
func answers(t *testing.T, bodies map[string][]byte) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := bodies[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if r.URL.Path == "/cut" {
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(body)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// The client takes the right answers, whatever their size and the number of connections, and no
// other.
func TestClient(t *testing.T) {
	bodies := map[string][]byte{"/empty": {}, "/small": []byte("small"), "/large": make([]byte, 3<<20+1), "/cut": []byte("short")}
	addr := answers(t, bodies)
	right := []request{
		get(addr, "/small", "", 200, 5), get(addr, "/large", "", 200, 3<<20+1), get(addr, "/empty", "", 200, 0), get(addr, "/none", "", 404, -1),
		get(addr, "/large", "Range: bytes=3145720-\r\n", 206, 9), get(addr, "/small", "", 200, -1),
	}
	for _, connections := range []int{1, 3, 20} {
		n, took, err := run(t.Context(), addr, connections, right, 0)
		if err != nil || n != len(right) || took <= 0 {
			t.Errorf("%d connections: %d requests in %v, error %v", connections, n, took, err)
		}
	}
	if n, took, err := run(t.Context(), addr, 2, right[:1], 10*time.Millisecond); err != nil || n < 1 || took < 10*time.Millisecond {
		t.Errorf("%d requests in %v, error %v", n, took, err)
	}
	for want, wrong := range map[string]request{
		"status 404 instead of 200":    get(addr, "/none", "", 200, -1),
		"Content-Length 5 instead of ": get(addr, "/small", "", 200, 6),
		"GET /cut: ":                   get(addr, "/cut", "", 200, -1),
	} {
		if _, _, err := run(t.Context(), addr, 2, []request{right[0], wrong}, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	called := false
	if err := hold(t.Context(), addr, 5, right[1:2], func() { called = true }); err != nil || !called {
		t.Errorf("called %v, error %v", called, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := run(ctx, addr, 1, right, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v after it was cancelled", err)
	}
}

// tree makes a store path with what NARs can have, and returns its NAR.
func tree(t *testing.T, dir string) (storedPath, []byte) {
	t.Helper()
	p := storedPath{}
	var err error
	if p.StorePath, err = nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-tree"); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, p.Base())
	if err := os.MkdirAll(filepath.Join(at, "b", "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"a": 0, "b/1": 1, "b/16": leastWhole, "b/17": leastWhole + 1, "b/64": 4 * leastWhole, "c": 1<<20 + 3, "d": 8} {
		if err := os.WriteFile(filepath.Join(at, name), bytes.Repeat([]byte(name), size)[:size], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 9 { // more than fits into what is sent at once
		if err := os.WriteFile(filepath.Join(at, "b", strings.Repeat("x", i+1)), make([]byte, leastWhole-i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("b/1", filepath.Join(at, "link")); err != nil {
		t.Fatal(err)
	}
	layout, err := nar.NewLayout(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := layout.WriteRange(t.Context(), &b, at, 0, layout.Size()); err != nil {
		t.Fatal(err)
	}
	p.narHash, p.narSize = nix.SHA256Sum(sha256.Sum256(b.Bytes())), int64(b.Len())
	return p, b.Bytes()
}

// The least serves right bytes in all its ways.
func TestLeast(t *testing.T) {
	www, store := t.TempDir(), t.TempDir()
	p, text := tree(t, store)
	for _, dir := range []string{"plain", "depot"} {
		if err := os.Mkdir(filepath.Join(www, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	info := nix.NARInfo{URL: "nar/x.nar", Compression: nix.None}
	info.Path, info.NARHash, info.NARSize = p.StorePath, p.narHash, p.narSize
	for name, text := range map[string][]byte{
		"plain/" + p.Hash().String() + ".narinfo": info.AppendText(nil),
		"depot/" + p.Hash().String() + ".nar.zst": encode(t, text),
	} {
		if err := os.WriteFile(filepath.Join(www, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	go serveLeast(addr, www, store) // until the test ends
	s := &server{addr: addr, dir: t.TempDir()}
	for deadline := time.Now().Add(time.Minute); answersHTTP(addr) != nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	for _, path := range []string{"/nar/" + p.Base(), "/depot/" + p.Hash().String() + ".nar.zst", "/unpacked/" + p.Hash().String() + "/" + fmt.Sprint(p.narSize)} {
		for range 2 { // with and without what the least remembers
			got, err := verify(t.Context(), s, []storedPath{p}, fixed(func(storedPath) string { return path }), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := run(t.Context(), addr, 1, append(got.narinfos, got.nars...), 0); err != nil {
				t.Error(err)
			}
		}
	}
	if _, _, err := run(t.Context(), addr, 2, misses(addr), 0); err != nil {
		t.Error(err)
	}
}

// A server whose bytes are wrong is not measured.
func TestVerify(t *testing.T) {
	p, text := tree(t, t.TempDir())
	info := func(size int64) []byte {
		i := nix.NARInfo{URL: "nar/x.nar.zst", Compression: nix.Zstd}
		i.Path, i.NARHash, i.NARSize = p.StorePath, p.narHash, size
		return i.AppendText(nil)
	}
	damaged := bytes.Clone(text)
	damaged[len(text)/2] ^= 1
	for want, bodies := range map[string][2][]byte{
		"":                        {info(p.narSize), encode(t, text)},
		"the bytes are those of ": {info(p.narSize), encode(t, damaged)},
		" bytes instead of ":      {info(p.narSize + 1), encode(t, text)},
		"magic number mismatch":   {info(p.narSize), text},
	} {
		s := &server{addr: answers(t, map[string][]byte{"/c" + narinfoPath(p.Hash()): bodies[0], "/c/nar/x.nar.zst": bodies[1]})}
		save := t.TempDir()
		got, err := verify(t.Context(), s, []storedPath{p}, narinfo("/c", nixAgent), save)
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := run(t.Context(), s.addr, 1, append(got.narinfos, got.nars...), 0); err != nil {
			t.Error(err)
		}
		if saved, err := os.ReadFile(filepath.Join(save, p.Hash().String()+".nar.zst")); err != nil || !bytes.Equal(saved, bodies[1]) || got.bytes != int64(len(saved)) {
			t.Errorf("%d bytes are saved, and %d counted, error %v", len(saved), got.bytes, err)
		}
	}
}

func encode(t *testing.T, text []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(text, nil)
}

// What is put into the sink is gone, but for narinfos.
func TestSink(t *testing.T) {
	s := httptest.NewServer(&sink{})
	defer s.Close()
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/nix-cache-info", "", 200, "StoreDir: /nix/store\n"},
		{"HEAD", "/a.narinfo", "", 404, ""},
		{"PUT", "/nar/a.nar", strings.Repeat("x", 1<<20), 200, ""},
		{"GET", "/nar/a.nar", "", 404, "404 page not found\n"},
		{"PUT", "/a.narinfo", "StorePath: x", 200, ""},
		{"GET", "/a.narinfo", "", 200, "StorePath: x"},
		{"HEAD", "/a.narinfo", "", 200, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, s.URL+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || string(text) != tt.want {
			t.Errorf("%s %s: %d %q, want %d %q; error %v", tt.method, tt.path, resp.StatusCode, text, tt.status, tt.want, err)
		}
	}
}

// The kernel tells of this process what it tells of a server.
func TestOwnProcess(t *testing.T) {
	pid := os.Getpid()
	begun, err := cpuTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	for ended := begun; ended-begun < time.Millisecond; {
		if ended, err = cpuTime(pid); err != nil {
			t.Fatal(err)
		}
	}
	if now, peak, err := memoryOf(pid); err != nil || now < 1<<20 || peak < now {
		t.Errorf("resident %v, at most %v, error %v", now, peak, err)
	}
}

func TestSizes(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"a": 3, "depot/packs/b": 4, "depot/packs/x/c": 5, "depot/d": 6} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if all, packs, err := sizes(dir); err != nil || all != 18 || packs != 9 {
		t.Errorf("%v bytes, of which %v are packs, error %v", all, packs, err)
	}
}

//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/protocol"
)

// firnProgram builds firn.
func firnProgram(t *testing.T) string {
	t.Helper()
	root, err := moduleRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	program, err := buildFirn(t.Context(), root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// Real Nix pushes a small store to each pusher's end, and a depot is filled with it.
func TestPushes(t *testing.T) {
	m, program := material(t), firnProgram(t)
	b := &shootout{client: newClient(t), work: t.TempDir(), progress: t.Logf, targets: make(map[*Server]*Target), samples: make(Samples)}
	from := source{m.Root, tops(m.Closure)}
	for _, pusher := range pushers {
		if err := b.pushOnce(t.Context(), program, pusher, from); err != nil {
			t.Fatalf("%s: %v", pusher, err)
		}
		if xs := b.samples.of(pusher, metricPush.Key); len(xs) != 1 || xs[0] <= 0 {
			t.Errorf("%s: samples %v", pusher, xs)
		}
	}
	for i, part := range []int64{1 << 20, 16 << 20} { // hung up, and whole
		b.work = t.TempDir()
		if err := b.uploadAtOnce(t.Context(), program, 8<<20, part); err != nil {
			t.Fatal(err)
		}
		if xs := b.samples.of(pushPlain, metricUploads.Key); len(xs) != i+1 || xs[i] < 1<<20 {
			t.Errorf("samples %v", xs)
		}
	}
	m.Again = &m.generation // a rebuild that changes nothing
	state, err := b.fillDepot(t.Context(), program, m)
	if err != nil {
		t.Fatal(err)
	}
	kept, added := b.samples.of(firnDepot, metricKept.Key), b.samples.of(firnDepot, metricAdded.Key)
	if len(kept) != 1 || len(added) != 1 || kept[0] < 40<<20 || added[0] > 1<<20 {
		t.Errorf("kept %v, added %v", kept, added)
	}
	if err := b.enter(t.Context(), depotSpec(firnDepot, nginxZstd, program, state), m.Closure); err != nil {
		t.Fatal(err)
	}
	b.leave()
}

// Real Nix copies a small store to firn over SSH and back, by both protocols, and with several clients at once.
func TestSSH(t *testing.T) {
	m, program := material(t), firnProgram(t)
	b := &shootout{client: newClient(t), work: t.TempDir(), progress: t.Logf, samples: make(Samples)}
	defer removeStore(b.work)
	from := source{m.Root, tops(m.Closure)}
	for _, scheme := range sshSchemes {
		if err := b.sshOnce(t.Context(), program, sshFirn, scheme, from); err != nil {
			t.Fatalf("%s: %v", scheme, err)
		}
	}
	if err := b.sshAtOnce(t.Context(), program, []source{from}); err != nil {
		t.Fatal(err)
	}
	for _, metric := range sshMetrics() {
		if xs := b.samples.of(sshFirn, metric.Key); len(xs) != 1 || xs[0] <= 0 {
			t.Errorf("%s: samples %v", metric.Title, xs)
		}
	}
}

// What is pushed into the SSH sink is read to its end, and gone, but for its path info.
func TestSSHSink(t *testing.T) {
	ours, theirs := net.Pipe()
	store := &sinkStore{infos: make(map[nix.StorePath]*nix.PathInfo)}
	ended := make(chan error, 1)
	go func() {
		defer theirs.Close()
		ended <- protocol.ServeWorker(t.Context(), theirs, protocol.Store{Paths: store, Pushes: store}, protocol.Options{Version: "2.8.0"})
	}()
	c, err := protocol.DialWorker(ours, nix.DefaultStoreDir)
	if err != nil {
		t.Fatal(err)
	}
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "hello", "world")
	for range 2 {
		if err := c.AddNAR(p.Info, bytes.NewReader(p.NAR)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := store.PathInfo(t.Context(), p.Info.Path); err != nil || got.NARHash != p.Info.NARHash {
		t.Errorf("what is remembered is %v (%v)", got, err)
	}
	ours.Close()
	<-ended
}

// What is put into the sink is gone, but for narinfos.
func TestSink(t *testing.T) {
	s := httptest.NewServer(newSink())
	defer s.Close()
	do := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/nix-cache-info", "", 200, "StoreDir: /nix/store\n"},
		{"HEAD", "/a.narinfo", "", 404, ""},
		{"PUT", "/nar/a.nar", strings.Repeat("x", 3*sinkBuffer+1), 200, ""},
		{"GET", "/nar/a.nar", "", 404, "404 page not found\n"},
		{"PUT", "/a.narinfo", "StorePath: x", 200, ""},
		{"GET", "/a.narinfo", "", 200, "StorePath: x"},
		{"HEAD", "/a.narinfo", "", 200, ""},
		{"DELETE", "/a.narinfo", "", 405, "only GET, HEAD and PUT\n"},
	} {
		if status, text := do(tt.method, tt.path, tt.body); status != tt.status || text != tt.want {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.path, status, text, tt.status, tt.want)
		}
	}
}

func TestMain(m *testing.M) {
	// The sinks are processes of this program, which in tests is this.
	if len(os.Args) == 3 && os.Args[1] == sinkCommand {
		exit(serveSink(context.Background(), os.Args[2]))
	}
	if len(os.Args) == 2 && os.Args[1] == sshSinkCommand {
		exit(serveSSHSink(context.Background()))
	}
	os.Exit(m.Run())
}

func TestSizeOf(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"a": 3, "d/b": 4} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := sizeOf(dir); err != nil || got != 7 {
		t.Errorf("%d bytes, error %v", got, err)
	}
}

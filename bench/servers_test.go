//go:build linux

package main

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParsePeer(t *testing.T) {
	type peer struct {
		Name, URL string
		PID       int
	}
	tests := []struct {
		text string
		want peer
		err  string
	}{
		{text: "harmonia=http://127.0.0.1:5001", want: peer{"harmonia", "http://127.0.0.1:5001", 0}},
		{text: "a b=http://[::1]:80/cache/,4711", want: peer{"a b", "http://[::1]:80/cache/", 4711}},
		{text: "x=http://localhost", want: peer{"x", "http://127.0.0.1:80", 0}},
		{text: "x", err: `peer "x": want NAME=URL or NAME=URL,PID`},
		{text: "=http://127.0.0.1:1", err: `peer "=http://127.0.0.1:1": want NAME=URL or NAME=URL,PID`},
		{text: "x=https://127.0.0.1:1", err: `peer x: URL "https://127.0.0.1:1": want http://ADDRESS:PORT[/PREFIX]`},
		{text: "x=http://127.0.0.1:1,0", err: `peer x: process id "0"`},
		{text: "x=http://192.0.2.1:80", err: "peer x: 192.0.2.1:80 is not a loopback address"},
	}
	for _, tt := range tests {
		spec, err := parsePeer(tt.text)
		if err != nil {
			if err.Error() != tt.err {
				t.Errorf("%s: error %q, want %q", tt.text, err, tt.err)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, peer{spec.Name, spec.URL.String(), spec.PID}); diff != "" || tt.err != "" {
			t.Errorf("%s: no error, want %q; %s", tt.text, tt.err, diff)
		}
	}
}

func TestParseMemory(t *testing.T) {
	got, err := parseMemory([]byte("Name:\tx\nVmHWM:\t    5032 kB\nVmRSS:\t    1024 kB\nThreads:\t1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Memory{Now: 1 << 20, Peak: 5032 << 10}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, text := range []string{"", "VmRSS:\t1 kB\n", "VmRSS:\tx kB\nVmHWM:\t1 kB\n"} {
		if _, err := parseMemory([]byte(text)); err == nil {
			t.Errorf("no error for %q", text)
		}
	}
}

// The kernel tells of this process what it tells of a server.
func TestOwnProcess(t *testing.T) {
	pid := os.Getpid()
	before, err := cpuTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	for after := before; after-before < time.Millisecond; {
		if after, err = cpuTime(pid); err != nil {
			t.Fatal(err)
		}
	}
	m, err := memoryOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	if m.Now <= 0 || m.Peak < m.Now/2 {
		t.Errorf("memory %+v", m)
	}
	if _, err := memoryOf(1 << 30); err == nil {
		t.Error("no error for a process that is not there")
	}
}

// Real nginx over a real flat file, from start to end: it answers, has workers, and is gone afterwards.
func TestNginx(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "nix-cache-info"), []byte("StoreDir: /nix/store\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := needTools(t.Context(), t.Logf); err != nil {
		t.Fatal(err)
	}
	s, err := start(t.Context(), newClient(t), nginxSpec(nginxPlain, "", root), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pids, err := descendants(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	if len(pids) < 2 {
		t.Errorf("processes %v: no workers", pids)
	}
	if err := resetPeak(s.PID); err != nil {
		t.Error(err)
	}
	s.stop()
	if _, err := cpuTime(s.PID); err == nil {
		t.Errorf("process %d is still there", s.PID)
	}
}

func TestStartSaysWhyAServerEnded(t *testing.T) {
	spec := Spec{Name: nginxPlain, Command: func(_ netip.AddrPort, dir string) (*exec.Cmd, error) {
		return exec.Command(nginxProgram(), "-p", dir, "-c", filepath.Join(dir, "absent"), "-e", "stderr"), nil
	}}
	_, err := start(t.Context(), newClient(t), spec, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "ended at once") || !strings.Contains(err.Error(), "[emerg]") {
		t.Errorf("error %v", err)
	}
}

func TestPart(t *testing.T) {
	closure := []Path{{NARSize: 10 << 20}, {NARSize: 33 << 20}}
	for range 20 {
		closure = append(closure, Path{NARSize: 30 << 20})
	}
	var sum int64
	for _, p := range part(closure) {
		if p.NARSize > 32<<20 {
			t.Errorf("a NAR of %d bytes", p.NARSize)
		}
		sum += p.NARSize
	}
	if sum < 200<<20 || sum > 256<<20 {
		t.Errorf("%d bytes", sum)
	}
}

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Both logs go to files, and after these were renamed and the server was told, to new ones.
func TestLogFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log, access := filepath.Join(dir, "firn.log"), filepath.Join(dir, "access.log")
	s := startServer(t, environment(t), "--store", "off", "--listen", "127.0.0.1:0", "--log-file", log, "--log-level", "debug", "--access-log", access)
	line := regexp.MustCompile(`(?m)^127\.0\.0\.1 - - \[[^]]+\] "GET /version HTTP/1\.1" 200 \d+ "-" "Go-http-client/1\.1"$`)
	s.get(t, "/version")
	waitFor(t, access, func(text string) bool { return line.MatchString(text) })
	waitFor(t, log, func(text string) bool { return strings.Contains(text, "path=/version") })

	for _, signal := range []os.Signal{syscall.SIGUSR1, syscall.SIGHUP} {
		for _, path := range []string{log, access} {
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
		}
		s.signal(t, signal)
		for _, path := range []string{log, access} {
			waitFor(t, path, func(string) bool { return true })
		}
	}
	s.get(t, "/nix-cache-info")
	s.signal(t, syscall.SIGTERM)
	if err := s.wait(); err != nil {
		t.Errorf("%v\n%s", err, s.stderr)
	}
	for _, path := range []string{log, access} {
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), "/nix-cache-info") || strings.Contains(string(text), "/version") {
			t.Errorf("%s holds %q, %v", path, text, err)
		}
	}
	if s.stderr.String() != "" {
		t.Errorf("standard error has\n%s", s.stderr)
	}
}

// Without a file, requests are logged where everything is.
func TestAccessLogOnStandardError(t *testing.T) {
	t.Parallel()
	s := startServer(t, environment(t), "--store", "off", "--listen", "127.0.0.1:0", "--access-log", "stderr", "--access-log-format", "json")
	s.get(t, "/version")
	s.stderr.wait(t, `"uri":"/version"`)
}

// Where the log is JSON, so are the lines of requests that go to the same place, and nowhere else.
func TestAccessLogAmongJSON(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"", filepath.Join(t.TempDir(), "firn.log")} {
		args := []string{"--store", "off", "--listen", "127.0.0.1:0", "--log-format", "json", "--log-level", "debug", "--access-log", "stderr"}
		if file != "" {
			args[len(args)-1] = file
			args = append(args, "--log-file", file)
		}
		s := startServer(t, environment(t), args...)
		s.get(t, "/version")
		s.signal(t, syscall.SIGTERM)
		if err := s.wait(); err != nil {
			t.Fatal(err)
		}
		text := []byte(s.stderr.String())
		if file != "" {
			var err error
			if text, err = os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
		}
		if !strings.Contains(string(text), `"uri":"/version"`) {
			t.Errorf("no request in\n%s", text)
		}
		for line := range strings.Lines(string(text)) {
			if !json.Valid([]byte(line)) {
				t.Errorf("no JSON: %s", line)
			}
		}
	}
	access := filepath.Join(t.TempDir(), "access.log")
	s := startServer(t, environment(t), "--store", "off", "--listen", "127.0.0.1:0", "--log-format", "json", "--access-log", access)
	s.get(t, "/version")
	waitFor(t, access, func(text string) bool { return strings.Contains(text, `"GET /version HTTP/1.1" 200`) })
}

func TestLogErrors(t *testing.T) {
	dir := t.TempDir()
	for _, flag := range []string{"--log-file", "--access-log"} {
		out, err := exec.CommandContext(t.Context(), "firn", "serve", "--store=off", "--state", dir, flag, dir+"/no/log").CombinedOutput()
		want := "firn: open log: open " + dir + "/no/log: no such file or directory; make its directory first\n"
		if err == nil || string(out) != want {
			t.Errorf("%s: %v\n%swant\n%s", flag, err, out, want)
		}
	}
}

// waitFor waits until a file is there and its text is right.
func waitFor(t *testing.T, path string, ok func(text string) bool) {
	t.Helper()
	for {
		text, err := os.ReadFile(path)
		if err == nil && ok(string(text)) {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatalf("%s holds %q, %v", path, text, err)
		}
	}
}

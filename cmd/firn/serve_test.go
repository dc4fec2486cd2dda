package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"firn/internal/keyfile"
)

// Without a key, many that start at once end with the same new one.
func TestServeFirstKey(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	const servers = 8
	started := make(chan *testServer, servers)
	for range servers {
		go func() {
			started <- startServer(t, environment(t), "--state", state, "--store", "off", "--listen", "127.0.0.1:0")
		}()
	}
	keys, makers := map[string]bool{}, 0
	for range servers {
		s := <-started
		_, key, _ := strings.Cut(s.announced, "extra-trusted-public-keys = ")
		keys[strings.TrimSpace(key)] = true
		if strings.Contains(s.announced, "made one: "+filepath.Join(state, keyfile.SecretName)) {
			makers++
		}
	}
	if len(keys) != 1 || makers != 1 {
		t.Errorf("%d made a key, the keys are %v, want one of each", makers, keys)
	}
	public, err := os.ReadFile(filepath.Join(state, keyfile.PublicName))
	if err != nil || !keys[string(public)] {
		t.Errorf("the public key file holds %q, %v, want one of %v", public, err, keys)
	}
	again := startServer(t, environment(t), "--state", state, "--store", "off", "--listen", "127.0.0.1:0")
	if !strings.Contains(again.announced, string(public)) || strings.Contains(again.announced, "made one") {
		t.Errorf("a later start announced\n%s", again.announced)
	}
}

// NIX_STORE_DIR counts without a local store too, and for caches that are made: what is pushed has
// the store directory of this machine.
func TestServeStoreDirWithoutStore(t *testing.T) {
	state, vars := filepath.Join(t.TempDir(), "state"), nixVariables(t)
	want := "StoreDir: " + strings.TrimPrefix(vars[0], "NIX_STORE_DIR=") + "\n"
	s := startServer(t, environment(t, vars...), "--state", state, "--store", "off", "--listen", "127.0.0.1:0")
	a := &admin{t, s, state}
	create := a.command("cache", "create", "team")
	create.Env = environment(t, vars...)
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("firn cache create: %v: %s", err, out)
	}
	for _, path := range []string{"/nix-cache-info", "/team/nix-cache-info"} {
		if got := s.get(t, path); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	a.mustRun("cache", "create", "other", "--store-dir", "/gnu/store")
	if got := s.get(t, "/other/nix-cache-info"); !strings.HasPrefix(got, "StoreDir: /gnu/store\n") {
		t.Errorf("with --store-dir it is %q", got)
	}
}

// A start names the caches that there are, and does not say that there is nothing where main alone is empty.
func TestServeOtherCaches(t *testing.T) {
	a := newAdmin(t)
	a.mustRun("cache", "create", "team", "--private")
	a.mustRun("cache", "create", "office")
	s := startServer(t, environment(t), "--state", a.state, "--store", "off", "--listen", "127.0.0.1:0")
	for _, want := range []string{"has nothing in the cache main yet, and can be pushed to, at\n", "and, at /NAME/ there, the other caches that `firn cache list` shows: office, team\n"} {
		if !strings.Contains(s.announced, want) {
			t.Errorf("no %q in\n%s", want, s.announced)
		}
	}
}

// nixVariables make Nix use a store of the test's own, which is not there yet.
func nixVariables(t *testing.T) []string {
	dir := t.TempDir()
	return []string{"NIX_STORE_DIR=" + dir + "/store", "NIX_STATE_DIR=" + dir + "/state", "NIX_LOG_DIR=" + dir + "/log"}
}

// What stands in the way of a start is told in one line that says what to do.
func TestServeErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("not a key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken")
	for _, path := range []string{"nix/store", "nix/var/nix/db"} {
		if err := os.MkdirAll(filepath.Join(broken, path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(broken, "nix/var/nix/db/db.sqlite"), bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	running := startServer(t, environment(t), "--store", "off", "--listen", "127.0.0.1:0", "--listen", "unix:"+socket, "--state", dir, "--compression", "zstd")
	taken := strings.TrimPrefix(running.url, "http://")

	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"port in use", []string{"--store=off", "--listen", taken},
			"firn: listen on " + taken + ": address already in use; stop the server that listens there, or choose another address with --listen\n"},
		{"one port of two in use", []string{"--store=off", "--listen", "127.0.0.1:0", "--listen", taken},
			"firn: listen on " + taken + ": address already in use; "},
		{"socket in use", []string{"--store=off", "--listen", "unix:" + socket},
			"firn: listen on unix:" + socket + ": address already in use; stop the server that listens there, or choose another address with --listen\n"},
		{"socket is a file", []string{"--store=off", "--listen", "unix:" + file},
			"firn: listen on unix:" + file + ": the path exists and is not a socket; remove it, or choose another path with --listen\n"},
		{"socket without a directory", []string{"--store=off", "--listen", "unix:" + dir + "/no/s"},
			"firn: listen on unix:" + dir + "/no/s: open " + dir + "/no: no such file or directory; make the directory of the socket first\n"},
		{"bad key", []string{"--store=off", "--key", file}, "firn: read signing key " + file + ": "},
		{"no key", []string{"--store=off", "--key", dir + "/no"},
			"firn: read signing key: open " + dir + "/no: no such file or directory; make one with `firn key generate NAME SECRET PUBLIC`\n"},
		{"state below a file", []string{"--store=off", "--listen=127.0.0.1:0", "--state", file + "/state"},
			"firn: open depot: mkdir " + file + ": not a directory; choose a state directory that can be written with --state\n"},
		{"state in use", []string{"--store=off", "--listen=127.0.0.1:0", "--state", dir, "--compression=zstd"},
			"firn: open compressed NARs: lock " + dir + "/zstd: it is in use by another process: "},
		{"no store", []string{"--store", dir}, "firn: open store " + dir + "/nix/store: there is no Nix store: "},
		{"broken store", []string{"--store", broken}, "firn: open store " + broken + "/nix/store: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "firn", append([]string{"serve"}, test.args...)...)
			state := filepath.Join(t.TempDir(), "state")
			cmd.Env = environment(t, "FIRN_STATE="+state)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			var exit *exec.ExitError
			if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != exitFailure {
				t.Errorf("%v, want exit code %d", err, exitFailure)
			}
			if got := stderr.String(); !strings.HasPrefix(got, test.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("it says\n%swant one line\n%s", got, test.want)
			}
			if _, err := os.Lstat(state); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a start that failed made a state directory (%v)", err)
			}
		})
	}
	if got := running.get(t, "/health"); got != "ok\n" {
		t.Errorf("health of the server that was in the way is %q", got)
	}
}

// A testServer is a running `firn serve`.
type testServer struct {
	cmd       *exec.Cmd
	announced string // what it printed when it was ready
	url       string // of its first TCP address
	stderr    *logBuffer
	waited    bool
}

// startServer starts `firn serve` and returns when it has announced itself. The server ends with the test.
func startServer(t *testing.T, env []string, args ...string) *testServer {
	t.Helper()
	cmd := exec.Command("firn", append([]string{"serve"}, args...)...)
	cmd.Env = env
	return startCommand(t, cmd)
}

// startCommand is startServer with a command of the caller's.
func startCommand(t *testing.T, cmd *exec.Cmd) *testServer {
	t.Helper()
	s := &testServer{cmd: cmd, stderr: newLogBuffer()}
	s.cmd.Stderr = s.stderr
	stdout, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil { // not fatal: some tests start servers on other goroutines
		t.Error(err)
		return s
	}
	t.Cleanup(func() {
		if !s.waited {
			s.cmd.Process.Kill()
			s.cmd.Wait()
		}
	})
	lines := bufio.NewReader(stdout)
	for !strings.Contains(s.announced, "extra-trusted-public-keys") || !strings.HasSuffix(s.announced, "\n\n") {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Errorf("the server ended: %v\n%s", s.wait(), s.stderr)
			return s
		}
		s.announced += line
	}
	for line := range strings.Lines(s.announced) {
		if url := strings.TrimSpace(line); strings.HasPrefix(url, "http://") {
			s.url = url
			break
		}
	}
	return s
}

// keyName is the name of the announced key.
func (s *testServer) keyName() string {
	_, key, _ := strings.Cut(s.announced, "extra-trusted-public-keys = ")
	name, _, _ := strings.Cut(key, ":")
	return name
}

func (s *testServer) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (s *testServer) wait() error {
	s.waited = true
	return s.cmd.Wait()
}

// A logBuffer keeps what a server logs, and can be waited at.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // holds something when there is more since it was last emptied
}

func newLogBuffer() *logBuffer { return &logBuffer{more: make(chan struct{}, 1)} }

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default:
	}
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// wait waits until the text was logged.
func (b *logBuffer) wait(t *testing.T, text string) {
	t.Helper()
	for !strings.Contains(b.String(), text) {
		select {
		case <-b.more:
		case <-t.Context().Done():
			t.Fatalf("no %q in the log:\n%s", text, b)
		}
	}
}

func (s *testServer) get(t *testing.T, path string) string {
	t.Helper()
	return get(t, http.DefaultClient, s.url+path)
}

// get returns the body of a successful answer.
func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		t.Fatal(fmt.Errorf("GET %s: %s\n%s", url, answer.Status, body))
	}
	return string(body)
}

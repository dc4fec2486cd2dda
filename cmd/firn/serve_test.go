package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"firn/internal/cache/cachetest"
	"firn/internal/keyfile"
	"firn/nix"
)

// bigSize is the size of a file that does not fit in the buffers of a connection, in bytes,
// so that who does not read it keeps an answer in flight.
const bigSize = 64 << 20

func TestServe(t *testing.T) {
	root, paths := makeStore(t)
	socket := filepath.Join(t.TempDir(), "s")
	s := startServer(t, environment(t), "--store", root, "--listen", "127.0.0.1:0", "--listen", "unix:"+socket, "--priority", "7")

	want := regexp.MustCompile(`^firn \S+ serves the store /nix/store below ` + regexp.QuoteMeta(root) + ` at

  http://127\.0\.0\.1:\d+
  unix:` + regexp.QuoteMeta(socket) + `

It had no signing key and made one: \S+/signing-key\.secret

Clients need these two lines in /etc/nix/nix\.conf:

  extra-substituters = http://127\.0\.0\.1:\d+
  extra-trusted-public-keys = \S+-1:[A-Za-z0-9+/]{43}=

$`)
	if !want.MatchString(s.announced) {
		t.Errorf("announced\n%s\nwant\n%s", s.announced, want)
	}
	if got := s.get(t, "/nix-cache-info"); got != "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n" {
		t.Errorf("nix-cache-info is %q", got)
	}
	narinfo := s.get(t, "/"+filepath.Base(paths["small"])[:32]+".narinfo")
	if !strings.Contains(narinfo, "\nSig: "+s.keyName()+":") {
		t.Errorf("no signature of %s in\n%s", s.keyName(), narinfo)
	}
	overSocket := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	if got := get(t, overSocket, "http://firn/health"); got != "ok\n" {
		t.Errorf("health over the socket is %q", got)
	}
	overSocket.CloseIdleConnections()

	s.signal(t, syscall.SIGTERM)
	if err := s.wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, s.stderr)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// The first signal lets an answer end, the second does not.
func TestServeSignals(t *testing.T) {
	root, paths := makeStore(t)
	for _, test := range []struct {
		name   string
		second bool
	}{{"once", false}, {"twice", true}} {
		t.Run(test.name, func(t *testing.T) {
			s := startServer(t, environment(t), "--store", root, "--listen", "127.0.0.1:0")
			answer := s.openNAR(t, paths["big"])
			defer answer.Body.Close()

			s.signal(t, syscall.SIGINT)
			for { // until it takes no more connections
				conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
				if err != nil {
					break
				}
				conn.Close()
			}
			if test.second {
				s.signal(t, syscall.SIGINT)
				var exit *exec.ExitError
				if err := s.wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
					t.Errorf("after a second SIGINT: %v", err)
				}
				return
			}
			wantWhole(t, answer)
			if err := s.wait(); err != nil {
				t.Errorf("after SIGINT: %v\n%s", err, s.stderr)
			}
		})
	}
}

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

// Nix's own variables say where this machine's store is.
func TestServeNixEnvironment(t *testing.T) {
	dir, vars := t.TempDir(), nixVariables(t)
	path := addFile(t, dir, vars)
	s := startServer(t, environment(t, vars...), "--listen", "127.0.0.1:0")
	storeDir := filepath.Dir(path)
	if got := s.get(t, "/nix-cache-info"); !strings.HasPrefix(got, "StoreDir: "+storeDir+"\n") {
		t.Errorf("nix-cache-info is %q, and the store %s", got, storeDir)
	}
	if got := s.get(t, "/"+filepath.Base(path)[:32]+".narinfo"); !strings.HasPrefix(got, "StorePath: "+path+"\n") {
		t.Errorf("the narinfo of %s is\n%s", path, got)
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

// A server that was started before Nix made its store serves that when it is there.
func TestServeWithoutNix(t *testing.T) {
	dir, vars := t.TempDir(), nixVariables(t)
	s := startServer(t, environment(t, vars...), "--listen", "127.0.0.1:0")
	for _, want := range []string{"has nothing to serve yet, and can be pushed to, at\n", "It serves no local store: ", "there is no Nix store",
		"To push to it, make a token, ", "firn token create --state ", " --push main NAME\n", "nix copy --to http://", "it is served as soon as Nix has made it, or name another with --store ROOT"} {
		if !strings.Contains(s.announced, want) {
			t.Errorf("no %q in\n%s", want, s.announced)
		}
	}
	if got := s.get(t, "/nix-cache-info"); !strings.HasPrefix(got, "StoreDir: ") {
		t.Errorf("nix-cache-info is %q", got)
	}
	if got := s.get(t, "/health"); got != "ok\n" {
		t.Errorf("health without a store is %q", got)
	}
	if got := s.get(t, "/"); !strings.Contains(got, "nothing to serve yet") {
		t.Errorf("the front page does not say that there is no store yet:\n%s", got)
	}

	path := addFile(t, dir, vars)
	s.stderr.wait(t, "the store is there now")
	if got := s.get(t, "/"+filepath.Base(path)[:32]+".narinfo"); !strings.HasPrefix(got, "StorePath: "+path+"\n") {
		t.Errorf("the narinfo of %s is\n%s", path, got)
	}
	s.signal(t, syscall.SIGTERM)
	if err := s.wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, s.stderr)
	}
}

// A store that cannot be read keeps no client from pushed paths, and is served as soon as it can be
// read.
func TestServeUnreadableStore(t *testing.T) {
	needNix(t)
	root := t.TempDir()
	db := filepath.Join(root, "nix/var/nix/db")
	// As root may read everything, what keeps the server from the store is a lock, in a journal
	// mode in which that counts.
	add := exec.CommandContext(t.Context(), "nix-store", "--store", root, "--option", "use-sqlite-wal", "false", "--add", "serve_test.go")
	add.Env = environment(t)
	out, err := add.Output()
	if err != nil {
		t.Fatalf("%s: %v", add, err)
	}
	path := strings.TrimSpace(string(out))
	if err := os.Mkdir(db+"/db.sqlite.lock", 0o755); err != nil {
		t.Fatal(err)
	}
	a := newAdmin(t, "--store", root)
	a.server.stderr.wait(t, "the store cannot be served yet")
	for _, want := range []string{"It serves no local store: ", "another process uses it", "it is served as soon as it can be read"} {
		if !strings.Contains(a.server.announced, want) {
			t.Errorf("no %q in\n%s", want, a.server.announced)
		}
	}
	token := a.mustRun("token", "create", "--push", "main", "ci")
	pushed := cachetest.NewPath(t, nix.DefaultStoreDir, "hello", "hello\n")
	a.push("", token, pushed, http.StatusCreated)
	a.want(http.MethodGet, narinfoOf(pushed), "", nil, http.StatusOK, "")
	narinfo := "/" + filepath.Base(path)[:32] + ".narinfo"
	a.want(http.MethodGet, narinfo, "", nil, http.StatusNotFound, "")
	if err := os.Remove(db + "/db.sqlite.lock"); err != nil {
		t.Fatal(err)
	}
	a.server.stderr.wait(t, "the store is there now")
	a.want(http.MethodGet, narinfo, "", nil, http.StatusOK, "StorePath: "+path)
}

// nixVariables make Nix use a store of the test's own, which is not there yet.
func nixVariables(t *testing.T) []string {
	dir := t.TempDir()
	return []string{"NIX_STORE_DIR=" + dir + "/store", "NIX_STATE_DIR=" + dir + "/state", "NIX_LOG_DIR=" + dir + "/log"}
}

// addFile adds a file of dir to the store that vars name, and returns its store path.
func addFile(t *testing.T, dir string, vars []string) string {
	t.Helper()
	needNix(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("snow"), 0o600); err != nil {
		t.Fatal(err)
	}
	add := exec.CommandContext(t.Context(), "nix-store", "--add", file)
	add.Env = environment(t, vars...)
	out, err := add.Output()
	if err != nil {
		t.Fatalf("%s: %v", add, err)
	}
	return strings.TrimSpace(string(out))
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

// makeStore makes a store below a root of its own, with a small and a big path.
func makeStore(t *testing.T) (root string, paths map[string]string) {
	t.Helper()
	needNix(t)
	root, dir, paths := t.TempDir(), t.TempDir(), map[string]string{}
	for name, size := range map[string]int64{"small": 5, "big": bigSize} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		add := exec.CommandContext(t.Context(), "nix-store", "--store", root, "--add", file)
		add.Env = environment(t)
		out, err := add.Output()
		if err != nil {
			t.Fatalf("%s: %v", add, err)
		}
		paths[name] = strings.TrimSpace(string(out))
	}
	return root, paths
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

// openNAR asks for the NAR of a store path, whose body the caller closes.
func (s *testServer) openNAR(t *testing.T, storePath string) *http.Response {
	t.Helper()
	_, nar, _ := strings.Cut(s.get(t, "/"+filepath.Base(storePath)[:32]+".narinfo"), "\nURL: ")
	nar, _, _ = strings.Cut(nar, "\n")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/"+nar, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// wantWhole reads all of an answer.
func wantWhole(t *testing.T, answer *http.Response) {
	t.Helper()
	if n, err := io.Copy(io.Discard, answer.Body); err != nil || n != answer.ContentLength {
		t.Errorf("read %d of %d bytes: %v", n, answer.ContentLength, err)
	}
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

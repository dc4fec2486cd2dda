//go:build programs

package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"firn/internal/cache/cachetest"
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

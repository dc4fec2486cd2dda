// Package e2e runs real Nix clients of several versions against firn, as people run both:
// the built program, real servers and stores, and nothing of firn's own on the client's side.
//
// Each Nix runs on a [machine]: a mount namespace with a /nix, a home and a configuration of its own.
// So no test sees what another one did, and nothing is left behind. That needs root.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"firn/internal/testing/debstore"
	"firn/nix"
)

// TestMain sets these for all tests.
var (
	// firnPath is the program under test.
	firnPath string
	// nixes are the systems with Nix: this one, then the others, the oldest first.
	nixes []nixSystem
)

// TestMain builds firn, and finds the systems with Nix or makes them.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "firn")
		if err == nil {
			defer os.RemoveAll(dir)
			firnPath, err = buildFirn(dir)
		}
		if err == nil {
			nixes, err = findNixes()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// buildFirn builds the program in dir and returns its path.
func buildFirn(dir string) (string, error) {
	if err := os.Chmod(dir, 0o755); err != nil { // it is also run by others than root
		return "", err
	}
	path := filepath.Join(dir, "firn")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "./cmd/firn") // what the packages are built of is compiled once
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs in other systems too
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build firn: %w\n%s", err, out)
	}
	return path, nil
}

// debianStore returns the store of Debian packages, made on first use and kept.
var debianStore = sync.OnceValues(func() (*debstore.Store, error) {
	dir, err := debstore.DefaultDir()
	if err != nil {
		return nil, err
	}
	return debstore.Make(context.Background(), dir, debstore.Options{})
})

func debian(t testing.TB) *debstore.Store {
	t.Helper()
	store, err := debianStore()
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// debianMachine is a machine that has the store of Debian packages for its own. Tests only read it.
func debianMachine(t testing.TB) *machine {
	t.Helper()
	return newMachineWith(t, systemNix(), tempDir(t), debian(t).Root)
}

// smallClosure is a package with a small closure, of 15 MB in 12 paths, for what is done in many ways. It has the C library in it, of several frames and chunks.
const smallClosure = "libpam-modules-bin"

// debianPath returns the store path of a package.
func debianPath(t testing.TB, name string) nix.StorePath {
	t.Helper()
	for _, p := range debian(t).Packages {
		version, ok := strings.CutPrefix(p.Name(), name+"-")
		if ok && '0' <= version[0] && version[0] <= '9' {
			return p
		}
	}
	t.Fatalf("package %s is not installed", name)
	return nix.StorePath{}
}

// A server is a running firn.
type server struct {
	t         testing.TB
	url       string   // of the first listener
	urls      []string // of all that have one
	publicKey string
	announced string // what it printed at the start
	client    *http.Client
	errors    *lockedBuffer // what it wrote to standard error
	pid       int
}

// lockedBuffer is a buffer that is written and read at the same time.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// startFirn runs `firn serve` on m, on a free port of 127.0.0.1 where args name no address, and returns when it answers.
// Where they name no key either, it makes one.
// At the end of the test it must end well when it is asked to.
func startFirn(m *machine, args ...string) *server {
	m.t.Helper()
	return startServer(m, append([]string{firnPath, "serve", "--state", filepath.Join(m.dir, "state")}, args...)...)
}

// startServer is startFirn with all of the command line.
func startServer(m *machine, args ...string) *server {
	m.t.Helper()
	if !strings.Contains(strings.Join(args, " "), "--listen") {
		args = append(args, "--listen", "127.0.0.1:0")
	}
	return awaitServer(m.t, func(ctx context.Context) *exec.Cmd { return m.command(ctx, args...) })
}

// awaitServer starts a command that becomes firn, and returns when that answers.
func awaitServer(t testing.TB, command func(context.Context) *exec.Cmd) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := command(ctx)
	s := &server{t: t, errors: &lockedBuffer{}, client: &http.Client{Transport: &http.Transport{DisableCompression: true}}}
	cmd.Stderr = s.errors
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.pid = cmd.Process.Pid
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		cancel()
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 0 {
			t.Errorf("firn did not end well: %v (%v)\n%s", err, cmd.ProcessState, s.errors)
		}
		if strings.Contains(s.errors.String(), "panic") {
			t.Errorf("firn panicked:\n%s", s.errors)
		}
	})
	// What it serves, then a URL a line, then the lines for clients.
	announced := bufio.NewScanner(stdout)
	for s.publicKey == "" && announced.Scan() {
		line := strings.TrimSpace(announced.Text())
		s.announced += line + "\n"
		if strings.HasPrefix(line, "http://") {
			s.urls = append(s.urls, line)
		}
		s.publicKey, _ = strings.CutPrefix(line, "extra-trusted-public-keys = ")
		if s.publicKey == line {
			s.publicKey = ""
		}
	}
	if s.publicKey == "" {
		t.Fatalf("firn did not start: %v\n%s", announced.Err(), s.errors)
	}
	go io.Copy(io.Discard, stdout)
	if len(s.urls) > 0 {
		s.url = s.urls[0]
	}
	return s
}

// serveDebian starts firn with the store of Debian packages, which it serves as `nix --store ROOT` has it.
func serveDebian(t testing.TB) *server {
	t.Helper()
	return startFirn(newMachine(t, systemNix()), "--store", debian(t).Root)
}

// trust returns the options with which Nix takes s for its only cache.
func (s *server) trust() []string {
	return []string{"--option", "substituters", s.url, "--option", "trusted-public-keys", s.publicKey}
}

// get asks for a URL relative to the server's, with pairs of header names and values. The caller closes the body.
func (s *server) get(path string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return s.client.Do(req)
}

// fetch returns the body of a URL that must be there.
func (s *server) fetch(path string) ([]byte, error) {
	res, err := s.get(path)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", path, res.Status)
	}
	return io.ReadAll(res.Body)
}

// text returns the body of a URL that must be there, or ends the test.
func (s *server) text(path string) string {
	s.t.Helper()
	text, err := s.fetch(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// narInfo fetches and parses the narinfo of a path.
func (s *server) narInfo(p nix.StorePath) (*nix.NARInfo, error) {
	text, err := s.fetch(p.Hash().String() + ".narinfo")
	if err != nil {
		return nil, err
	}
	info, err := nix.ParseNARInfoStrict(p.Dir(), text)
	if err == nil && info.Path != p {
		err = fmt.Errorf("asked for %s, got the narinfo of %s", p, info.Path)
	}
	return info, err
}

// fetchNAR fetches the NAR of info into w and checks that it is what info says.
func (s *server) fetchNAR(info *nix.NARInfo, w io.Writer) error {
	res, err := s.get(info.URL)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.ContentLength != info.NARSize {
		return fmt.Errorf("GET %s: %s, %d bytes announced, want %d", info.URL, res.Status, res.ContentLength, info.NARSize)
	}
	return checkNAR(info, io.TeeReader(res.Body, w))
}

// checkNAR reads a NAR and checks that it is what info says.
func checkNAR(info *nix.NARInfo, r io.Reader) error {
	hash := sha256.New()
	n, err := io.Copy(hash, r)
	if err != nil {
		return fmt.Errorf("read %s: %w", info.URL, err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); n != info.NARSize || got != info.NARHash.Base16() {
		return fmt.Errorf("read %s: %d bytes of SHA-256 %s, want %d of %s", info.URL, n, got, info.NARSize, info.NARHash.Base16())
	}
	return nil
}

// metric returns the sum of the samples of a metric that have the given label, written name="value"; "" takes all.
func (s *server) metric(name, label string) float64 {
	s.t.Helper()
	sum := 0.0
	for line := range strings.Lines(s.text("metrics")) {
		sample, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if base, _, _ := strings.Cut(sample, "{"); base != name || !strings.Contains(sample, label) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			s.t.Fatalf("metric %s: %v", sample, err)
		}
		sum += v
	}
	return sum
}

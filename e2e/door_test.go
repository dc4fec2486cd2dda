package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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

	"firn/nix"
)

// writeNoise writes bytes that do not compress.
func writeNoise(w io.Writer, size int64) error {
	_, err := io.CopyN(w, rand.NewChaCha8([32]byte{}), size)
	return err
}

// A client that goes away in the middle of a NAR costs the server nothing, and is counted.
func TestDisconnect(t *testing.T) {
	t.Parallel()
	m := newMachine(t, systemNix())
	p := add(m, "file", 64<<20)
	s := startFirn(m)
	info, err := s.narInfo(p)
	if err != nil {
		t.Fatal(err)
	}
	const clients = 20
	for range clients {
		reader := readSlowly(t, s, info)
		if _, err := io.CopyN(io.Discard, reader.res.Body, 100<<10); err != nil {
			t.Fatal(err)
		}
		reader.conn.Close()
	}
	eventually(t, "the aborted answers are counted, and over", func() bool {
		return s.metric("firn_http_aborts_total", `by="client"`) == clients && s.metric("firn_http_requests_in_flight", "") <= 1
	})
	if err := s.fetchNAR(info, io.Discard); err != nil {
		t.Error(err)
	}
}

// 200 clients at once, and real ones among them.
func TestManyClients(t *testing.T) {
	t.Parallel()
	const (
		clients   = 200
		narsEach  = 5
		maxNAR    = 4 << 20
		narsTotal = clients * narsEach
	)
	s := serveDebian(t)
	var infos []*nix.NARInfo
	for _, p := range debian(t).Packages {
		info, err := s.narInfo(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.NARSize <= maxNAR {
			infos = append(infos, info)
		}
	}
	perl := debianPath(t, "perl").String()
	var machines []*machine
	for _, n := range nixes {
		machines = append(machines, newMachine(t, n))
	}

	var wg sync.WaitGroup
	for _, m := range machines {
		wg.Go(func() {
			if _, err := m.try(append([]string{"nix-store", "--realise", perl}, s.trust()...)...); err != nil {
				t.Errorf("Nix %s: %v", m.nix.version, err)
			}
		})
	}
	for client := range clients {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(4, uint64(client)))
			for range narsEach {
				info := infos[random.IntN(len(infos))]
				if _, err := s.narInfo(info.Path); err != nil {
					t.Error(err)
				}
				if err := s.fetchNAR(info, io.Discard); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := s.metric("firn_http_requests_total", `route="nar",status="2xx"`); got < narsTotal {
		t.Errorf("%v NARs were counted, want %d at least", got, narsTotal)
	}
	for _, failure := range []string{`status="5xx"`, `status="none"`} {
		if got := s.metric("firn_http_requests_total", failure); got != 0 {
			t.Errorf("%v answers with %s", got, failure)
		}
	}
}

// Every way to listen, also two at once.
func TestListeners(t *testing.T) {
	t.Parallel()
	bash := debianPath(t, "bash")
	socket := filepath.Join(tempDir(t), "socket")
	s := startFirn(debianMachine(t), "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--listen", "unix:"+socket)
	if len(s.urls) != 2 {
		t.Fatalf("it says that it listens at %q", s.urls)
	}
	for _, url := range s.urls {
		m := newMachine(t, newestNix())
		m.run("nix", "store", "verify", "--store", url, bash.String(), "--option", "trusted-public-keys", s.publicKey)
	}
	wantNARInfo(t, s, bash, "http://unix", func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	})

	// One address for both families.
	s = startFirn(debianMachine(t), "--listen", "[::]:0")
	port := regexp.MustCompile(`:(\d+)$`).FindStringSubmatch(s.url)
	if port == nil {
		t.Fatalf("it says that it listens at %q", s.urls)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		address := net.JoinHostPort(host, port[1])
		wantNARInfo(t, s, bash, "http://"+address, func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		})
	}
}

// wantNARInfo checks that a path's narinfo and NAR can be had over connections that dial makes.
func wantNARInfo(t testing.TB, s *server, p nix.StorePath, url string, dial func(ctx context.Context) (net.Conn, error)) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	defer transport.CloseIdleConnections()
	there := *s
	there.url, there.client = url, &http.Client{Transport: transport}
	info, err := there.narInfo(p)
	if err == nil {
		err = there.fetchNAR(info, io.Discard)
	}
	if err != nil {
		t.Errorf("at %s: %v", url, err)
	}
}

// fenced returns the code blocks of a language in a page of the repository.
func fenced(t testing.TB, page, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../" + page)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllSubmatch(text, -1) {
		blocks = append(blocks, string(m[1]))
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no block marked %s", page, language)
	}
	return blocks
}

// The handbook's configuration for nginx, with a real nginx, at its root and below a path.
func TestBehindNginx(t *testing.T) {
	t.Parallel()
	location := regexp.MustCompile(`(?s)location / \{.*?\n    \}`).FindString(fenced(t, proxyPage, "nginx")[0])
	if location == "" {
		t.Fatal("the handbook has no location for nginx")
	}
	dir := tempDir(t)
	socket := filepath.Join(dir, "socket")
	s := startFirn(debianMachine(t), "--listen", "unix:"+socket)
	location = strings.ReplaceAll(location, "/run/firn/firn.sock", socket)
	below := strings.Replace(strings.Replace(location, "location /", "location /some/where/", 1), socket+";", socket+":/;", 1)
	proxy := startNginx(t, dir, location+"\n"+below)

	root := debianPath(t, "bash").String()
	want := closure(t, root)
	for _, path := range []string{"", "/some/where"} {
		there := *s
		there.url = proxy + path
		if page := there.text(""); !strings.Contains(page, proxy) || !strings.Contains(page, s.publicKey) {
			t.Errorf("the front page at %s does not have the URL and the key", there.url)
		}
		info, err := there.narInfo(debianPath(t, "bash"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := there.get(info.URL, "Range", "bytes=10-19")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusPartialContent || res.ContentLength != 10 || res.Header.Get("Etag") == "" {
			t.Errorf("a range through nginx: %s, %v", res.Status, res.Header)
		}
	}
	eachLaterNix(t, func(t *testing.T, n nixSystem) {
		there := *s
		there.url = proxy + "/some/where"
		m := newMachine(t, n)
		m.run(append([]string{"nix-store", "--realise", root}, there.trust()...)...)
		wantStore(m, &there, want)
	})
}

// startNginx runs nginx with the given locations and returns its URL.
func startNginx(t testing.TB, dir, locations string) string {
	t.Helper()
	// The listener is passed on, as systemd would and as nginx does itself when it is replaced, so no
	// other process can take the port in between.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	config := fmt.Sprintf(`daemon off;
pid %[1]s/nginx.pid;
error_log stderr;
user root;
events {}
http {
    access_log off;
    client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
    server {
        listen %[2]s;
        %[3]s
    }
}
`, dir, listener.Addr(), locations)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "nginx", "-e", "stderr", "-c", path)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin", "NGINX=3;"} // file descriptor 3 is the listener
	cmd.ExtraFiles = []*os.File{file}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killDelay
	stderr := &lockedBuffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var exit *exec.ExitError
		if err := cmd.Wait(); errors.As(err, &exit) {
			t.Errorf("nginx: %v\n%s", err, stderr)
		}
	})
	return "http://" + listener.Addr().String()
}

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"firn/nix"
)

// A slowReader has asked for a NAR, and takes only as much of it as it is told to.
type slowReader struct {
	info *nix.NARInfo
	conn *net.TCPConn
	res  *http.Response
}

// readSlowly asks for the NAR of info on a connection of its own and reads the header of the answer.
func readSlowly(t testing.TB, s *server, info *nix.NARInfo) *slowReader {
	t.Helper()
	conn, err := net.Dial("tcp", s.url[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &slowReader{info: info, conn: conn.(*net.TCPConn)}
	// The sockets buffer far less than the NAR: the server is still sending while the client waits.
	if err := r.conn.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodGet, s.url+"/"+info.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	if r.res, err = http.ReadResponse(bufio.NewReader(conn), req); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.res.Body.Close() })
	if r.res.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", info.URL, r.res.Status)
	}
	return r
}

// add adds a file of noise to the store of m.
func add(m *machine, name string, size int64) nix.StorePath {
	m.t.Helper()
	file := filepath.Join(m.dir, name)
	out, err := os.Create(file)
	if err != nil {
		m.t.Fatal(err)
	}
	defer out.Close()
	if err := writeNoise(out, size); err != nil {
		m.t.Fatal(err)
	}
	p, err := nix.DefaultStoreDir.ParsePath(m.run("nix-store", "--add", file))
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

// The garbage collector leaves a path that is being sent, whichever user the server runs as. It
// removes other paths, and this one after it was sent.
func TestCollectWhileSending(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(m *machine) *server{
		// Root writes its own file of temporary roots.
		"as root": func(m *machine) *server { return startFirn(m) },
		// Anybody else asks the daemon.
		"as nobody": func(m *machine) *server {
			startDaemon(m)
			state := filepath.Join(m.dir, "state")
			const nobody = 65534
			if err := os.Mkdir(state, 0o700); err != nil {
				m.t.Fatal(err)
			}
			if err := os.Chown(state, nobody, nobody); err != nil {
				m.t.Fatal(err)
			}
			id := fmt.Sprint(nobody)
			return startServer(m, "setpriv", "--reuid", id, "--regid", id, "--clear-groups",
				firnPath, "serve", "--state", state, "--listen", "127.0.0.1:0")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachLaterNix(t, func(t *testing.T, n nixSystem) { collectWhileSending(newMachine(t, n), start) })
		})
	}
}

func collectWhileSending(m *machine, start func(*machine) *server) {
	t := m.t
	sent, other := add(m, "sent", 64<<20), add(m, "other", 1<<10)
	s := start(m)
	info, err := s.narInfo(sent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.narInfo(other); err != nil {
		t.Fatal(err)
	}
	reader := readSlowly(t, s, info)

	m.run("nix-store", "--gc")
	if _, err := os.Stat(m.path(sent.String())); err != nil {
		t.Errorf("%s was collected while it was sent: %v", sent, err)
	}
	wantGone(m, s, other)
	if err := checkNAR(info, reader.res.Body); err != nil {
		t.Error(err)
	}

	// The server learns a moment after the client that all was sent.
	eventually(t, "the sent path is collected", func() bool {
		m.run("nix-store", "--gc")
		_, err := os.Stat(m.path(sent.String()))
		return os.IsNotExist(err)
	})
	wantGone(m, s, sent)
}

// wantGone checks that a path is neither in the store nor served.
func wantGone(m *machine, s *server, p nix.StorePath) {
	m.t.Helper()
	if _, err := os.Stat(m.path(p.String())); !os.IsNotExist(err) {
		m.t.Errorf("%s was not collected: %v", p, err)
	}
	res, err := s.get(p.Hash().String() + ".narinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		m.t.Errorf("the narinfo of %s, which was collected, is answered with %s", p, res.Status)
	}
}

// startDaemon runs Nix's daemon on m until the end of the test.
func startDaemon(m *machine) {
	t := m.t
	t.Helper()
	cmd := m.command(t.Context(), "nix-daemon")
	stderr := &lockedBuffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Wait() }) // the context has ended, and killed it
	eventually(t, "the daemon answers", func() bool {
		conn, err := net.Dial("unix", m.path("/nix/var/nix/daemon-socket/socket"))
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

// eventually waits for what another process is about to do.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	const patience = time.Minute
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %v: %s", patience, what)
		}
	}
}

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// withHosts is a command line that finds the names at an address, as with lines in /etc/hosts of this one command.
func withHosts(m *machine, address string, names []string, args ...string) []string {
	m.t.Helper()
	hosts := m.write("hosts", "127.0.0.1 localhost\n"+address+" "+strings.Join(names, " ")+"\n")
	return append([]string{"sh", "-c", `mount --bind "$1" /etc/hosts; shift; exec "$@"`, "sh", hosts}, args...)
}

// freePort returns a port of 127.0.0.1 that is free, each once. It is below those that the kernel
// gives out by itself, so that no other server or connection gets it before it is used.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(20_000 + rand.IntN(12_000))
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// givenPorts are the ports that freePort has returned.
var givenPorts sync.Map

// pebbleProgram builds Let's Encrypt's ACME server for tests, once.
var pebbleProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(firnPath), "pebble")
	build := exec.Command("go", "build", "-o", path, "github.com/letsencrypt/pebble/v2/cmd/pebble")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build pebble: %w\n%s", err, out)
	}
	return path, nil
})

// A pebble is an ACME authority on a machine.
type pebble struct {
	machine   *machine
	names     []string // that it finds at 127.0.0.1
	directory string   // URL
	ca        string   // file of the certificate that its own server is known by
	port      string
	http, tls string // ports at which it looks for servers that want certificates
	manage    string // port
	roots     string // file of the certificate that its certificates are known by
	stop      func()
}

// newPebble starts an authority. It ends with the test, or with stop; start starts another one in its place, which knows nothing of it.
func newPebble(t testing.TB, names ...string) *pebble {
	t.Helper()
	p := &pebble{machine: newMachine(t, systemNix()), names: names}
	p.port, p.manage, p.http, p.tls = freePort(t), freePort(t), freePort(t), freePort(t)
	p.directory = "https://localhost:" + p.port + "/dir"
	p.ca = selfSigned(p.machine, "pebble", "localhost")
	p.start()
	return p
}

func (p *pebble) start() {
	t := p.machine.t
	t.Helper()
	program, err := pebbleProgram()
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": "127.0.0.1:" + p.port, "managementListenAddress": "127.0.0.1:" + p.manage,
		"certificate": p.ca, "privateKey": strings.TrimSuffix(p.ca, ".crt") + ".key",
		"httpPort": atoi(t, p.http), "tlsPort": atoi(t, p.tls),
		"profiles": map[string]any{"default": map[string]any{"description": "90 days", "validityPeriod": 90 * 24 * 60 * 60}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := p.machine.command(ctx, withHosts(p.machine, "127.0.0.1", p.names, "env", "PEBBLE_VA_NOSLEEP=1",
		program, "-config", p.machine.write("pebble.json", string(config)))...)
	logs := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stop = sync.OnceFunc(func() {
		cancel()
		_ = cmd.Wait() // killed, as it does not end otherwise
		if t.Failed() {
			t.Logf("pebble said\n%s", logs)
		}
	})
	t.Cleanup(p.stop)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool(t, p.ca), ServerName: "localhost"}}}
	defer client.CloseIdleConnections()
	var root []byte
	eventually(t, "pebble answers", func() bool {
		res, err := client.Get("https://127.0.0.1:" + p.manage + "/roots/0")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		root, err = io.ReadAll(res.Body)
		return err == nil && res.StatusCode == http.StatusOK
	})
	p.roots = p.machine.write("roots.pem", string(root))
}

func atoi(t testing.TB, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// pool reads the certificates in a file.
func pool(t testing.TB, file string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(text) {
		t.Fatalf("there is no certificate in %s", file)
	}
	return p
}

// selfSigned makes NAME.crt, a certificate for the hosts that signs itself, with its key in NAME.key, and returns the path of the first.
func selfSigned(m *machine, name string, hosts ...string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	out, err := exec.CommandContext(m.t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
		"-subj", "/CN="+name, "-addext", "subjectAltName=DNS:"+strings.Join(hosts, ",DNS:"), "-keyout", path+".key", "-out", path+".crt").CombinedOutput()
	if err != nil {
		m.t.Fatalf("openssl req: %v\n%s", err, out)
	}
	return path + ".crt"
}

// shown returns the certificate that a server shows of a name, nil if it shows none.
func shown(t testing.TB, address, name string, roots *x509.CertPool) *x509.Certificate {
	t.Helper()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{ServerName: name, RootCAs: roots}}
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		return nil
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
}

// tlsFor returns how to reach the server localhost that has the certificate in a file.
func tlsFor(t testing.TB, cert string) *tls.Config {
	t.Helper()
	return &tls.Config{RootCAs: pool(t, cert), ServerName: "localhost"}
}

package e2e

import (
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// startCaddy runs Debian's Caddy with the site of the handbook in front of a socket, and returns its port.
func startCaddy(m *machine, socket, cert string) (port string) {
	t := m.t
	t.Helper()
	port = freePort(t)
	config := replaced(t, fenced(t, proxyPage, "caddy")[0], map[string]string{
		// Its own certificate, in place of one from an authority.
		"cache.example.org {\n":    "https://localhost:" + port + " {\n    tls " + cert + " " + strings.TrimSuffix(cert, ".crt") + ".key\n",
		"unix//run/firn/firn.sock": "unix/" + socket,
	})
	file := m.write("Caddyfile", "{\n    admin off\n    auto_https disable_redirects\n}\n"+config)
	startProxy(m, port, "env", "XDG_DATA_HOME="+m.dir, "XDG_CONFIG_HOME="+m.dir, "caddy", "run", "--config", file, "--adapter", "caddyfile")
	return port
}

// Behind Caddy, as the handbook has it, every Nix but 2.3 pushes and pulls, and firn doctor finds nothing wrong.
func TestBehindCaddy(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	cert := selfSigned(host, "server", "localhost")
	socket := filepath.Join(host.dir, "firn.sock")
	s := startFirn(host, "--store", "off", "--listen", "unix:"+socket, "--socket-mode", "600")
	url := "https://localhost:" + startCaddy(host, socket, cert)
	token := newToken(host, "ci", "--push", "main")
	var last atomic.Value                 // a path that was pushed
	t.Run("clients", func(t *testing.T) { // which ends when all of them have
		eachLaterNix(t, func(t *testing.T, n nixSystem) {
			last.Store(wantThrough(t, n, s, url, "127.0.0.1", cert, token))
		})
	})
	out := host.run("env", "NIX_SSL_CERT_FILE="+cert, "NIX_CONF_DIR="+host.dir, firnPath, "doctor", url, "--path", last.Load().(string), "--trusted-public-keys", s.publicKey)
	if strings.Contains(out, "\nwarn ") || strings.Contains(out, "\nfail ") || !strings.Contains(out, "HTTP/2") {
		t.Errorf("firn doctor finds\n%s", out)
	}

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsFor(t, cert)}}
	defer client.CloseIdleConnections()
	res, err := client.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("/metrics is answered %s", res.Status)
	}
}

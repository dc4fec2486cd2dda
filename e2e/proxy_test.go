package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"firn/nix"
)

// Two caches under two names share every listener, over IPv4 and IPv6, with and without TLS; other names are refused.
func TestTwoNames(t *testing.T) {
	t.Parallel()
	const one, two = "one.firn.example", "two.firn.example"
	host := newMachine(t, systemNix())
	admin(host, "cache create", "two", "--host", two)
	admin(host, "cache set", "main", "--host", one)
	cert := selfSigned(host, "server", one, two)
	port, tlsPort := freePort(t), freePort(t)
	s := startFirn(host, "--store", "off", "--unknown-host", "refuse", "--tls-cert", cert, "--tls-key", strings.TrimSuffix(cert, ".crt")+".key",
		"--listen", "127.0.0.1:"+port, "--listen", "[::1]:"+port, "--https", "127.0.0.1:"+tlsPort, "--https", "[::1]:"+tlsPort)
	token := newToken(host, "ci", "--push", "*")
	keys := s.publicKey + " " + publicKey(host, "two")
	eachLaterNix(t, func(t *testing.T, n nixSystem) {
		source := newMachine(t, n)
		netrc := source.write("netrc", "machine "+one+" login a password "+token+"\nmachine "+two+" login a password "+token+"\n")
		for i, name := range []string{one, two} {
			address := []string{"127.0.0.1", "::1"}[i]
			for _, url := range []string{"http://" + name + ":" + port, "https://" + name + ":" + tlsPort} {
				path := add(source, fmt.Sprint("file-", i, "-", strings.Trim(url[:5], ":")), 1000).String()
				on := func(m *machine, args ...string) (string, error) {
					return m.try(withHosts(m, address, []string{one, two}, append([]string{"env", "NIX_SSL_CERT_FILE=" + cert}, args...)...)...)
				}
				if _, err := on(source, "nix", "copy", "--to", url+"?compression=none", path, "--option", "netrc-file", netrc); err != nil {
					t.Fatal(err)
				}
				reader := newMachine(t, n)
				if _, err := on(reader, "nix", "copy", "--from", url, path, "--option", "trusted-public-keys", keys); err != nil {
					t.Fatal(err)
				}
				sameTree(t, source.path(path), reader.path(path))
				other := strings.Replace(url, name, []string{two, one}[i], 1)
				if _, err := on(newMachine(t, n), "nix", "copy", "--from", other, path, "--option", "trusted-public-keys", keys); err == nil {
					t.Errorf("%s is in both caches", path)
				}
			}
		}
	})
	for _, address := range []string{"127.0.0.1", "::1"} {
		res, err := http.Get("http://" + net.JoinHostPort(address, port) + "/nix-cache-info")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("another name at %s: %s", address, res.Status)
		}
	}
}

// publicKey returns the key that signs a cache.
func publicKey(m *machine, name string) string {
	m.t.Helper()
	key := regexp.MustCompile(`\S+:[A-Za-z0-9+/]{43}=`).FindString(admin(m, "cache show", name))
	if key == "" {
		m.t.Fatalf("firn cache show %s shows no key", name)
	}
	return key
}

// The newest Nix shows a certificate, which is as good as a token.
func TestClientCertificate(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	server := selfSigned(host, "server", "localhost")
	builder := selfSigned(host, "builder", "builder")
	port := freePort(t)
	startFirn(host, "--store", "off", "--client-certs", "--listen", "127.0.0.1:0",
		"--https", "127.0.0.1:"+port, "--tls-cert", server, "--tls-key", strings.TrimSuffix(server, ".crt")+".key")
	admin(host, "token create", "--push", "main", "--certificate", builder, "builder")
	source := newMachine(t, newestNix())
	path := add(source, "file", 1000).String()
	url := "https://localhost:" + port + "?compression=none"
	env := withHosts(source, "127.0.0.1", []string{"localhost"}, "env", "NIX_SSL_CERT_FILE="+server)
	if out, err := source.try(append(env, "nix", "copy", "--to", url, path)...); err == nil {
		t.Errorf("pushed without a certificate: %s", out)
	}
	source.run(append(env, "nix", "copy", "--to",
		url+"&tls-certificate="+builder+"&tls-private-key="+strings.TrimSuffix(builder, ".crt")+".key", path)...)
}

// proxyPage is the page of the handbook on proxies.
const proxyPage = "docs/behind-a-proxy.md"

// replaced returns a configuration of the handbook with some of its text replaced, each once.
func replaced(t testing.TB, config string, texts map[string]string) string {
	t.Helper()
	for old, text := range texts {
		if strings.Count(config, old) != 1 {
			t.Fatalf("the configuration of the handbook has no %q", old)
		}
		config = strings.Replace(config, old, text, 1)
	}
	return config
}

// startProxy runs a web server until the test ends, and returns when it listens at its port.
func startProxy(m *machine, port string, command ...string) {
	t := m.t
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := m.command(ctx, command...)
	logs := &lockedBuffer{}
	cmd.Stderr = logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the proxy:\n%s", logs)
		}
	})
	eventually(t, "the proxy listens", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// wantThrough has a Nix push a path through a proxy that answers as localhost at an address, and another machine get it. It returns the path.
func wantThrough(t *testing.T, n nixSystem, s *server, url, address, cert, token string) string {
	t.Helper()
	source, reader := newMachine(t, n), newMachine(t, n)
	path := add(source, "file-"+n.version+strings.Trim(address[:1], ":"), 3_000_000).String()
	on := func(m *machine, args ...string) {
		t.Helper()
		m.run(withHosts(m, address, []string{"localhost"}, append([]string{"env", "NIX_SSL_CERT_FILE=" + cert}, args...)...)...)
	}
	netrc := source.write("netrc", "machine localhost login a password "+token+"\n")
	on(source, "nix", "copy", "--to", url+"?compression="+n.compressions()[2], path, "--option", "netrc-file", netrc)
	on(reader, "nix", "copy", "--from", url, path, "--option", "trusted-public-keys", s.publicKey)
	sameTree(t, source.path(path), reader.path(path))
	return path
}

// startTLSNginx runs Debian's nginx with the server of the handbook in front of a socket, and returns its port.
func startTLSNginx(m *machine, socket, cert string) (port string) {
	t := m.t
	t.Helper()
	port = freePort(t)
	config := replaced(t, fenced(t, proxyPage, "nginx")[0], map[string]string{
		"    listen 443 ssl;\n":                       "    listen 127.0.0.1:" + port + " ssl;\n",
		"    listen [::]:443 ssl;\n":                  "    listen [::1]:" + port + " ssl;\n",
		"server_name cache.example.org;":              "server_name localhost;",
		" /etc/ssl/cache.example.org.pem;":            " " + cert + ";",
		" /etc/ssl/cache.example.org.key;":            " " + strings.TrimSuffix(cert, ".crt") + ".key;",
		"proxy_pass http://unix:/run/firn/firn.sock;": "proxy_pass http://unix:" + socket + ";",
	})
	dir := m.dir
	temp := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += kind + "_temp_path " + filepath.Join(dir, "tmp") + ";\n"
	}
	file := m.write("nginx.conf", "daemon off;\nuser root;\npid "+dir+"/nginx.pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"+temp+config+"}\n")
	startProxy(m, port, "/usr/sbin/nginx", "-p", dir, "-c", file)
	return port
}

// Behind nginx, as the handbook has it, every Nix but 2.3 pushes and pulls, over IPv4 and IPv6, and uploads may be as large as they are.
func TestPushBehindNginx(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	cert := selfSigned(host, "server", "localhost")
	socket := filepath.Join(host.dir, "firn.sock")
	s := startFirn(host, "--store", "off", "--listen", "unix:"+socket, "--socket-mode", "600")
	port := startTLSNginx(host, socket, cert)
	token := newToken(host, "ci", "--push", "main")
	url := "https://localhost:" + port
	eachLaterNix(t, func(t *testing.T, n nixSystem) {
		for _, address := range []string{"127.0.0.1", "::1"} {
			wantThrough(t, n, s, url, address, cert, token)
		}
	})

	t.Run("2 GiB", func(t *testing.T) {
		const size = 2 << 30
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsFor(t, cert)}}
		defer client.CloseIdleConnections()
		put := func(name string, body io.Reader, length int64) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://127.0.0.1:"+port+"/"+name, body)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = length
			req.SetBasicAuth("a", token)
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			text, _ := io.ReadAll(res.Body)
			if res.StatusCode != http.StatusCreated {
				t.Fatalf("PUT %s: %s: %s", name, res.Status, text)
			}
		}
		hash := sha256.New()
		length, err := io.Copy(hash, zerosNAR(size))
		if err != nil {
			t.Fatal(err)
		}
		sum := nix.SHA256Sum([32]byte(hash.Sum(nil)))
		name := "nar/" + sum.Nix32() + ".nar"
		put(name, zerosNAR(size), length)
		path := "/nix/store/" + strings.Repeat("0", 32) + "-zeros"
		info := fmt.Sprintf("StorePath: %s\nURL: %s\nCompression: none\nFileHash: %s\nFileSize: %d\nNarHash: %s\nNarSize: %d\nReferences: \n",
			path, name, sum, length, sum, length)
		put(strings.Repeat("0", 32)+".narinfo", strings.NewReader(info), int64(len(info)))
	})
}

// zerosNAR returns the NAR of a file of zeros, the size of which is a multiple of 8.
func zerosNAR(size int64) io.Reader {
	word := func(texts ...string) string {
		var b strings.Builder
		for _, text := range texts {
			b.Write([]byte{byte(len(text)), 0, 0, 0, 0, 0, 0, 0})
			b.WriteString(text)
			b.WriteString(strings.Repeat("\x00", -len(text)&7))
		}
		return b.String()
	}
	length := make([]byte, 8)
	for i := range length {
		length[i] = byte(size >> (8 * i))
	}
	return io.MultiReader(
		strings.NewReader(word("nix-archive-1", "(", "type", "regular", "contents")+string(length)),
		io.LimitReader(zeros{}, size),
		strings.NewReader(word(")")))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

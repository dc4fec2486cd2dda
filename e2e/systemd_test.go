package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"firn/nix"
)

// The daemon of Nix, as Debian and others run it.
const nixDaemonUnit = `[Service]
ExecStart=/usr/bin/nix-daemon
`

// nixDaemonSocket lets the daemon be asked before it has started, as where Nix itself was installed.
const nixDaemonSocket = `[Socket]
ListenStream=/nix/var/nix/daemon-socket/socket
`

// socketAt has a socket of firn's units at another address.
func socketAt(address string) string {
	return "[Socket]\nListenStream=\nListenStream=" + address + "\n"
}

// The unit runs as it stands, under systemd with all that it forbids: it serves the store of its machine, takes what is pushed, and has its keys from systemd.
func TestService(t *testing.T) {
	t.Parallel()
	m := newMachine(t, systemNix())
	cert := selfSigned(m, "server", "localhost")
	key, err := nix.GenerateKey("service-1")
	if err != nil {
		t.Fatal(err)
	}
	text := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	plain, secured, shell := "127.0.0.1:"+freePort(t), "[::1]:"+freePort(t), "127.0.0.1:"+freePort(t)
	const page = "docs/systemd.md"
	b := boot(t, map[string]string{
		"etc/systemd/test/nix-daemon.service":              nixDaemonUnit,
		"etc/systemd/test/nix-daemon.socket":               nixDaemonSocket,
		"etc/systemd/test/firn.socket.d/test.conf":         socketAt(plain) + "ListenStream=/run/firn.sock\n",
		"etc/systemd/test/firn-https.socket.d/test.conf":   socketAt(secured),
		"etc/systemd/test/firn-ssh.socket.d/test.conf":     socketAt(shell),
		"etc/systemd/test/firn.service.d/credentials.conf": credentialsOf(t, page),
		"etc/firn/firn.toml":                               "priority = 11\nlisten = ['127.0.0.1:0']\n",
		"root/hello":                                       "hello from a machine with systemd\n",
	}, map[string]string{ // where the handbook has them
		"etc/firn/secret":                       key.Reveal(),
		"etc/ssl/cache.example.org.pem":         text(cert),
		"etc/ssl/private/cache.example.org.key": text(strings.TrimSuffix(cert, ".crt") + ".key"),
	})
	b.run("nix-store", "--init") // as where Nix has been used
	b.run("systemctl", "start", "nix-daemon.socket", "firn-https.socket", "firn-ssh.socket")
	b.walk(page)
	b.run("systemctl", "stop", "firn.service")
	get := func(client *http.Client, url string) string {
		t.Helper()
		res, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: %s, %v\n%s", url, res.Status, err, body)
		}
		return string(body)
	}
	client := newClient(t)
	if got := b.property("ActiveState"); got != "inactive" {
		t.Errorf("after it was stopped the service is %s", got)
	}
	// The first who asks starts it again.
	if got, want := get(client, "http://"+plain+"/nix-cache-info"), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 11\n"; got != want {
		t.Errorf("nix-cache-info is %q, want %q", got, want)
	}
	eventually(t, "the service is ready", func() bool { return b.property("SubState") == "running" })
	if got, want := b.property("StatusText"), "serving http at "+plain+", http at /run/firn.sock, https at "+secured+", ssh at "+shell; got != want {
		t.Errorf("its status is %q, want %q", got, want)
	}

	path, err := nix.DefaultStoreDir.ParsePath(b.run("nix-store", "--add", "/root/hello"))
	if err != nil {
		t.Fatal(err)
	}
	narinfo := get(client, "http://"+plain+"/"+path.Hash().String()+".narinfo")
	info, err := nix.ParseNARInfoStrict(path.Dir(), []byte(narinfo))
	if err != nil || !strings.Contains(narinfo, "\nSig: service-1:") {
		t.Fatalf("the narinfo has no signature of the credential, or is wrong: %v\n%s", err, narinfo)
	}
	overTLS := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool(t, cert), ServerName: "localhost"}, ForceAttemptHTTP2: true}}
	defer overTLS.CloseIdleConnections()
	if err := checkNAR(info, strings.NewReader(get(overTLS, "https://"+secured+"/"+info.URL))); err != nil {
		t.Error(err)
	}
	if got := b.run("curl", "--silent", "--unix-socket", "/run/firn.sock", "http://firn/health"); got != "ok" {
		t.Errorf("over the Unix socket, health is %q", got)
	}
	if got := b.run("ssh-keyscan", "-p", shell[strings.LastIndex(shell, ":")+1:], "127.0.0.1"); !strings.Contains(got, "ssh-ed25519") {
		t.Errorf("over SSH it shows %q", got)
	}

	token := tokenText.FindString(b.run("firn", "token", "create", "--state", "/var/lib/firn", "--push", "main", "ci"))
	login(m, token)
	pushed := m.run("nix-store", "--add", m.write("pushed", "pushed to a machine with systemd\n"))
	m.run("nix", "copy", "--to", "http://"+plain, pushed)
	if got := get(client, "http://"+plain+"/"+filepath.Base(pushed)[:32]+".narinfo"); !strings.Contains(got, "\nSig: service-1:") {
		t.Errorf("the pushed path is answered with\n%s", got)
	}

	confined(t, b)

	// The service that verifies has the user of the server, which runs at the same time.
	b.run("systemctl", "start", "firn-verify.service")
	if !strings.Contains(b.log(), "1 NAR verified") || !strings.Contains(b.log(), " 0 damaged") {
		t.Errorf("the pushed path was not verified:\n%s", b.log())
	}

	b.write("/etc/firn/firn.toml", "priority = 12\nno-such-setting = 1\n")
	b.run("systemctl", "reload", "firn.service")
	eventually(t, "a mistake is logged", func() bool { return strings.Contains(b.log(), "unknown key no-such-setting") })
	b.write("/etc/firn/firn.toml", "priority = 13\n")
	b.run("systemctl", "reload", "firn.service")
	eventually(t, "the priority changes", func() bool {
		return strings.Contains(get(client, "http://"+plain+"/nix-cache-info"), "\nPriority: 13\n")
	})
	if strings.Contains(b.log(), "the watchdog does not ask it") {
		t.Error("it could not ask itself at all of its addresses")
	}
	b.run("systemctl", "stop", "firn.service")
	if got := b.property("Result"); got != "success" {
		t.Errorf("the end of the service was no success: %s", got)
	}
}

// credentialsOf returns the configuration of credentials on a page of the handbook.
func credentialsOf(t *testing.T, page string) string {
	t.Helper()
	for _, conf := range fenced(t, page, "ini") {
		if strings.Contains(conf, "\nLoadCredential=") {
			return conf
		}
	}
	t.Fatalf("%s has no credentials", page)
	return ""
}

// confined checks that the running service is held to what the unit says. What systemd makes of that is systemd's;
// here it is seen that it applied, so that what this test does was done under it.
func confined(t *testing.T, b *booted) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/proc/%s/status", b.pid, b.property("MainPID")))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Seccomp":    "2", // filters
		"NoNewPrivs": "1",
		"CapEff":     "0000000000000400", // to listen below port 1024
		"CapBnd":     "0000000000000400",
	} {
		if got := regexp.MustCompile(`(?m)^` + name + `:\s+(\S+)$`).FindSubmatch(status); got == nil || string(got[1]) != want {
			t.Errorf("%s of the service is %q, want %s", name, got, want)
		}
	}
	if uid := regexp.MustCompile(`(?m)^Uid:\s+(\d+)`).FindSubmatch(status); uid == nil || string(uid[1]) == "0" {
		t.Errorf("the service runs as %q", uid)
	}
}

// systemd restarts a server that no longer answers, and leaves one alone that does.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	address := "127.0.0.1:" + freePort(t)
	b := boot(t, map[string]string{
		"etc/systemd/test/firn.socket.d/test.conf":  socketAt(address),
		"etc/systemd/test/firn.service.d/test.conf": "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\nLimitCORE=0\n",
		"etc/firn/firn.toml":                        "store = 'off'\n",
	}, nil)
	b.run("systemctl", "start", "firn.socket", "firn.service")
	first := b.property("MainPID")
	time.Sleep(4 * time.Second) // twice what the watchdog waits
	if got := b.property("MainPID"); got != first || b.property("NRestarts") != "0" {
		t.Fatalf("a service that answers was ended: it was process %s and is %s", first, got)
	}
	b.run("kill", "-STOP", first)
	eventually(t, "the service is restarted", func() bool { return b.property("NRestarts") == "1" && b.property("SubState") == "running" })
	res, err := newClient(t).Get("http://" + address + "/health")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("after the restart it is not well: %s", res.Status)
	}
}

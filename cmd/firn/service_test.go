package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

// A manager is what systemd is to a service: it holds sockets, and is told things.
type manager struct {
	names []string
	files []*os.File
	state *net.UnixConn
}

// newManager returns one that holds nothing yet.
func newManager(t *testing.T) *manager {
	t.Helper()
	state, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { state.Close() })
	return &manager{state: state}
}

// socket opens one under a name, and returns where it is.
func (m *manager) socket(t *testing.T, name, network, address string) net.Addr {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	m.names, m.files = append(m.names, name), append(m.files, f)
	return l.Addr()
}

// command runs firn serve as systemd does. The number of the process is known in the process only, so a shell writes it down.
func (m *manager) command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec firn serve "$@"`, "sh"}, args...)...)
	cmd.ExtraFiles = m.files
	cmd.Env = append(env, "NOTIFY_SOCKET="+m.state.LocalAddr().String(),
		fmt.Sprint("LISTEN_FDS=", len(m.files)), "LISTEN_FDNAMES="+strings.Join(m.names, ":"))
	return cmd
}

// wait waits until it is told something that begins so, and returns the whole.
func (m *manager) wait(t *testing.T, begin string) string {
	t.Helper()
	defer context.AfterFunc(t.Context(), func() { m.state.Close() })()
	message := make([]byte, 4096)
	for {
		n, err := m.state.Read(message)
		if err != nil {
			t.Fatalf("no %q was told: %v", begin, err)
		}
		if text := string(message[:n]); strings.HasPrefix(text, begin) {
			return text
		}
	}
}

// systemd's sockets take the place of the addresses of their kind, it is told when all answer, and they are left as they are at the end.
func TestSockets(t *testing.T) {
	m := newManager(t)
	dir := t.TempDir()
	tcp4 := m.socket(t, "http", "tcp4", "127.0.0.1:0").String()
	tcp6 := m.socket(t, "http", "tcp6", "[::1]:0").String()
	unix := m.socket(t, "http", "unix", filepath.Join(dir, "s")).String()
	shell := m.socket(t, "ssh", "tcp", "127.0.0.1:0").String()
	const taken = "192.0.2.1:1" // cannot be opened
	s := startCommand(t, m.command(environment(t), "--store", "off", "--listen", taken, "--ssh", taken))
	for _, want := range []string{"\n  http://" + tcp4 + "\n", "\n  http://" + tcp6 + "\n", "\n  unix:" + unix + "\n"} {
		if !strings.Contains(s.announced, want) {
			t.Errorf("%q is not in\n%s", want, s.announced)
		}
	}
	ready := m.wait(t, "READY=1")
	if want := "READY=1\nSTATUS=serving http at " + tcp4 + ", http at " + tcp6 + ", http at " + unix + ", ssh at " + shell; ready != want {
		t.Errorf("told was %q, want %q", ready, want)
	}
	overSocket := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", unix)
		},
	}}
	for client, url := range map[*http.Client]string{http.DefaultClient: "http://" + tcp6, overSocket: "http://firn"} {
		if got := get(t, client, url+"/health"); got != "ok\n" {
			t.Errorf("%s: health is %q", url, got)
		}
	}
	overSocket.CloseIdleConnections()
	_, err := ssh.Dial("tcp", shell, &ssh.ClientConfig{User: "main", HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("over SSH: %v", err)
	}
	s.signal(t, syscall.SIGTERM)
	if got := m.wait(t, "STOPPING=1"); !strings.Contains(got, "\nEXTEND_TIMEOUT_USEC=") {
		t.Errorf("told was %q at the end", got)
	}
	if err := s.wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, s.stderr)
	}
	if conn, err := net.Dial("unix", unix); err != nil {
		t.Errorf("the socket of systemd is gone: %v", err)
	} else {
		conn.Close()
	}
}

// A socket that nobody would answer ends the start.
func TestSocketErrors(t *testing.T) {
	for name, want := range map[string]string{
		"web":   "firn: take socket web: there is no use for one of this name; set FileDescriptorName= in its unit to one of http, https, ssh\n",
		"https": "firn: the service manager has opened a socket for https, and there is no certificate; name one with --tls-cert and --tls-key, or get one with --acme EMAIL\n",
	} {
		m := newManager(t)
		m.socket(t, name, "tcp", "127.0.0.1:0")
		out, err := m.command(environment(t), "--store", "off", "--listen", "127.0.0.1:0").CombinedOutput()
		if _, failed := errors.AsType[*exec.ExitError](err); !failed || string(out) != want {
			t.Errorf("%s: %v\n%swant\n%s", name, err, out, want)
		}
	}
}

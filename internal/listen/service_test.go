package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// listenUnix listens on a Unix socket.
func listenUnix(t *testing.T) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// passed is a file as a service manager passes it, under a name.
func passed(t *testing.T, name string, from interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := from.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	var failed error
	err = raw.Control(func(original uintptr) { fd, failed = syscall.Dup(int(original)) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

func TestTake(t *testing.T) {
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	unix := listenUnix(t)
	sockets, err := take([]*os.File{passed(t, "http", tcp), passed(t, "ssh", tcp), passed(t, "http", unix)})
	if err != nil {
		t.Fatal(err)
	}
	if len(sockets[HTTP]) != 2 || len(sockets[SSH]) != 1 || len(sockets[HTTPS]) != 0 {
		t.Fatalf("taken are %v", sockets)
	}
	if got, want := sockets[HTTP][0].Addr().String(), tcp.Addr().String(); got != want {
		t.Errorf("the first is at %s, want %s", got, want)
	}
	sockets.Close()
	if _, err := os.Lstat(unix.Addr().String()); err != nil {
		t.Errorf("a Unix socket of another process is gone: %v", err)
	}
	for _, l := range []net.Listener{tcp, unix} {
		conn, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Errorf("the one who opened it does not listen any more: %v", err)
			continue
		}
		conn.Close()
	}
}

func TestTakeErrors(t *testing.T) {
	l := listenUnix(t)
	packets, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	client, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, test := range []struct {
		name string
		file *os.File
		want string
	}{
		{"name", passed(t, "firn.socket", l), "take socket firn.socket: there is no use for one of this name; set FileDescriptorName= in its unit to one of http, https, ssh"},
		{"packets", passed(t, "http", packets), "take socket http: it does not listen; its unit needs ListenStream= and Accept=no"},
		{"connection", passed(t, "ssh", conn), "take socket ssh: it does not listen; its unit needs ListenStream= and Accept=no"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if s, err := take([]*os.File{passed(t, "http", l), test.file}); err == nil || err.Error() != test.want || s != nil {
				t.Errorf("%v, %v, want %s", s, err, test.want)
			}
			if _, err := test.file.Stat(); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("it was left open: %v", err)
			}
		})
	}
}

// listenForState listens to what this process says, as a service manager does.
func listenForState(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// heard returns the next thing that was said, "" if there is nothing.
func heard(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 4096)
	n, err := conn.Read(message)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return string(message[:n])
}

// The endpoints in these tests: one of each kind that answers in its way, and one at which nobody is.
func endpoints(t *testing.T) (answer []Endpoint, silent Endpoint) {
	t.Helper()
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	plain, secured := httptest.NewServer(hello), httptest.NewUnstartedServer(hello)
	secured.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secured.StartTLS()
	// A server without a certificate answers too: it says so.
	bare := httptest.NewUnstartedServer(hello)
	bare.Config.ErrorLog = secured.Config.ErrorLog
	bare.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }}
	bareListener := tls.NewListener(bare.Listener, bare.TLS)
	go http.Serve(bareListener, hello)
	t.Cleanup(func() { plain.Close(); secured.Close(); bareListener.Close() })

	greets := listenUnix(t)
	go func() {
		for {
			conn, err := greets.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "SSH-2.0-firn\r\n")
			conn.Close()
		}
	}()
	return []Endpoint{
		{HTTP, plain.Listener.Addr()}, {HTTPS, secured.Listener.Addr()}, {HTTPS, bareListener.Addr()}, {SSH, greets.Addr()},
	}, Endpoint{HTTP, listenUnix(t).Addr()}
}

func TestReady(t *testing.T) {
	answer, _ := endpoints(t)
	state := listenForState(t)
	var log bytes.Buffer
	m := NewManager(slog.New(slog.NewTextHandler(&log, nil)))
	gone := Endpoint{HTTP, &net.UnixAddr{Name: filepath.Join(t.TempDir(), "gone"), Net: "unix"}}
	m.Ready(t.Context(), append(answer, gone), "serving")
	if got, want := heard(t, state), "STATUS=starting"; got != want {
		t.Errorf("first said: %q, want %q", got, want)
	}
	if got, want := heard(t, state), "READY=1\nSTATUS=serving"; got != want {
		t.Errorf("then said: %q, want %q", got, want)
	}
	if len(m.endpoints) != len(answer) || !strings.Contains(log.String(), "so the watchdog does not ask it") {
		t.Errorf("watched are %v\n%s", m.endpoints, &log)
	}
}

// Nothing is said as long as an endpoint does not answer.
func TestNotReady(t *testing.T) {
	answer, silent := endpoints(t)
	state := listenForState(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	NewManager(nil).Ready(ctx, append(answer, silent), "serving")
	if got, want := heard(t, state)+heard(t, state), "STATUS=starting"; got != want {
		t.Errorf("said: %q, want %q", got, want)
	}
}

func TestWatchdog(t *testing.T) {
	answer, silent := endpoints(t)
	state := listenForState(t)
	var log bytes.Buffer
	m := &Manager{log: slog.New(slog.NewTextHandler(&log, nil)), endpoints: answer}
	m.tick(t.Context(), time.Minute)
	if got, want := heard(t, state), "WATCHDOG=1"; got != want {
		t.Errorf("of endpoints that answer it said %q, want %q", got, want)
	}
	m.endpoints = append(m.endpoints, silent)
	m.tick(t.Context(), 50*time.Millisecond)
	if got := heard(t, state); got != "" || !strings.Contains(log.String(), "this server does not answer") {
		t.Errorf("of an endpoint that does not answer it said %q\n%s", got, &log)
	}
}

func TestNoWatchdog(t *testing.T) {
	answer, _ := endpoints(t)
	state := listenForState(t)
	(&Manager{log: slog.New(slog.DiscardHandler), endpoints: answer}).Watch(t.Context())
	if got := heard(t, state); got != "" {
		t.Errorf("it said %q to a watchdog that is not there", got)
	}
}

func TestReloading(t *testing.T) {
	state := listenForState(t)
	done := NewManager(nil).Reloading()
	lines := strings.Split(heard(t, state), "\n")
	if len(lines) != 3 || lines[0] != "RELOADING=1" || !strings.HasPrefix(lines[1], "MONOTONIC_USEC=") || lines[2] != "STATUS=reloading the settings" {
		t.Errorf("said: %q", lines)
	}
	done("serving")
	if got, want := heard(t, state), "READY=1\nSTATUS=serving"; got != want {
		t.Errorf("said: %q, want %q", got, want)
	}
}

func TestStopping(t *testing.T) {
	state := listenForState(t)
	NewManager(nil).Stopping("ending", time.Minute)
	if got, want := heard(t, state), "STOPPING=1\nWATCHDOG=1\nEXTEND_TIMEOUT_USEC=90000000\nSTATUS=ending"; got != want {
		t.Errorf("said: %q, want %q", got, want)
	}
}

// Without a service manager nobody is asked or told anything.
func TestNoManager(t *testing.T) {
	_, silent := endpoints(t)
	t.Setenv("NOTIFY_SOCKET", "")
	m := NewManager(nil)
	m.Ready(t.Context(), []Endpoint{silent}, "serving")
	m.Reloading()("serving")
	m.Stopping("ending", time.Minute)
	if len(m.endpoints) != 0 {
		t.Errorf("watched are %v", m.endpoints)
	}
}

func TestNearest(t *testing.T) {
	for _, test := range []struct {
		addr net.Addr
		want string
	}{
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 5000}, "tcp [::1]:5000"},
		{&net.TCPAddr{IP: net.IPv4zero, Port: 80}, "tcp 127.0.0.1:80"},
		{&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80}, "tcp 192.0.2.1:80"},
		{&net.UnixAddr{Name: "/run/firn/firn.sock", Net: "unix"}, "unix /run/firn/firn.sock"},
	} {
		network, address := Endpoint{HTTP, test.addr}.nearest()
		if got := network + " " + address; got != test.want {
			t.Errorf("the way to %s is %s, want %s", test.addr, got, test.want)
		}
	}
}

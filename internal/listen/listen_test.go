package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"[::]:5000":           "[::]:5000",
		":5000":               ":5000",
		"127.0.0.1:0":         "127.0.0.1:0",
		"cache.example:05000": "cache.example:5000",
		"[fe80::1%eth0]:80":   "[fe80::1%eth0]:80",
		"unix:/run/firn.sock": "unix:/run/firn.sock",
		"unix:firn.sock":      "unix:firn.sock",
	} {
		got, err := ParseAddress(in)
		if err != nil {
			t.Errorf("ParseAddress(%q): %v", in, err)
		}
		if got.String() != want {
			t.Errorf("ParseAddress(%q) = %q, want %q", in, got, want)
		}
		if again, err := ParseAddress(got.String()); err != nil || again != got {
			t.Errorf("ParseAddress(%q) = %v, %v, want %v again", got, again, err, got)
		}
	}
	for _, in := range []string{
		"", "5000", "localhost", "[::]", "::1:5000", "[::1]5000", ":65536", ":-1", ":http", ":", "a b:1",
		"http://localhost:5000", "http://localhost", "/run/firn.sock", "unix:", "unix:a\x00b", "unix:@abstract",
		"unix:/" + strings.Repeat("x", maxSocketPath),
	} {
		if got, err := ParseAddress(in); err == nil {
			t.Errorf("ParseAddress(%q) = %q, want an error", in, got)
		}
	}
}

// Without an address a listener answers on all, of both families; 0.0.0.0 is of one.
func TestOpenFamilies(t *testing.T) {
	hosts := []string{"127.0.0.1"}
	if ln, err := net.Listen("tcp6", "[::1]:0"); err == nil { // a container may have no IPv6
		ln.Close()
		hosts = append(hosts, "::1")
	}
	for text, want := range map[string][]string{"[::]:0": hosts, ":0": hosts, "0.0.0.0:0": hosts[:1]} {
		_, port, _ := net.SplitHostPort(open(t, text).Addr().String())
		var answering []string
		for _, host := range hosts {
			if conn, err := net.Dial("tcp", net.JoinHostPort(host, port)); err == nil {
				conn.Close()
				answering = append(answering, host)
			}
		}
		if diff := cmp.Diff(want, answering); diff != "" {
			t.Errorf("listening on %s (-want +got):\n%s", text, diff)
		}
	}
}

// A kernel without IPv6 answers EAFNOSUPPORT to every socket of that family.
func TestOpenWithoutIPv6(t *testing.T) {
	noIPv6 := net.ListenConfig{Control: func(network, _ string, _ syscall.RawConn) error {
		if network == "tcp6" {
			return syscall.EAFNOSUPPORT
		}
		return nil
	}}
	addr, err := ParseAddress("[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := addr.open(t.Context(), noIPv6, socketMode)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if got := ln.Addr().(*net.TCPAddr).IP.String(); got != "0.0.0.0" {
		t.Errorf("listening on %s, want 0.0.0.0", got)
	}
	if addr, err = ParseAddress("[::1]:0"); err != nil {
		t.Fatal(err)
	}
	if ln, err := addr.open(t.Context(), noIPv6, socketMode); err == nil {
		ln.Close()
		t.Error("an address of a family that is not there was replaced by another")
	}
}

func TestOpenPortInUse(t *testing.T) {
	ln := open(t, "127.0.0.1:0")
	addr, err := ParseAddress(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = addr.Open(t.Context(), Options{})
	want := "listen on " + ln.Addr().String() + ": address already in use; stop the server that listens there, or choose another address with --listen"
	if err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v is not EADDRINUSE", err)
	}
}

func TestOpenUnknownHost(t *testing.T) {
	addr, err := ParseAddress("*:0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = addr.Open(t.Context(), Options{})
	want := "listen on *:0: lookup *: no such host; choose an address of this machine, or [::] for all, with --listen"
	if err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln := open(t, "unix:"+path)
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fs.FileMode(socketMode), fi.Mode().Perm()); diff != "" {
		t.Errorf("mode (-want +got):\n%s", diff)
	}

	addr := Address{network: "unix", name: path}
	if _, err := addr.Open(t.Context(), Options{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("opening a live socket: %v, want EADDRINUSE", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the live socket no longer answers: %v", err)
	} else {
		conn.Close()
	}

	ln.(*net.UnixListener).SetUnlinkOnClose(false) // as a crash leaves it
	ln.Close()
	ln, err = addr.Open(t.Context(), Options{})
	if err != nil {
		t.Fatalf("opening a stale socket: %v", err)
	}
	ln.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestUnixSocketKeepsOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Address{network: "unix", name: path}).Open(t.Context(), Options{}); !errors.Is(err, errNotSocket) {
		t.Errorf("error %v, want %v", err, errNotSocket)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "precious" {
		t.Errorf("the file is now %q, %v", got, err)
	}
}

// Of many that find the same stale socket, one wins and keeps it.
func TestUnixSocketRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln := open(t, "unix:"+path)
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()

	var won []net.Listener
	var mu sync.Mutex // guards won
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			ln, err := (Address{network: "unix", name: path}).Open(t.Context(), Options{})
			if err != nil {
				if !errors.Is(err, syscall.EADDRINUSE) {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			won = append(won, ln)
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d listeners, want 1", len(won))
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the winner does not answer: %v", err)
	} else {
		conn.Close()
	}
	for _, ln := range won {
		ln.Close()
	}
}

func TestURL(t *testing.T) {
	for _, test := range []struct {
		addr net.Addr
		host string
		want string
	}{
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 5000}, "snow", "http://snow:5000"},
		{&net.TCPAddr{IP: net.IPv4zero, Port: 5000}, "", "http://localhost:5000"},
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 80}, "snow", "http://snow"},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5000}, "snow", "http://127.0.0.1:5000"},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 80}, "snow", "http://[::1]"},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0", Port: 1}, "snow", "http://[fe80::1%25eth0]:1"},
		{&net.UnixAddr{Name: "/run/s", Net: "unix"}, "snow", ""},
	} {
		if got := URL("http", fixed{addr: test.addr}, test.host); got != test.want {
			t.Errorf("URL(%v, %q) = %q, want %q", test.addr, test.host, got, test.want)
		}
	}
	if got := URL("https", fixed{addr: &net.TCPAddr{IP: net.IPv6unspecified, Port: 443}}, "snow"); got != "https://snow" {
		t.Errorf("the URL with TLS is %q", got)
	}
}

// A socket has its mode whatever the umask, and before anybody can connect.
func TestUnixSocketMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	addr := Address{network: "unix", name: path}
	ln, err := addr.Open(t.Context(), Options{Mode: 0o660})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, want 660", fi.Mode())
	}
}

// fixed is a listener of which only the address is asked.
type fixed struct {
	net.Listener
	addr net.Addr
}

func (f fixed) Addr() net.Addr { return f.addr }

func open(t *testing.T, text string) net.Listener {
	t.Helper()
	addr, err := ParseAddress(text)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := addr.Open(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"[::]:5000", ":0", "unix:/run/firn.sock", "[fe80::1%eth0]:80", "a:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := ParseAddress(s)
		if err != nil {
			return
		}
		if again, err := ParseAddress(addr.String()); err != nil || again != addr {
			t.Errorf("ParseAddress(%q) = %v; ParseAddress of that = %v, %v", s, addr, again, err)
		}
	})
}

// Package listen opens the addresses that a server answers on, TCP in both IP families and Unix sockets,
// and speaks with a service manager such as systemd: about sockets that were opened for the server, about
// its start, its end and its settings, and about whether it still answers.
//
// Without a service manager, [Take] returns no sockets, and a [Manager] does nothing.
package listen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// unixPrefix marks an address as the path of a Unix socket.
	unixPrefix = "unix:"

	// maxSocketPath is the longest path that fits in a socket address on every supported system, in bytes:
	// sun_path has 108 bytes on Linux and 104 on macOS, one of them for the final NUL.
	maxSocketPath = 103

	// socketMode lets every local user connect: what is served is public to whoever reaches the socket,
	// and who may reach it is decided by the permissions of its directory.
	socketMode = 0o666
)

// An Address is where a server listens: "HOST:PORT", ":PORT" or "unix:PATH".
// The zero value is no address.
type Address struct {
	network string // "tcp", "tcp4" or "unix"
	name    string // "host:port" or the path of the socket
}

// Options of a listener. The zero Options will do.
type Options struct {
	// Mode are the permissions of a Unix socket. Zero lets every local user connect.
	Mode fs.FileMode
}

// ParseAddress reads the text form of an address.
// A HOST that is an IPv6 address stands in brackets; the empty HOST and "[::]" mean every address of this machine, IPv4 too,
// and "0.0.0.0" every IPv4 address.
// PORT is a number from 0 to 65535; 0 takes a free port.
func ParseAddress(s string) (Address, error) {
	if path, ok := strings.CutPrefix(s, unixPrefix); ok {
		switch {
		case path == "":
			return Address{}, fmt.Errorf("address %q: the path of the socket is missing", s)
		case len(path) > maxSocketPath:
			return Address{}, fmt.Errorf("address %q: the path of a socket has at most %d bytes", s, maxSocketPath)
		case strings.ContainsRune(path, 0):
			return Address{}, fmt.Errorf("address %q: the path holds a NUL byte", s)
		case path[0] == '@': // to Linux an abstract socket, which no permissions protect
			return Address{}, fmt.Errorf("address %q: want the path of a file; write unix:./%s if it is one", s, path)
		}
		return Address{network: "unix", name: path}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || strings.ContainsAny(host, "/ ") {
		return Address{}, fmt.Errorf("address %q: want HOST:PORT, :PORT or unix:PATH", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Address{}, fmt.Errorf("address %q: the port is not a number from 0 to 65535", s)
	} else {
		port = strconv.FormatUint(n, 10)
	}
	network := "tcp"
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		network = "tcp4" // with "tcp", net takes 0.0.0.0 for [::]
	}
	return Address{network: network, name: net.JoinHostPort(host, port)}, nil
}

// String returns the text form, as ParseAddress reads it.
func (a Address) String() string {
	if a.network == "unix" {
		return unixPrefix + a.name
	}
	return a.name
}

// MarshalText returns the text form.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is ParseAddress.
func (a *Address) UnmarshalText(text []byte) (err error) {
	*a, err = ParseAddress(string(text))
	return err
}

// Open listens on the address.
//
// On a machine whose kernel has no IPv6, "[::]" falls back to every IPv4 address.
// A Unix socket that a crash left behind is replaced, one that still answers is an error;
// the socket is removed when the listener is closed. Errors say what to do.
func (a Address) Open(ctx context.Context, opts Options) (net.Listener, error) {
	ln, err := a.open(ctx, net.ListenConfig{}, cmp.Or(opts.Mode, socketMode))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w%s", a, cause(err), advice(err))
	}
	return ln, nil
}

func (a Address) open(ctx context.Context, lc net.ListenConfig, mode fs.FileMode) (net.Listener, error) {
	if a.network == "unix" {
		return openUnix(ctx, lc, a.name, mode)
	}
	ln, err := lc.Listen(ctx, a.network, a.name)
	if host, port, _ := net.SplitHostPort(a.name); host == "::" && errors.Is(err, syscall.EAFNOSUPPORT) {
		return lc.Listen(ctx, "tcp4", net.JoinHostPort("0.0.0.0", port))
	}
	return ln, err
}

// openUnix listens on the socket at path, with its mode.
// Telling a dead socket from a live one, removing it and binding the new one are three steps;
// a lock on the directory makes them one for all who come through here, so that two starts at once cannot remove each other's socket.
func openUnix(ctx context.Context, lc net.ListenConfig, path string, mode fs.FileMode) (net.Listener, error) {
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// Linux makes the socket with the mode of its descriptor, so that nobody can connect in between who may not, and less what the umask
	// takes away. The path is not asked to change its mode: who may write to the directory could have put a link there, to any file.
	umask.Lock()
	defer umask.Unlock()
	made, old := false, 0
	lc.Control = func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = syscall.Fchmod(int(fd), uint32(mode)) })
		if err == nil && failed == nil {
			made = true
			old = syscall.Umask(0)
		}
		return errors.Join(err, ignoreInvalid(failed))
	}
	ln, err := lc.Listen(ctx, "unix", path)
	if made {
		syscall.Umask(old)
	}
	if err != nil {
		return nil, err
	}
	if made {
		return ln, nil
	}
	if err := unix.Fchmodat(unix.AT_FDCWD, path, uint32(mode), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// umask is of the whole process, and changed by one at a time.
var umask sync.Mutex

// ignoreInvalid drops the error of a system whose sockets have no mode before they have a path.
func ignoreInvalid(err error) error {
	if errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

// errNotSocket: there is a file at the path, and it is not ours to remove.
var errNotSocket = errors.New("the path exists and is not a socket")

// removeStale removes the socket at path when nobody listens on it.
// It returns syscall.EADDRINUSE when somebody does, and errNotSocket when it is another kind of file.
func removeStale(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return errNotSocket
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		conn.Close()
		return syscall.EADDRINUSE
	case errors.Is(err, syscall.ECONNREFUSED): // bound once, and nobody listens
		return os.Remove(path)
	case errors.Is(err, syscall.EAGAIN): // somebody listens, and is busy
		return syscall.EADDRINUSE
	default:
		return err
	}
}

// lockDir takes an exclusive lock on a directory, and returns what gives it back.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil // closing gives the lock back
}

// cause drops what net and os put around the reason, which the caller's message has already said.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		err = sys.Err
	}
	return err
}

// advice is what a person can do about err.
func advice(err error) string {
	var lookup *net.DNSError
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "; stop the server that listens there, or choose another address with --listen"
	case errors.As(err, &lookup):
		return "; choose an address of this machine, or [::] for all, with --listen"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "; this machine does not have that address: choose one of its own, or [::] for all, with --listen"
	case errors.Is(err, fs.ErrPermission):
		return "; choose a port of 1024 or more, or a directory that you may write to, with --listen"
	case errors.Is(err, fs.ErrNotExist):
		return "; make the directory of the socket first"
	case errors.Is(err, errNotSocket):
		return "; remove it, or choose another path with --listen"
	}
	return ""
}

// URL returns the URL of a server that listens on ln, with scheme http or https, as clients on other machines write it when this machine
// listens on all its addresses, and "" for a Unix socket. hostname is this machine's name; empty means localhost.
func URL(scheme string, ln net.Listener, hostname string) string {
	addr, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := addr.IP.String()
	if addr.Zone != "" {
		host += "%25" + addr.Zone // RFC 6874
	}
	if addr.IP.IsUnspecified() {
		host = cmp.Or(hostname, "localhost")
	}
	return URLOf(scheme, host, addr.Port)
}

// URLOf returns the URL of a server at a port of a host, with scheme http or https.
func URLOf(scheme, host string, port int) string {
	if port == map[string]int{"http": 80, "https": 443}[scheme] {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		return scheme + "://" + host
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(port))
}

package listen

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// The kinds of endpoints, and the names of the sockets for them: FileDescriptorName= in the unit of a socket.
const (
	HTTP  = "http"
	HTTPS = "https"
	SSH   = "ssh"
)

var kinds = []string{HTTP, HTTPS, SSH}

// Sockets are the listeners that a service manager has opened for this process, by their kinds.
// Closing one of them removes no Unix socket: that is the service manager's.
type Sockets map[string][]net.Listener

// Take takes the sockets that were passed to this process, once: a second call finds none. There may be none.
func Take() (Sockets, error) {
	return take(activation.Files(true))
}

// take makes listeners of files, which it closes.
func take(files []*os.File) (Sockets, error) {
	sockets := Sockets{}
	var wrong []error
	for _, f := range files {
		l, err := listener(f)
		f.Close() // a listener has a descriptor of its own
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		sockets[f.Name()] = append(sockets[f.Name()], l)
	}
	if err := errors.Join(wrong...); err != nil {
		sockets.Close()
		return nil, err
	}
	return sockets, nil
}

func listener(f *os.File) (net.Listener, error) {
	if !slices.Contains(kinds, f.Name()) {
		return nil, fmt.Errorf("take socket %s: there is no use for one of this name; set FileDescriptorName= in its unit to one of %s", f.Name(), strings.Join(kinds, ", "))
	}
	if !listens(f) {
		return nil, fmt.Errorf("take socket %s: it does not listen; its unit needs ListenStream= and Accept=no", f.Name())
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take socket %s: %w; want one of TCP or a Unix socket", f.Name(), err)
	}
	return l, nil
}

// listens reports whether a file is a socket that connections can be accepted from.
func listens(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var accepts int
	var failed error
	err = raw.Control(func(fd uintptr) {
		accepts, failed = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	})
	return err == nil && failed == nil && accepts != 0
}

// Close closes all of them.
func (s Sockets) Close() {
	for _, listeners := range s {
		for _, l := range listeners {
			l.Close()
		}
	}
}

package sshd

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// smallRead is below how many bytes what was read is taken for a question, rather than a part of a NAR.
const smallRead = 1 << 10

// acknowledge has the kernel acknowledge at once what was read, if it was little.
//
// OpenSSH's client leaves Nagle's algorithm on for what Nix does: after a small packet, as that which opens the window, it holds back the next,
// as a question, until the first is acknowledged. Linux would do that 40 ms later, with every path that is pulled.
func acknowledge(conn net.Conn, n int) {
	if n >= smallRead {
		return
	}
	if c, ok := conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			// What is no TCP connection refuses, and needs none. The kernel forgets it by and by, so it is said each time.
			_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
		}
	}
}

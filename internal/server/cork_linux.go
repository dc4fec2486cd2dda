package server

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// setCork sets or takes away TCP_CORK (tcp(7)), and reports whether that was possible.
func setCork(c net.Conn, on bool) bool {
	conn, ok := c.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	value := 0
	if on {
		value = 1
	}
	failed := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, unix.TCP_CORK, value) })
	return failed == nil && err == nil
}

package connlimit

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendFile has the kernel send n bytes of a file from off on, and returns how many it sent: fewer
// where the file ends before that. The offset of the file stays as it is, so many connections can
// be sent the same file at once; package net knows only the form that moves it.
// errors.ErrUnsupported if the kernel cannot do it for this connection or this file, and has sent
// nothing.
func sendFile(c net.Conn, f *os.File, off, n int64) (sent int64, err error) {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	to, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	from, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	some := func(toFD int) (done bool) {
		lent := from.Control(func(fromFD uintptr) {
			for sent < n {
				var m int
				m, failed = unix.Sendfile(toFD, int(fromFD), &off, int(n-sent))
				sent += int64(max(m, 0))
				if failed == nil && m == 0 || failed != nil && failed != unix.EINTR {
					return
				}
			}
		})
		if lent != nil {
			failed = lent
		}
		return failed != unix.EAGAIN
	}
	if err := to.Write(func(fd uintptr) bool { return some(int(fd)) }); err != nil { // the deadline, too
		return sent, err
	}
	switch {
	case sent == 0 && (failed == unix.EINVAL || failed == unix.ENOSYS || failed == unix.EOPNOTSUPP):
		return 0, errors.ErrUnsupported
	case failed != nil && sent < n:
		return sent, os.NewSyscallError("sendfile", failed)
	}
	return sent, nil
}

// setCork sets or clears TCP_CORK (tcp(7)), and reports whether that was possible.
func setCork(c net.Conn, on bool) bool {
	if _, ok := c.(*net.TCPConn); !ok {
		return false
	}
	value := 0
	if on {
		value = 1
	}
	return askKernel(c, func(fd int) bool {
		return unix.SetsockoptInt(fd, syscall.IPPROTO_TCP, unix.TCP_CORK, value) == nil
	})
}

// hungUp reports whether the other end of a socket will send no more, even where bytes of it are
// still unread.
func hungUp(fd int) bool {
	polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(polled, 0)
	return err == nil && n > 0
}

// unsent returns how many bytes were written to a socket and have not arrived: of TCP, are not
// acknowledged.
func unsent(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0 // it is no socket
	}
	return n
}

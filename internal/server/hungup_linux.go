package server

import "golang.org/x/sys/unix"

// hungUp reports whether whoever is at the other end of a socket will send no more, whatever lies there still unread.
func hungUp(fd int) bool {
	polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(polled, 0)
	return err == nil && n > 0
}

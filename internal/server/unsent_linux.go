package server

import "golang.org/x/sys/unix"

// unsent returns how many bytes were written to a socket and have not arrived: of TCP, are not acknowledged.
func unsent(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0 // of what is no socket
	}
	return n
}

//go:build !linux

package server

import (
	"errors"
	"net"
	"os"
)

// sendFile is for Linux: elsewhere a file is read and written.
func sendFile(net.Conn, *os.File, int64, int64) (int64, error) { return 0, errors.ErrUnsupported }

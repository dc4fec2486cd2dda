//go:build !linux

package connlimit

import (
	"errors"
	"net"
	"os"
)

// sendFile is for Linux: elsewhere a file is read and written.
func sendFile(net.Conn, *os.File, int64, int64) (int64, error) { return 0, errors.ErrUnsupported }

// setCork does nothing.
func setCork(net.Conn, bool) bool { return false }

// hungUp returns false: only Linux tells that the client has hung up before all it sent is read.
func hungUp(int) bool { return false }

// unsent returns 0: only Linux tells how many bytes have not arrived.
func unsent(int) int { return 0 }

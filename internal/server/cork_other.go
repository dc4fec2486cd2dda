//go:build !linux

package server

import "net"

// setCork does nothing.
func setCork(net.Conn, bool) bool { return false }

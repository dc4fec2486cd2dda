//go:build !linux

package server

// hungUp reports whether whoever is at the other end of a socket will send no more, if that can be known before what lies there is read.
func hungUp(int) bool { return false }

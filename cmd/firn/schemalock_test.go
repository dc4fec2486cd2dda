package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestServerClaims: a server has the lock for as long as it runs, and others may run beside it.
func TestServerClaims(t *testing.T) {
	a := newAdmin(t)
	startServer(t, environment(t), "--state", a.state, "--store", "off", "--listen", "127.0.0.1:0")
	dir, err := os.Open(filepath.Join(a.state, depotDir))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("error %v, want %v", err, syscall.EWOULDBLOCK)
	}
}

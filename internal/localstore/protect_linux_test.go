//go:build programs

package localstore

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// While a collector runs it is told of a path over its socket, as Nix tells it.
// The collector is a real one, which has taken its lock and then waits for a file of temporary roots:
// this process has a lease on that, so the collector's opening of it waits.
func TestWhileCollecting(t *testing.T) {
	n := newNix(t)
	sent, other := n.add("sent", "sent"), n.add("other", "not sent")
	s := n.open()
	info, err := s.PathInfo(t.Context(), sent.Hash())
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(n.write("var/temproots/1", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	collected := make(chan error, 1)
	go func() {
		_, err := n.try("nix-store", "--gc")
		collected <- err
	}()
	lock, err := os.OpenFile(filepath.Join(n.stateDir, "gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for flock(lock, syscall.LOCK_SH|syscall.LOCK_NB) == nil { // until the collector has it
		flock(lock, syscall.LOCK_UN)
	}

	nar, err := s.OpenNAR(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	defer nar.Close()
	if _, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	if err := <-collected; err != nil {
		t.Fatal(err)
	}
	if !n.exists(sent) {
		t.Error("what is being sent was collected")
	}
	if n.exists(other) {
		t.Error("what is not being sent was not collected")
	}
	if err := nar.WriteRange(t.Context(), io.Discard, 0, nar.Size()); err != nil {
		t.Error(err)
	}
}

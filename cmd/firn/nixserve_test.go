package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"firn/internal/certs"
)

// A certificate may come through a pipe, from which nobody sends anything any more.
func TestNixServeKeyInPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &nixServePlan{pairs: []certs.Pair{{Cert: path, Key: path}}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.warnOfUnreadable(slog.New(slog.DiscardHandler))
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("it waits for the pipe")
		if w, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			w.Close()
		}
		<-done
	}
}

package main

import (
	"io"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A client that says nothing does not keep firn stdio from ending when it is told to, as when the machine is shut down.
func TestStdioEnds(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "firn", "stdio", "--state", filepath.Join(t.TempDir(), "state"))
	cmd.Env = environment(t, "FIRN_STORE=off")
	cmd.WaitDelay = time.Minute
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(30*time.Second, func() { // only what hangs takes as long
		t.Error("it goes on after it was told to end")
		in.Close()
	}).Stop()
	io.WriteString(in, "\xeb\x9d\x0c\x39\x00\x00\x00\x00\x07\x02\x00\x00\x00\x00\x00\x00") // as a client of the serve protocol begins
	if _, err := io.ReadFull(out, make([]byte, 16)); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

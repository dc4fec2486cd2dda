package zstdcache

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// childVariable is set in a process that a test runs as a part of itself: this binary again, with that test only.
// It holds the directory that the process works in.
const childVariable = "FIRN_ZSTDCACHE_TEST_DIR"

func childCommand(t *testing.T, dir string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), childVariable+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// A process that is killed while it compresses leaves nothing half that is served, and loses nothing that was whole.
func TestKill(t *testing.T) {
	const large = 60
	nth := func(i int) *dump {
		size := 1000 << (i % 10)
		if i == large {
			size = 2*frameSize + 100
		}
		return randomDump(size, uint64(i))
	}
	if dir := os.Getenv(childVariable); dir != "" {
		fill(t, dir, 2*large, nth)
	}
	var all []*dump
	for i := range 2 * large {
		all = append(all, nth(i))
	}

	whole := newHouse(t, Options{})
	for _, line := range []string{
		"begin 0 0", "end 0", "begin 37 0", "end 59", fmt.Sprint("begin 60 ", 12*pieceSize), "end 60", "begin 90 0", "end 119",
	} {
		dir := filepath.Join(t.TempDir(), "zstd")
		ended := killAt(t, dir, line)
		c, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		<-c.dir.scanned
		for i, d := range all {
			size, ok := c.Encoded(d.info)
			if !ok {
				if ended[i] {
					t.Errorf("killed at %q: %d is lost", line, i)
				}
				continue
			}
			n, err := c.Encode(t.Context(), d.info, nil)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := n.WriteRange(t.Context(), &b, 0, size); err != nil {
				t.Error(err)
			}
			n.Close()
			if !bytes.Equal(b.Bytes(), whole.encode(d)) {
				t.Errorf("killed at %q: other bytes of %d", line, i)
			}
		}
		wantFiles(t, dir, c.Stats().Files)
		c.Close()
	}
}

// fill compresses one NAR after the other, and says so line by line, until it is killed.
func fill(t *testing.T, dir string, count int, nth func(int) *dump) {
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range count {
		d := nth(i)
		d.before = func(_ context.Context, off int64) error {
			fmt.Println("begin", i, off)
			return nil
		}
		n, err := c.Encode(t.Context(), d.info, d.open)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.WriteRange(t.Context(), io.Discard, 0, n.Size()); err != nil {
			t.Fatal(err)
		}
		n.Close()
		fmt.Println("end", i)
	}
	io.Copy(io.Discard, os.Stdin)
}

// killAt runs fill in a process until it prints the given line, and returns which NARs it had ended.
func killAt(t *testing.T, dir, line string) (ended map[int]bool) {
	cmd := childCommand(t, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe() // the process waits for its end
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(map[int]bool)
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(&said, lines.Text())
		var i int
		if n, _ := fmt.Sscanf(lines.Text(), "end %d", &i); n == 1 {
			ended[i] = true
		}
		if lines.Text() == line {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, out)
	cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended by itself, %v:\n%s", cmd.ProcessState, &said)
	}
	return ended
}

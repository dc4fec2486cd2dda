// Package nartest helps to test what has to do with NARs, with real Nix as the oracle.
package nartest

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"firn/nix/nar"
)

// Dump returns the NAR of the tree at path as `nix-store --dump` makes it.
func Dump(tb testing.TB, path string) []byte {
	tb.Helper()
	out, err := Nix(tb, nil, "nix-store", "--dump", path)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// Nix runs one of Nix's commands and returns its output. Its error has what the command wrote to standard error.
// Where Nix is not installed, the test fails.
func Nix(tb testing.TB, stdin io.Reader, name string, args ...string) ([]byte, error) {
	tb.Helper()
	var stdout bytes.Buffer
	err := NixTo(tb, &stdout, stdin, name, args...)
	return stdout.Bytes(), err
}

// NixTo is Nix with its output written to stdout.
func NixTo(tb testing.TB, stdout io.Writer, stdin io.Reader, name string, args ...string) error {
	tb.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		tb.Fatalf("%v: this test compares with real Nix, which `make test` installs", err)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(tb.Context(), program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, &stderr
	if err := cmd.Run(); err != nil {
		return &Error{Cause: err, Stderr: stderr.String()}
	}
	return nil
}

// Error is what became of a command of Nix.
type Error struct {
	Cause  error
	Stderr string
}

func (e *Error) Error() string { return e.Cause.Error() + ": " + e.Stderr }

func (e *Error) Unwrap() error { return e.Cause }

// Extract restores the NAR that r holds as dir, which must not exist yet.
func Extract(tb testing.TB, r io.Reader, dir string) {
	tb.Helper()
	if err := extract(r, dir); err != nil {
		tb.Fatal(err)
	}
}

func extract(r io.Reader, dir string) error {
	for n := nar.NewReader(r); ; {
		h, err := n.Next()
		if err == io.EOF {
			return n.CheckEnd()
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Path)
		switch h.Type {
		case nar.TypeDirectory:
			err = os.Mkdir(path, 0o755)
		case nar.TypeSymlink:
			err = os.Symlink(h.Target, path)
		case nar.TypeRegular:
			err = extractFile(n, path, h.Executable)
		}
		if err != nil {
			return err
		}
	}
}

func extractFile(r io.Reader, path string, executable bool) error {
	mode := os.FileMode(0o644)
	if executable {
		mode = 0o755
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Close()
}

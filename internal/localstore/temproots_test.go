package localstore

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"firn/nix"
)

// newState returns a state directory as empty as it may be.
func newState(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"temproots", "gc-socket"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func newRoots(t *testing.T, stateDir string) *rootsFile {
	t.Helper()
	roots, err := newRootsFile(stateDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(roots.close)
	return roots
}

// rootOf returns any store path.
func rootOf(t *testing.T) nix.StorePath {
	t.Helper()
	path, err := nix.DefaultStoreDir.ParseBase(strings.Repeat("1", 32) + "-x")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// lockFile opens a file and locks it, until the test ends.
func lockFile(t *testing.T, path string, how int) error {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return flock(file, how|syscall.LOCK_NB)
}

// A client that goes away at whatever moment of telling a collector does no harm.
func TestGoneWhileTelling(t *testing.T) {
	stateDir := newState(t)
	if err := lockFile(t, filepath.Join(stateDir, "gc.lock"), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	collector, err := net.Listen("unix", filepath.Join(stateDir, "gc-socket/socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer collector.Close()
	go func() {
		for {
			conn, err := collector.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					io.WriteString(conn, "1")
				}
			}()
		}
	}()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	roots, path := newRoots(t, stateDir), rootOf(t)
	for range 1000 {
		if err := roots.add(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		roots.add(gone, path)
	}
}

// Nix before 2.5 reads the file under a shared lock, for which its collector would wait; no collector takes the file for a dead one's.
func TestRootsFileIsRead(t *testing.T) {
	roots := newRoots(t, newState(t))
	if err := lockFile(t, roots.file.Name(), syscall.LOCK_EX); err != syscall.EWOULDBLOCK {
		t.Errorf("an exclusive lock: %v, want %v", err, syscall.EWOULDBLOCK)
	}
	if err := lockFile(t, roots.file.Name(), syscall.LOCK_SH); err != nil {
		t.Errorf("a shared lock: %v", err)
	}
}

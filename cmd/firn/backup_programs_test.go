//go:build programs

package main

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"firn/internal/cache/cachetest"
	"firn/nix"
)

// A disk that is full in the middle of it leaves the backup that was there.
func TestBackupToFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test has to be run as root, to make a small disk")
	}
	a := newAdmin(t)
	disk := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(disk, "backup")
	token := a.mustRun("token", "create", "--push", "main", "ci")
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "path", "contents")
	a.push("", token, p, http.StatusCreated)
	a.backedUp(dir)
	before, err := os.ReadFile(filepath.Join(dir, "depot/catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 12<<20)
	f, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(random); err != nil {
		t.Fatal(err)
	}
	a.push("", token, cachetest.NewPath(t, nix.DefaultStoreDir, "large", string(random)), http.StatusCreated)
	if said, code := a.fails("backup", dir); code != exitFailure || !strings.Contains(said, "no space left on device") {
		t.Errorf("with code %d it says %s", code, said)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "depot/catalog.db")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the catalog has changed, %v", err)
	}
	a.wantBackup(dir, token, p)
}

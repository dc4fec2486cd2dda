package logs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// nobody is the user that the logs are for; where root does not run the tests, there is nobody else.
func nobody() (uid, gid int) {
	if os.Geteuid() == 0 {
		return 65534, 65533
	}
	return os.Geteuid(), os.Getegid()
}

func wantOwner(t *testing.T, path string, uid, gid int) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); int(stat.Uid) != uid || int(stat.Gid) != gid {
		t.Errorf("%s is of %d:%d, want %d:%d", path, stat.Uid, stat.Gid, uid, gid)
	}
}

// A log that is made is that of the user; one that is there stays whose it is.
func TestOpenFor(t *testing.T) {
	uid, gid := nobody()
	dir := t.TempDir()
	made, kept := filepath.Join(dir, "made"), filepath.Join(dir, "kept")
	if err := os.WriteFile(kept, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{made, kept} {
		f, err := OpenFor(path, uid, gid)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		write(t, f, "new\n")
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		if err := f.Reopen(); err != nil { // a signal, before the rights are given up
			t.Fatal(err)
		}
		wantOwner(t, path, uid, gid)
	}
	want(t, made+".1", "new\n")
	want(t, kept+".1", "old\nnew\n")
	wantOwner(t, made+".1", uid, gid)
	wantOwner(t, kept+".1", os.Geteuid(), os.Getegid())
	if info, err := os.Stat(kept + ".1"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the mode of the old one: %v, %v", info.Mode(), err)
	}
}

// Nothing that the user can put at the path leads to a file of root's.
func TestOpenForTraps(t *testing.T) {
	uid, gid := nobody()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.Mkdir(at("of-root"), 0o700),
		os.WriteFile(at("of-root/shadow"), []byte("keep"), 0o600),
		os.Symlink(at("of-root/shadow"), at("link")),
		os.Symlink(at("of-root/new"), at("dangling")),
		os.Symlink(at("of-root"), at("directory")),
		os.Link(at("of-root/shadow"), at("hard")),
		syscall.Mkfifo(at("pipe"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	const link = "name the file itself, without symbolic links"
	for name, want := range map[string]string{
		"link": link, "dangling": link, "directory/shadow": link, "directory/new": link,
		"hard": "by a hard link; ", "pipe": syscall.ENXIO.Error(), "of-root": "is a directory", "no/log": "make its directory first",
	} {
		f, err := OpenFor(at(name), uid, gid)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	want(t, at("of-root/shadow"), "keep")
	wantOwner(t, at("of-root/shadow"), os.Geteuid(), os.Getegid())
	if _, err := os.Lstat(at("of-root/new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made where a link leads to: %v", err)
	}
}

// Standard output, wherever it goes, is written to and not given away.
func TestOpenForStdout(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	saved, err := syscall.Dup(1)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(saved)
	if err := unix.Dup2(int(out.Fd()), 1); err != nil {
		t.Fatal(err)
	}
	uid, gid := nobody()
	f, err := OpenFor("/dev/stdout", uid, gid)
	if err := unix.Dup2(saved, 1); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write(t, f, "line\n")
	want(t, path, "line\n")
	wantOwner(t, path, os.Geteuid(), os.Getegid())
}

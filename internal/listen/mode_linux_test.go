package listen

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The mode is never set by way of the path, where who may write to the directory could have put a link meanwhile.
func TestUnixSocketModeNotByPath(t *testing.T) {
	dir := t.TempDir()
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_ATTRIB|unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, mode := range []fs.FileMode{0o660, 0o600, socketMode} {
		path := filepath.Join(dir, mode.String())
		ln, err := (Address{network: "unix", name: path}).Open(t.Context(), Options{Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("mode %v, %v, want %v", info.Mode(), err, mode)
		}
	}
	// One that cannot be made leaves the umask alone, too.
	if ln, err := (Address{network: "unix", name: filepath.Join(dir, strings.Repeat("x", 200))}).Open(t.Context(), Options{}); err == nil {
		ln.Close()
		t.Error("a path that is too long is a socket")
	}
	if now := syscall.Umask(0o077); now != 0o077 {
		t.Errorf("the umask is %o afterwards", now)
	}
	made := 0
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(watch, buf)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < n; {
			event := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at]))
			switch {
			case event.Mask&unix.IN_CREATE != 0:
				made++
			case event.Mask&unix.IN_ATTRIB != 0 && event.Mask&unix.IN_ISDIR == 0:
				t.Errorf("something was changed at the path of socket %d", made)
			}
			at += unix.SizeofInotifyEvent + int(event.Len)
		}
	}
	if made != 3 {
		t.Errorf("%d sockets were seen, want 3", made)
	}
}

package sqlite

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"firn/internal/catalog"
)

// A quota that is used up is a disk that is full.
//
// The kernel refuses whatever is written to files from some moment on, for good: so the test runs again in a process of its own.
func TestQuota(t *testing.T) {
	if os.Getenv(childVariable) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestQuota$", "-test.v")
		cmd.Env = append(os.Environ(), childVariable+"=quota")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestQuota ")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	c := openAt(t, filepath.Join(dir, "catalog.db"), Options{})
	cache, err := addCache(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	if err := push(t.Context(), c, cache, "first"); err != nil {
		t.Fatal(err)
	}
	refuseWrites(t, unix.EDQUOT)
	for range 2 {
		if err := push(t.Context(), c, cache, "second"); !errors.Is(err, catalog.ErrFull) || !errors.Is(err, unix.EDQUOT) {
			t.Errorf("error %v, want %v", err, catalog.ErrFull)
		}
	}
	if n, err := c.CountIn(t.Context(), cache); err != nil || n.Paths != 1 {
		t.Errorf("%d paths, %v", n.Paths, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "room*")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// refuseWrites has the kernel answer an error to whoever writes more than a few bytes, in all of the process and from now on.
func refuseWrites(t *testing.T, with unix.Errno) {
	t.Helper()
	const (
		few                  = 256 // what the runtime wakes itself with, and what the test says, is less
		number, size         = 0, 16 + 2*8
		load, equal, greater = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
		answer               = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: number},
		{Code: equal, K: unix.SYS_WRITE, Jt: 1},
		{Code: equal, K: unix.SYS_PWRITE64, Jf: 2},
		{Code: load, K: size},
		{Code: greater, K: few, Jt: 1},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(with)},
	}
	runtime.LockOSThread() // what is allowed is asked of the thread
	defer runtime.UnlockOSThread()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, err := unix.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); err != 0 {
		t.Fatal(err)
	}
	// For all threads: those that there are already need no_new_privs too, which they get by the same call.
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); err != 0 {
		t.Fatal(err)
	}
}

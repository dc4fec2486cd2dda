//go:build programs

package zstdcache

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"firn/internal/cache"
)

// On a full disk nothing is lost and nothing fails: what is kept goes to make room,
// and where that is not enough, everyone is sent the same bytes without them being kept.
//
// The disk is a tmpfs of a mount namespace, so the test runs again in a process that has one.
func TestFullDisk(t *testing.T) {
	dir := os.Getenv(childVariable)
	if dir == "" {
		cmd := childCommand(t, t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if os.Getuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		}
		if out, err := cmd.Output(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestFullDisk ")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}

	elsewhere := newHouse(t, Options{}) // with room enough
	h := newHouse(t, Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	h.Close()
	h.dir = filepath.Join(dir, "zstd")
	h.start()
	defer h.Close()
	same := func(d *dump, got []byte) {
		t.Helper()
		if !bytes.Equal(got, elsewhere.encode(d)) {
			t.Error("other bytes")
		}
	}

	// What was used longest ago makes room.
	var small []*dump
	for i := range 5 {
		small = append(small, incompressible(900_000, uint64(i)))
		same(small[i], h.encode(small[i]))
		h.pass(time.Second)
	}
	h.wantKept([]bool{false, true, true, true, true}, small...)

	// The first frame of this one finds room, the second does not.
	large := newDump(append(make([]byte, frameSize), incompressible(6<<20, 9).data...))
	g := newGate(large)
	g.to(frameSize + 1)
	var got [4]bytes.Buffer
	var reading sync.WaitGroup
	for i := range got {
		n, err := h.Encode(t.Context(), large.info, large.open)
		if err != nil {
			t.Fatal(err)
		}
		reading.Go(func() {
			defer n.Close()
			if i == 0 {
				if err := n.(cache.Unfinished).Wait(t.Context()); !errors.Is(err, errNotKept) {
					t.Errorf("Wait returned %v", err)
				}
			}
			if err := n.WriteRange(t.Context(), &got[i], 0, -1); err != nil {
				t.Error(err)
			}
		})
	}
	g.to(1 << 40)
	reading.Wait()
	for i := range got {
		same(large, got[i].Bytes())
	}
	wantFiles(t, h.dir, 0)

	// With the disk full of what is not ours, no file can be kept at all.
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	if _, err := io.Copy(ballast, io.LimitReader(neverEnding{}, 1<<30)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	all := []*dump{randomDump(100_000, 1), randomDump(100, 2), incompressible(frameSize+1, 3)}
	for range 2 { // the second is after the first has found out
		for _, d := range all {
			same(d, h.encode(d))
		}
	}
	wantFiles(t, h.dir, 0)
	if _, err := h.Encode(t.Context(), all[0].info, missing); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("a path that is gone: %v", err)
	}
	if s := h.Stats(); s.Direct < 6 || s.Files != 0 || s.Bytes != 0 {
		t.Errorf("stats: %+v", s)
	}

	// When there is room again, it is found after a while.
	if err := ballast.Truncate(0); err != nil {
		t.Fatal(err)
	}
	h.pass(fullFor)
	for _, d := range all[:2] {
		same(d, h.encode(d))
	}
	h.wantKept([]bool{true, true, false}, all...)
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

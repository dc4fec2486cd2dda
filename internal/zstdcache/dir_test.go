package zstdcache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"firn/nix"
)

// incompressible returns a dump whose file has about its own size.
func incompressible(size int, seed uint64) *dump {
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rng.Read(data)
	return newDump(data)
}

// A restart finds what was kept, and the order in which it was used, even with a smaller bound.
func TestRestart(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash=%v", crash), func(t *testing.T) {
			const n = 8
			h := newHouse(t, Options{})
			var d []*dump
			var kept [][]byte
			for i := range n {
				d = append(d, randomDump(1000+i*200_000, uint64(i)))
				kept = append(kept, h.encode(d[i]))
				h.pass(time.Second)
			}
			h.pass(time.Hour)
			order := rand.New(rand.NewPCG(5, 5)).Perm(n)
			for _, i := range order {
				h.encode(d[i])
				h.pass(time.Minute)
			}
			if crash { // as if it never had the time to write its times
				h.Cache.dir.files = newLRU[nix.Hash, *file]()
			}
			h.restart()
			for _, i := range order {
				if !bytes.Equal(h.encode(d[i]), kept[i]) {
					t.Error("other bytes after a restart")
				}
				h.pass(time.Minute)
			}
			if s := h.Stats(); s.Hits != n || s.Misses != 0 {
				t.Errorf("stats: %+v", s)
			}
			last := d[order[n-1]]
			h.opts.Size = onDisk(int64(len(kept[order[n-1]])))
			h.restart()
			want := make([]bool, n)
			want[order[n-1]] = true
			h.wantKept(want, d...)
			if s := h.Stats(); s.Bytes > h.opts.Size {
				t.Errorf("stats: %+v", s)
			}
			if !bytes.Equal(h.encode(last), kept[order[n-1]]) {
				t.Error("other bytes after a restart")
			}
		})
	}
}

// Files that are damaged or removed under a running cache are made again.
func TestDamage(t *testing.T) {
	h := newHouse(t, Options{})
	d := randomDump(200_000, 1)
	want := h.encode(d)
	f, _ := h.Cache.dir.files.Peek(d.info.NARHash)
	path := filepath.Join(h.dir, h.Cache.dir.name(f))
	for _, damage := range []func() error{
		func() error { return os.Truncate(path, 1000) },
		func() error { return os.Remove(path) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if got := h.encode(d); !bytes.Equal(got, want) {
			t.Error("other bytes")
		}
		wantFiles(t, h.dir, 1)
	}
	// For one that gets shorter while it is open, it is too late. But the next who asks is not served it.
	h.encode(d)
	n, err := h.Encode(t.Context(), d.info, d.open)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	if err := n.WriteRange(t.Context(), new(bytes.Buffer), 0, n.Size()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that has become shorter: %v", err)
	}
	n.Close()
	if got := h.encode(d); !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
}

func TestTinyMemory(t *testing.T) {
	h := newHouse(t, Options{})
	const n = tinyMemory/tinySize + 50
	for range 2 {
		for i := range n {
			d := incompressible(tinySize-100, uint64(i))
			if !bytes.Equal(h.encode(d), h.encode(d)) {
				t.Fatal("other bytes")
			}
		}
	}
	if got := h.Cache.dir.tiny.Cost(); got > tinyMemory || got < tinyMemory/2 {
		t.Errorf("%d bytes are in memory", got)
	}
}

func FuzzParseName(f *testing.F) {
	hash := nix.SHA256Sum([32]byte{1, 2, 3}).Nix32()
	f.Add(hash + "-123.v1-default.zst")
	f.Add(hash + "-0.v1-default.zst")
	f.Add("making-17")
	f.Fuzz(func(t *testing.T, name string) {
		hash, size, version, ok := parseName(name)
		if !ok {
			return
		}
		d := &dir{version: version}
		if again := d.name(&file{hash: hash, size: size}); again != name {
			t.Errorf("%q is written as %q", name, again)
		}
	})
}

// A NAR is made twice at once when it is asked for just after the first who asked has gone.
// Then nothing stays open of the file that is replaced.
func TestMadeTwice(t *testing.T) {
	h := newHouse(t, Options{})
	d := incompressible(100<<10, 1)
	data := h.encode(d)
	h.encode(d) // from the file, which stays open
	dir := h.Cache.dir
	if n := dir.idle.Len(); n != 1 {
		t.Fatalf("%d files are kept open, want one", n)
	}
	again, err := dir.begin()
	if err != nil {
		t.Fatal(err)
	}
	defer again.file.Close()
	if err := errors.Join(again.write(data), again.keep(d.info.NARHash)); err != nil {
		t.Fatal(err)
	}
	if n := dir.idle.Len(); n != 0 {
		t.Errorf("%d files are kept open of what was replaced", n)
	}
	if !bytes.Equal(h.encode(d), data) {
		t.Error("the bytes are others")
	}
}

package zstdcache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
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

func TestEviction(t *testing.T) {
	const each = 100 << 10 // less than 25 blocks, more than 24, of what it becomes
	h := newHouse(t, Options{Size: 4 * 26 * blockSize})
	var d []*dump
	for i := range 5 {
		d = append(d, incompressible(each, uint64(i)))
	}
	for i := range 4 {
		h.encode(d[i])
		h.pass(time.Hour)
	}
	h.wantKept([]bool{true, true, true, true, false}, d...)
	h.encode(d[0])
	h.pass(time.Hour)

	reading, err := h.Encode(t.Context(), d[1].info, d[1].open)
	if err != nil {
		t.Fatal(err)
	}
	h.pass(time.Hour)
	h.encode(d[2])
	h.encode(d[0])
	h.encode(d[4]) // 3 was used longest ago
	h.wantKept([]bool{true, true, true, false, true}, d...)
	h.encode(d[3]) // and now 1
	h.wantKept([]bool{true, false, true, true, true}, d...)
	wantFiles(t, h.dir, 4)
	if s := h.Stats(); s.Evictions != 2 || s.Bytes > h.opts.Size || s.Files != 4 {
		t.Errorf("stats: %+v", s)
	}

	// Who reads a file that is evicted meanwhile reads it to its end.
	var b bytes.Buffer
	if err := reading.WriteRange(t.Context(), &b, 0, reading.Size()); err != nil {
		t.Error(err)
	}
	reading.Close()
	if !bytes.Equal(unzstd(t, b.Bytes()), d[1].data) {
		t.Error("other bytes of what was evicted")
	}
	if again := h.encode(d[1]); !bytes.Equal(again, b.Bytes()) {
		t.Error("other bytes after it was evicted and made again")
	}
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

// What is not whole is not served; what is not ours is left alone.
func TestScan(t *testing.T) {
	h := newHouse(t, Options{})
	d := make([]*dump, 4)
	for i := range d {
		d[i] = randomDump(50_000, uint64(i))
		h.encode(d[i])
	}
	path := func(d *dump) string {
		f, _ := h.Cache.dir.files.Peek(d.info.NARHash)
		return filepath.Join(h.dir, h.Cache.dir.name(f))
	}
	short, long, other := path(d[1]), path(d[2]), path(d[3])
	h.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Truncate(short, 1000))
	must(os.Truncate(long, 1_000_000))
	must(os.Rename(other, strings.Replace(other, "v1-default", "v0-default", 1)))
	must(os.WriteFile(filepath.Join(h.dir, "making-1"), []byte("half"), 0o600))
	must(os.WriteFile(filepath.Join(h.dir, "README"), nil, 0o600))
	must(os.Mkdir(filepath.Join(h.dir, "lost+found"), 0o700))

	h.start()
	h.wantKept([]bool{true, false, false, false}, d...)
	wantFiles(t, h.dir, 3)
	for _, d := range d {
		if !bytes.Equal(unzstd(t, h.encode(d)), d.data) {
			t.Error("other bytes")
		}
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

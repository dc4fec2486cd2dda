//go:build programs

package zstdcache

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

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

package zstdcache

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"firn/internal/cache"
)

// The files that are kept open are few, and none stays open.
func TestOpenFiles(t *testing.T) {
	h := newHouse(t, Options{})
	open := func() (n int) {
		t.Helper()
		links, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, h.dir+"/") && strings.Contains(to, suffix) {
				n++
			}
		}
		return n
	}
	h.Cache.dir.maxIdle = 3
	var d []*dump
	for i := range 6 {
		d = append(d, incompressible(tinySize+1, uint64(i)))
		h.encode(d[i])
	}
	for range 2 {
		var all []cache.NAR
		for _, d := range slices.Concat(d, d) {
			n, err := h.Encode(t.Context(), d.info, d.open)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, n)
		}
		if n := open(); n != len(all) {
			t.Errorf("%d files are open for %d readers", n, len(all))
		}
		for _, n := range all {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
		if n := open(); n != 3 {
			t.Errorf("%d files are open for nobody", n)
		}
	}
	n, err := h.Encode(t.Context(), d[0].info, d[0].open)
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	n.Close()
	if n := open(); n != 0 {
		t.Errorf("%d files are open at the end", n)
	}
}

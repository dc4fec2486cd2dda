package nar_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"firn/nix/nar"
)

// TestWriterRefuses: a tree in the wrong order, or with what no NAR can hold.
func TestWriterRefuses(t *testing.T) {
	headless := object{path: "a"}
	for name, c := range map[string]struct {
		tree tree
		msg  string
	}{
		"nothing":             {tree{}, "no root"},
		"no root":             {tree{file("a", "")}, "before the root"},
		"two roots":           {tree{dir(""), dir("")}, "empty"},
		"child of a file":     {tree{file("", ""), file("a", "")}, "not open"},
		"child of a link":     {tree{dir(""), link("a", "b"), file("a/b", "")}, "not open"},
		"no directory":        {tree{dir(""), file("a/b", "")}, "not open"},
		"other directory":     {tree{dir(""), dir("a"), file("b/c", "")}, "not open"},
		"closed directory":    {tree{dir(""), dir("a"), file("b", ""), file("a/c", "")}, "not open"},
		"prefix of directory": {tree{dir(""), dir("ab"), file("a/c", "")}, "not open"},
		"same name":           {tree{dir(""), file("a", ""), file("a", "")}, `after "a"`},
		"unsorted":            {tree{dir(""), file("b", ""), file("a", "")}, `after "b"`},
		"unsorted behind dir": {tree{dir(""), dir("b"), file("b/c", ""), file("a", "")}, `after "b"`},
		"dot":                 {tree{dir(""), file(".", "")}, `"."`},
		"two dots":            {tree{dir(""), file("..", "")}, `".."`},
		"slash at the end":    {tree{dir(""), dir("a"), file("a/", "")}, "empty"},
		"two slashes":         {tree{dir(""), dir("a"), file("a//b", "")}, "not open"},
		"slash at the start":  {tree{dir(""), file("/a", "")}, "not open"},
		"zero byte":           {tree{dir(""), file("a\x00", "")}, "zero byte"},
		"long name":           {tree{dir(""), file(strings.Repeat("n", 256), "")}, "256 bytes"},
		"empty target":        {tree{link("", "")}, "empty"},
		"long target":         {tree{link("", strings.Repeat("t", 4096))}, "4096 bytes"},
		"target with zero":    {tree{link("", "\x00")}, "zero byte"},
		"no type":             {tree{dir(""), headless}, "Type(0)"},
		"depth 64":            {deep(64), "deeper than 63"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.tree.write(io.Discard)
			if err == nil || !strings.Contains(err.Error(), c.msg) {
				t.Errorf("got %v, want %q in it", err, c.msg)
			}
		})
	}
}

// TestWriterCounts: contents must be as long as their header says.
func TestWriterCounts(t *testing.T) {
	begin := func(size int64) *nar.Writer {
		w := nar.NewWriter(io.Discard)
		for _, h := range []nar.Header{{Type: nar.TypeDirectory}, {Path: "a", Type: nar.TypeRegular, Size: size}} {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		return w
	}
	long := begin(2)
	if _, err := long.Write([]byte("abc")); err == nil || long.Close() != err {
		t.Errorf("long contents: %v", err)
	}
	short := begin(2)
	short.Write([]byte("a"))
	if err := short.WriteHeader(&nar.Header{Path: "b", Type: nar.TypeDirectory}); err == nil || short.Close() != err {
		t.Errorf("short contents before a header: %v", err)
	}
	short = begin(1)
	if err := short.Close(); err == nil {
		t.Error("short contents at the end: no error")
	}
	if err := nar.NewWriter(io.Discard).WriteHeader(&nar.Header{Type: nar.TypeRegular, Size: -1}); err == nil {
		t.Error("negative size: no error")
	}
	closed := begin(0)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if closed.Close() == nil || closed.WriteHeader(&nar.Header{Path: "b", Type: nar.TypeDirectory}) == nil {
		t.Error("a closed Writer goes on")
	}
}

// full is a writer that takes a few bytes, and then fails.
type full int

var errFull = errors.New("full")

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), int(*f))
	*f -= full(n)
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func TestWriterReportsErrors(t *testing.T) {
	whole := tree{dir(""), file("a", noise(100_000, 1)), dir("b")}
	for _, room := range []full{0, 100, 40_000, full(len(whole.nar(t)) - 1)} {
		if err := whole.write(&room); !errors.Is(err, errFull) {
			t.Errorf("got %v, want %v", err, errFull)
		}
	}
}

func BenchmarkWriter(b *testing.B) {
	t := manyFiles(1000, 4700)
	size := len(t.nar(b))
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if err := t.write(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReader(b *testing.B) {
	n := manyFiles(1000, 4700).nar(b)
	b.SetBytes(int64(len(n)))
	b.ReportAllocs()
	for b.Loop() {
		r := nar.NewReader(bytes.NewReader(n))
		for {
			_, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				b.Fatal(err)
			}
		}
	}
}

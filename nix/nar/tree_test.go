package nar_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"firn/nix/nar"
)

// object is a file system object of a test's tree.
type object struct {
	path string // relative to the root, which is ""
	typ  nar.Type
	exec bool
	data string // contents or target
}

// header returns the header that the object has in a NAR, its offset not known.
func (o *object) header() *nar.Header {
	h := &nar.Header{Path: o.path, Type: o.typ}
	switch o.typ {
	case nar.TypeRegular:
		h.Executable, h.Size = o.exec, int64(len(o.data))
	case nar.TypeSymlink:
		h.Target = o.data
	}
	return h
}

// tree is a tree in the order of its NAR.
type tree []object

func dir(path string) object           { return object{path: path, typ: nar.TypeDirectory} }
func file(path, data string) object    { return object{path: path, typ: nar.TypeRegular, data: data} }
func program(path, data string) object { return object{path, nar.TypeRegular, true, data} }
func link(path, target string) object  { return object{path: path, typ: nar.TypeSymlink, data: target} }

// nar returns the NAR of the tree, as the Writer makes it.
func (t tree) nar(tb testing.TB) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := t.write(&b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func (t tree) write(to io.Writer) error {
	w := nar.NewWriter(to)
	for i := range t {
		if err := w.WriteHeader(t[i].header()); err != nil {
			return err
		}
		if t[i].typ == nar.TypeRegular {
			if _, err := io.WriteString(w, t[i].data); err != nil {
				return err
			}
		}
	}
	return w.Close()
}

// make makes the tree at a new path of the file system, and returns that.
func (t tree) make(tb testing.TB, at string) string {
	tb.Helper()
	for _, o := range t {
		path := filepath.Join(at, o.path)
		var err error
		switch o.typ {
		case nar.TypeDirectory:
			err = os.Mkdir(path, 0o755)
		case nar.TypeSymlink:
			err = os.Symlink(o.data, path)
		case nar.TypeRegular:
			mode := os.FileMode(0o644)
			if o.exec {
				mode = 0o755
			}
			err = os.WriteFile(path, []byte(o.data), mode)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return at
}

// readTree reads all of a NAR.
func readTree(r io.Reader) (tree, []nar.Header, error) {
	var t tree
	var headers []nar.Header
	for n := nar.NewReader(r); ; {
		h, err := n.Next()
		if err == io.EOF {
			return t, headers, n.CheckEnd()
		}
		if err != nil {
			return nil, nil, err
		}
		o := object{path: h.Path, typ: h.Type, exec: h.Executable, data: h.Target}
		if h.Type == nar.TypeRegular {
			data, err := io.ReadAll(n)
			if err != nil {
				return nil, nil, err
			}
			o.data = string(data)
		}
		t, headers = append(t, o), append(headers, *h)
	}
}

// names are of all kinds that are allowed: plain, awkward, no UTF-8, decomposed, long.
var names = rapid.OneOf(
	rapid.StringMatching(`[a-c]{1,3}`),
	rapid.SampledFrom([]string{"...", " ", "a\nb", "+?= ", "~nix~case~hack~1", "a~nix~case~hack~1", "A", "caf\u00e9", "cafe\u0301", "\xff\xfe", "a\xff", "-", "nix-archive-1", strings.Repeat("n", nar.MaxName)}),
	rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 8), func(b []byte) string {
		s := strings.NewReplacer("/", "_", "\x00", "_").Replace(string(b))
		if s == "." || s == ".." {
			return "_"
		}
		return s
	}),
)

// contents are empty, short, with all kinds of padding, and around the sizes at which the engine changes its ways.
var contents = rapid.OneOf(
	rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 40), func(b []byte) string { return string(b) }),
	rapid.Custom(func(t *rapid.T) string {
		size := rapid.SampledFrom([]int{4095, 4096, 4097, 60_000, 64 << 10, 128<<10 - 1, 128 << 10, 128<<10 + 1, 256 << 10, 300_000}).Draw(t, "size")
		return noise(size, rapid.Uint32().Draw(t, "seed"))
	}),
)

// noise returns bytes without a pattern, the same for the same seed.
func noise(size int, seed uint32) string {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}).Read(b)
	return string(b)
}

// trees draws a random tree.
var trees = rapid.Custom(func(t *rapid.T) tree {
	var all tree
	var grow func(path string, depth int)
	grow = func(path string, depth int) {
		o := object{path: path}
		switch kind := rapid.IntRange(0, 9).Draw(t, "kind"); {
		case kind < 2:
			o.typ, o.data = nar.TypeSymlink, rapid.StringMatching(`[a-z./]{1,20}`).Draw(t, "target")
		case kind < 6 && depth > 0 || depth == 5:
			o.typ, o.exec, o.data = nar.TypeRegular, rapid.Bool().Draw(t, "executable"), contents.Draw(t, "contents")
		default:
			all = append(all, dir(path))
			names := rapid.SliceOfNDistinct(names, 0, 6, rapid.ID).Draw(t, "names")
			slices.Sort(names)
			for _, name := range names {
				grow(strings.TrimPrefix(path+"/"+name, "/"), depth+1)
			}
			return
		}
		all = append(all, o)
	}
	grow("", 0)
	return all
})

// deep returns a tree of directories in each other, the last at the given depth.
func deep(depth int) tree {
	t := tree{dir("")}
	for i := range depth {
		t = append(t, dir(strings.TrimPrefix(t[i].path+"/d", "/")))
	}
	return t
}

// freshDir returns a function that returns paths where nothing is yet.
func freshDir(tb testing.TB) func() string {
	base, n := tb.TempDir(), 0
	return func() string {
		n++
		return filepath.Join(base, fmt.Sprint(n))
	}
}

// manyFiles returns a directory of files of the given size, in directories of a hundred each.
func manyFiles(count, size int) tree {
	t := tree{dir("")}
	data := noise(size, 1)
	for i := range count {
		if i%100 == 0 {
			t = append(t, dir(fmt.Sprintf("d%06d", i)))
		}
		t = append(t, file(fmt.Sprintf("%s/file-%06d", fmt.Sprintf("d%06d", i/100*100), i), data))
	}
	return t
}

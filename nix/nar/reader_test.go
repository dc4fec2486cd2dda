package nar_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/nix"
	"firn/nix/nar"
)

// vectors have hashes that real Nix agrees with.
var vectors = []struct {
	name string
	tree tree
	size int
	hash string // nix32
}{
	{"empty file", tree{file("", "")}, 112, "0ip26j2h11n1kgkz36rl4akv694yz65hr72q4kv4b3lxcbi65b3p"},
	{"file", tree{file("", "hello\n")}, 120, "04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw"},
	{"executable", tree{program("", "hello\n")}, 152, "1yhh619m3cy1mird7f0l7zsmiv9rayqn075zinda2g7rscwn0hv5"},
	{"symlink", tree{link("", "target")}, 120, "0x67g3311ihxwarw846p2jc8wbxmv9bd8ryh7qjpp6d8yb56536b"},
	{"empty directory", tree{dir("")}, 96, "0sjjj9z1dhilhpc8pq4154czrb79z9cm044jvn75kxcjv6v5l2m5"},
	{"directory", tree{dir(""), file("A", "a"), link("B", "A"), dir("a")}, 648, "0qxsg36a4xjib6di89q8nr3sr75zzbx11yfnj7kn4zd5dqhfixjg"},
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			written := v.tree.nar(t)
			sum := sha256.Sum256(written)
			if got := string(nix.AppendNix32(nil, sum[:])); len(written) != v.size || got != v.hash {
				t.Errorf("wrote %d bytes of hash %s, want %d and %s", len(written), got, v.size, v.hash)
			}
			read, _, err := readTree(bytes.NewReader(written))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.tree, read, cmp.AllowUnexported(object{})); diff != "" {
				t.Errorf("read another tree (-want +got):\n%s", diff)
			}
		})
	}
}

// str returns a string as it stands in a NAR.
func str(s string) string {
	return string(binary.LittleEndian.AppendUint64(nil, uint64(len(s)))) + s + strings.Repeat("\x00", -len(s)&7)
}

func strs(words ...string) string {
	var b strings.Builder
	for _, w := range words {
		b.WriteString(str(w))
	}
	return b.String()
}

func raw(node string) string { return str("nix-archive-1") + node }

func rawDir(entries ...string) string {
	return strs("(", "type", "directory") + strings.Join(entries, "") + str(")")
}

func rawEntry(name, node string) string {
	return strs("entry", "(", "name", name, "node") + node + str(")")
}

func rawDeep(depth int) string {
	node := rawDir()
	for range depth {
		node = rawDir(rawEntry("d", node))
	}
	return raw(node)
}

var (
	rawFile = strs("(", "type", "regular", "contents", "hello", ")")
	rawLink = strs("(", "type", "symlink", "target", "t", ")")
)

// refused are NARs that Nix refuses in its version 2.35 and later.
var refused = []struct {
	name   string
	nar    string
	offset int64 // of what is wrong
	msg    string
}{
	{"bad magic", strs("nix-archive-2") + rawFile, 0, `found "nix-archive-2" where "nix-archive-1" has to be`},
	{"long magic", strs(strings.Repeat("x", 33)) + rawFile, 0, "string of 33 bytes where at most 32 may be"},
	{"no node", raw(str(")")), 24, `found ")" where "(" has to be`},
	{"wrong tag for type", raw(strs("(", "kind", "regular", "contents", "", ")")), 40, `found "kind"`},
	{"unknown type", raw(strs("(", "type", "fifo", ")")), 56, `found "fifo"`},
	{"no type", raw(strs("(", ")")), 40, `found ")" where "type" has to be`},
	{"two types", raw(strs("(", "type", "regular", "type", "regular", "contents", "", ")")), 72, `found "type"`},
	{"file without contents", raw(strs("(", "type", "regular", ")")), 72, `found ")"`},
	{"wrong tag for contents", raw(strs("(", "type", "regular", "content", "hello", ")")), 72, `found "content"`},
	{"executable after contents", raw(strs("(", "type", "regular", "contents", "hello", "executable", "", ")")), 104, `found "executable" where ")" has to be`},
	{"executable twice", raw(strs("(", "type", "regular", "executable", "", "executable", "", "contents", "", ")")), 104, `found "executable" where "contents" has to be`},
	{"executable with a value", raw(strs("(", "type", "regular", "executable", "1", "contents", "", ")")), 96, `found "1" where "" has to be`},
	{"contents twice", raw(strs("(", "type", "regular", "contents", "a", "contents", "b", ")")), 104, `found "contents"`},
	{"contents of a symlink", raw(strs("(", "type", "symlink", "contents", "a", ")")), 72, `found "contents" where "target" has to be`},
	{"target of a file", raw(strs("(", "type", "regular", "target", "a", ")")), 72, `found "target"`},
	{"symlink without target", raw(strs("(", "type", "symlink", ")")), 72, `found ")"`},
	{"empty target", raw(strs("(", "type", "symlink", "target", "", ")")), 88, "empty"},
	{"target with a zero byte", raw(strs("(", "type", "symlink", "target", "a\x00b", ")")), 88, "zero byte"},
	{"target of 4096 bytes", raw(strs("(", "type", "symlink", "target", strings.Repeat("t", 4096), ")")), 88, "4096 bytes"},
	{"zero byte in name", raw(rawDir(rawEntry("a\x00b", rawFile))), 128, "zero byte"},
	{"name is a dot", raw(rawDir(rawEntry(".", rawFile))), 128, `"."`},
	{"name is two dots", raw(rawDir(rawEntry("..", rawFile))), 128, `".."`},
	{"empty name", raw(rawDir(rawEntry("", rawFile))), 128, "empty"},
	{"slash in name", raw(rawDir(rawEntry("a/b", rawFile))), 128, "slash"},
	{"name is a slash", raw(rawDir(rawEntry("/", rawFile))), 128, "slash"},
	{"name of 256 bytes", raw(rawDir(rawEntry(strings.Repeat("n", 256), rawFile))), 128, "256 bytes"},
	{"name after node", raw(rawDir(strs("entry", "(", "node") + rawFile + strs("name", "a", ")"))), 112, `found "node" where "name" has to be`},
	{"entry without name", raw(rawDir(strs("entry", "(", "node") + rawFile + strs(")"))), 112, `found "node"`},
	{"entry without node", raw(rawDir(strs("entry", "(", "name", "a", ")"))), 144, `found ")" where "node" has to be`},
	{"two nodes", raw(rawDir(strs("entry", "(", "name", "a", "node") + rawLink + str("node") + rawLink + str(")"))), 256, `found "node"`},
	{"contents of a directory", raw(strs("(", "type", "directory", "contents", "", ")")), 80, `found "contents"`},
	{"duplicate names", raw(rawDir(rawEntry("a", rawLink), rawEntry("a", rawLink))), 320, `"a" comes after "a"`},
	{"unsorted names", raw(rawDir(rawEntry("b", rawLink), rawEntry("a", rawLink))), 320, `"a" comes after "b"`},
	{"names sorted as signed bytes", raw(rawDir(rawEntry("\xff", rawLink), rawEntry("a", rawLink))), 320, "comes after"},
	{"unsorted behind a directory", raw(rawDir(rawEntry("b", rawDir(rawEntry("z", rawLink))), rawEntry("a", rawLink))), 488, `"a" comes after "b"`},
	{"padding of a word", strings.Replace(raw(rawFile), "type\x00\x00\x00\x00", "type\x00\x00\x01\x00", 1), 52, "padding"},
	{"padding of contents", strings.Replace(raw(rawFile), "hello\x00", "hello\x01", 1), 101, "padding"},
	{"padding of a name", strings.Replace(raw(rawDir(rawEntry("name1", rawLink))), "name1\x00", "name1\x01", 1), 141, "padding"},
	{"padding of a target", strings.Replace(raw(rawLink), "t\x00\x00\x00\x00\x00\x00\x00", "t\x00\x00\x00\x00\x00\x00x", 1), 97, "padding"},
	{"depth 64", rawDeep(64), 8664, "deeper than 63 levels"},
	{"contents of 2^63 bytes", raw(strs("(", "type", "regular", "contents") + "\x00\x00\x00\x00\x00\x00\x00\x80"), 88, "too large"},
	{"contents of 2^64-1 bytes", raw(strs("(", "type", "regular", "contents") + "\xff\xff\xff\xff\xff\xff\xff\xff"), 88, "too large"},
	{"contents that end past 2^63", raw(strs("(", "type", "regular", "contents") + "\xf0\xff\xff\xff\xff\xff\xff\x7f"), 88, "too large"},
	{"name of 2^63 bytes", raw(rawDir(strs("entry", "(", "name") + "\x00\x00\x00\x00\x00\x00\x00\x80")), 128, "at most 255"},
	{"trailing byte", raw(rawFile) + "x", 120, "behind the end"},
	{"two NARs", raw(rawFile) + raw(rawFile), 120, "behind the end"},
}

func TestReaderRefuses(t *testing.T) {
	for _, c := range refused {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := readTree(iotest.OneByteReader(strings.NewReader(c.nar)))
			format, ok := errors.AsType[*nar.FormatError](err)
			if !ok {
				t.Fatalf("got %v, want a FormatError", err)
			}
			if !strings.Contains(format.Msg, c.msg) {
				t.Errorf("got %q, want %q in it", format.Msg, c.msg)
			}
			if format.Offset != c.offset {
				t.Errorf("wrong at byte %d, want %d (%v)", format.Offset, c.offset, err)
			}
		})
	}
}

// accepted are NARs that look wrong and are right.
var accepted = map[string]tree{
	"composed and decomposed":     {dir(""), file("cafe\u0301", ""), file("caf\u00e9", "")},
	"names that differ in case":   {dir(""), file("A", ""), file("a", "")},
	"suffix of the case hack":     {dir(""), file("A", ""), file("a~nix~case~hack~1", ""), file("a~nix~case~hack~2", "")},
	"names that are not UTF-8":    {dir(""), file("\x80", ""), file("\xff", "")},
	"newline and blanks":          {dir(""), file(" ", ""), file("+?= ", ""), file("a\nb", "")},
	"name of 255 bytes":           {dir(""), file(strings.Repeat("n", 255), "")},
	"target of 4095 bytes":        {link("", strings.Repeat("t", 4095))},
	"target that is not UTF-8":    {link("", "\xff/..")},
	"depth 63":                    deep(63),
	"name of a word":              {dir(""), dir("entry"), file("entry/)", ")"), file("node", "contents")},
	"sibling after its extension": {dir(""), dir("a"), file("a/z", ""), file("a-", ""), file("aa", "")},
}

func TestReaderAccepts(t *testing.T) {
	for name, want := range accepted {
		t.Run(name, func(t *testing.T) {
			got, _, err := readTree(bytes.NewReader(want.nar(t)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(object{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestReaderTruncated ends a NAR after each of its bytes, as the stream does that breaks.
func TestReaderTruncated(t *testing.T) {
	whole := tree{dir(""), program("a", "hello"), dir("b"), link("b/c", "target"), file("d", "")}.nar(t)
	for n := range whole {
		_, _, err := readTree(bytes.NewReader(whole[:n]))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("after %d bytes: got %v, want %v", n, err, io.ErrUnexpectedEOF)
		}
		broken := io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(os.ErrDeadlineExceeded))
		if _, _, err := readTree(broken); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("broken after %d bytes: got %v, want %v", n, err, os.ErrDeadlineExceeded)
		}
	}
}

// TestReaderLeavesRest reads a NAR out of a longer stream, as the wire protocols have it.
func TestReaderLeavesRest(t *testing.T) {
	stream := bufio.NewReaderSize(strings.NewReader(raw(rawFile)+"rest"), 16)
	r := nar.NewReader(stream)
	for _, want := range []error{nil, io.EOF, io.EOF} {
		if _, err := r.Next(); err != want {
			t.Fatalf("got %v, want %v", err, want)
		}
	}
	if rest, err := io.ReadAll(stream); err != nil || string(rest) != "rest" {
		t.Errorf("got %q, %v behind the NAR", rest, err)
	}
	if r.Offset() != int64(len(raw(rawFile))) {
		t.Errorf("read %d bytes, want %d", r.Offset(), len(raw(rawFile)))
	}
}

// TestReaderSkips reads no contents, or a part of them.
func TestReaderSkips(t *testing.T) {
	long := noise(100_000, 1)
	n := tree{dir(""), file("a", long), file("b", long), link("c", "b")}.nar(t)
	r := nar.NewReader(bytes.NewReader(n))
	for _, read := range []int64{0, 0, 777, 0} {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if _, err := io.CopyN(&b, r, read); err != nil || b.String() != long[:read] {
			t.Errorf("%s: read %d bytes, %v", h.Path, b.Len(), err)
		}
		if h.Type == nar.TypeRegular && string(n[h.Offset:h.Offset+h.Size]) != long {
			t.Errorf("%s: contents are not at %d", h.Path, h.Offset)
		}
	}
	if err := r.CheckEnd(); err == nil {
		t.Error("CheckEnd has nothing against a NAR that has not been read to its end")
	}
	if _, err := r.Next(); err != io.EOF {
		t.Error(err)
	}
	if err := r.CheckEnd(); err != nil {
		t.Error(err)
	}
}

// TestWriteRead: what the Writer writes, the Reader reads.
func TestWriteRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := trees.Draw(t, "tree")
		var b bytes.Buffer
		if err := want.write(&b); err != nil {
			t.Fatal(err)
		}
		got, _, err := readTree(iotest.HalfReader(&b))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(object{})); diff != "" {
			t.Fatalf("-want +got:\n%s", diff)
		}
	})
}

// FuzzReader: a NAR that the Reader takes is the only one of its tree, so that the Writer writes the same bytes again.
func FuzzReader(f *testing.F) {
	for _, v := range vectors {
		f.Add(v.tree.nar(f))
	}
	for _, t := range accepted {
		f.Add(t.nar(f))
	}
	for _, c := range refused {
		f.Add([]byte(c.nar))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		read, _, err := readTree(bytes.NewReader(in))
		if err != nil {
			if _, ok := errors.AsType[*nar.FormatError](err); !ok && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("error of an unknown kind: %v", err)
			}
			return
		}
		if again := read.nar(t); !bytes.Equal(again, in) {
			t.Fatalf("reads %d bytes, writes %d others", len(in), len(again))
		}
	})
}

package nar_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"firn/nix/nar"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func layout(tb testing.TB, path string) *nar.Layout {
	tb.Helper()
	l, err := nar.NewLayout(tb.Context(), path)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// plain hides all methods of a writer but Write.
type plain struct{ io.Writer }

func TestRangesOutside(t *testing.T) {
	path := tree{file("", "hello\n")}.make(t, freshDir(t)())
	l := layout(t, path)
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, 121}, {120, 1}, {121, 0}, {1, 1<<63 - 1}} {
		if err := l.WriteRange(t.Context(), io.Discard, path, r[0], r[1]); err == nil {
			t.Errorf("range %v: no error", r)
		}
	}
	if err := l.WriteRange(t.Context(), io.Discard, path, 120, 0); err != nil {
		t.Error(err)
	}
}

// TestLayoutRefuses: trees that no NAR can hold.
func TestLayoutRefuses(t *testing.T) {
	base := t.TempDir()
	in := func(name string, make func(path string) error) string {
		path := tree{dir(""), file("a", ""), dir("b")}.make(t, filepath.Join(base, name))
		if err := make(filepath.Join(path, "b", "x")); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for path, msg := range map[string]string{
		filepath.Join(base, "nothing"):                                             "no such file",
		in("pipe", func(path string) error { return syscall.Mkfifo(path, 0o600) }): "b/x: a NAR cannot hold a file of type p",
		in("socket", func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			return err
		}): "b/x: a NAR cannot hold a file of type S",
		"/dev/null": "cannot hold a file of type Dc",
		deep(nar.MaxDepth+1).make(t, filepath.Join(base, "deep")): "deeper than 63 levels",
	} {
		_, err := nar.NewLayout(t.Context(), path)
		if err == nil || !strings.Contains(err.Error(), msg) || !strings.HasPrefix(err.Error(), "walk "+path) {
			t.Errorf("%s: got %v, want %q in it", path, err, msg)
		}
	}
	path := deep(nar.MaxDepth).make(t, filepath.Join(base, "deep enough"))
	if _, err := nar.NewLayout(t.Context(), path); err != nil {
		t.Error(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := nar.NewLayout(canceled, manyFiles(1000, 0).make(t, filepath.Join(base, "many"))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestLongPaths has paths that are too long for one system call.
func TestLongPaths(t *testing.T) {
	path := freshDir(t)()
	tree{dir("")}.make(t, path)
	at, err := os.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	for range nar.MaxDepth - 1 {
		name := strings.Repeat("n", nar.MaxName)
		if err := at.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := at.OpenRoot(name)
		at.Close()
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	defer at.Close()
	small, large := noise(1000, 1), noise(1_000_000, 2)
	if err := errors.Join(at.WriteFile("large", []byte(large), 0o644), at.WriteFile("small", []byte(small), 0o644)); err != nil {
		t.Fatal(err)
	}
	l := layout(t, path)
	var got bytes.Buffer
	if err := l.WriteRange(t.Context(), &got, path, 0, l.Size()); err != nil {
		t.Fatal(err)
	}
	read, _, err := readTree(&got)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(read); n != nar.MaxDepth+2 || read[n-2].data != large || read[n-1].data != small {
		t.Errorf("read %d objects, or the wrong contents", n)
	}
}

// meddler changes the tree at the first write.
type meddler struct {
	w      io.Writer
	meddle func()
}

func (m *meddler) Write(p []byte) (int, error) {
	if m.meddle != nil {
		m.meddle()
		m.meddle = nil
	}
	return m.w.Write(p)
}

// readerFrom is a writer to which files are lent.
type readerFrom struct{ io.Writer }

func (r readerFrom) ReadFrom(src io.Reader) (int64, error) { return io.Copy(r.Writer, src) }

// TestChanges changes a tree after its walk, before or while its NAR is written: that is an error, never a NAR of the right length.
func TestChanges(t *testing.T) {
	outside := tree{dir(""), file("large", noise(1_000_000, 1)), file("small", noise(1000, 2))}.make(t, freshDir(t)())
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	replace := func(path string, make func(path string) error) { must(os.RemoveAll(path), make(path)) }
	changes := map[string]func(dir, name string, size int){
		"shorter": func(dir, name string, size int) { must(os.Truncate(filepath.Join(dir, name), int64(size-1))) },
		"empty":   func(dir, name string, _ int) { must(os.Truncate(filepath.Join(dir, name), 0)) },
		"longer":  func(dir, name string, size int) { must(os.Truncate(filepath.Join(dir, name), int64(size+1))) },
		"removed": func(dir, name string, _ int) { must(os.Remove(filepath.Join(dir, name))) },
		"symlink": func(dir, name string, _ int) {
			replace(filepath.Join(dir, name), func(path string) error { return os.Symlink(filepath.Join(outside, name), path) })
		},
		"directory": func(dir, name string, _ int) {
			replace(filepath.Join(dir, name), func(path string) error { return os.Mkdir(path, 0o755) })
		},
		"pipe": func(dir, name string, _ int) {
			replace(filepath.Join(dir, name), func(path string) error { return syscall.Mkfifo(path, 0o600) })
		},
		"parent is a symlink": func(dir, _ string, _ int) {
			replace(dir, func(path string) error { return os.Symlink(outside, path) })
		},
		"parent is a file": func(dir, _ string, _ int) {
			replace(dir, func(path string) error { return os.WriteFile(path, nil, 0o644) })
		},
	}
	fresh := freshDir(t)
	for name, change := range changes {
		for target, size := range map[string]int{"small": 1000, "large": 1_000_000} {
			for when, during := range map[string]bool{"before": false, "during": true} {
				for how, wrap := range map[string]func(io.Writer) io.Writer{"gathered": func(w io.Writer) io.Writer { return plain{w} }, "lent": func(w io.Writer) io.Writer { return readerFrom{w} }} {
					t.Run(fmt.Sprint(name, " ", target, " ", when, " ", how), func(t *testing.T) {
						objects := manyFiles(50, 50_000)
						objects = append(objects, dir("z"), file("z/"+target, noise(size, 7)))
						path := objects.make(t, fresh())
						l := layout(t, path)
						meddle := func() { change(filepath.Join(path, "z"), target, size) }
						var got bytes.Buffer
						w := &meddler{w: &got}
						if during {
							w.meddle = meddle
						} else {
							meddle()
						}
						err := l.WriteRange(t.Context(), wrap(w), path, 0, l.Size())
						if !errors.Is(err, nar.ErrChanged) {
							t.Errorf("got %v, want %v", err, nar.ErrChanged)
						}
						if int64(got.Len()) >= l.Size() {
							t.Errorf("wrote %d bytes of %d", got.Len(), l.Size())
						}
						if _, err := l.Hash(t.Context(), path); !errors.Is(err, nar.ErrChanged) {
							t.Errorf("hash: got %v, want %v", err, nar.ErrChanged)
						}
					})
				}
			}
		}
	}
}

// TestRootChanges: the root itself is something else by now.
func TestRootChanges(t *testing.T) {
	fresh := freshDir(t)
	for name, c := range map[string]struct{ before, after tree }{
		"file gone":                {tree{file("", "hello")}, nil},
		"directory gone":           {tree{dir(""), file("a", "")}, nil},
		"file is a symlink":        {tree{file("", "hello")}, tree{link("", "/etc/passwd")}},
		"file is a directory":      {tree{file("", "hello")}, tree{dir("")}},
		"directory is a symlink":   {tree{dir(""), file("a", "")}, tree{link("", "/etc")}},
		"directory is a file":      {tree{dir(""), file("a", "")}, tree{file("", "")}},
		"file is longer":           {tree{file("", "hello")}, tree{file("", "hello!")}},
		"empty file is longer":     {tree{file("", "")}, tree{file("", "!")}},
		"executable file is short": {tree{program("", "hello")}, tree{program("", "hell")}},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.before.make(t, fresh())
			l := layout(t, path)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			c.after.make(t, path)
			if err := l.WriteRange(t.Context(), io.Discard, path, 0, l.Size()); !errors.Is(err, nar.ErrChanged) {
				t.Errorf("got %v, want %v", err, nar.ErrChanged)
			}
		})
	}
}

// TestVerified: the last bytes are written only if the hash is right.
func TestVerified(t *testing.T) {
	fresh := freshDir(t)
	for name, objects := range map[string]tree{
		"file":       {file("", "hello\n")},
		"large file": {file("", noise(1_000_000, 1))},
		"many files": manyFiles(500, 4700),
		"symlink":    {link("", "target")},
	} {
		t.Run(name, func(t *testing.T) {
			path := objects.make(t, fresh())
			l := layout(t, path)
			want := sha256.Sum256(objects.nar(t))
			var got bytes.Buffer
			if err := l.WriteVerified(t.Context(), &got, path, want); err != nil || !bytes.Equal(got.Bytes(), objects.nar(t)) {
				t.Errorf("wrote %d bytes, %v", got.Len(), err)
			}
			got.Reset()
			want[31] ^= 1
			if err := l.WriteVerified(t.Context(), &got, path, want); !errors.Is(err, nar.ErrMismatch) || int64(got.Len()) >= l.Size() {
				t.Errorf("wrote %d bytes of %d, %v, want %v", got.Len(), l.Size(), err, nar.ErrMismatch)
			}
		})
	}
}

// TestStops: after an error of the writer, or a cancelled context, nothing more is written, and nothing stays open or running.
func TestStops(t *testing.T) {
	objects := append(manyFiles(500, 4700), file("z", noise(1_000_000, 1)))
	path := objects.make(t, freshDir(t)())
	l := layout(t, path)
	before := openFiles(t)
	writes := map[string]func(context.Context, io.Writer) error{
		"range":    func(ctx context.Context, w io.Writer) error { return l.WriteRange(ctx, w, path, 0, l.Size()) },
		"verified": func(ctx context.Context, w io.Writer) error { return l.WriteVerified(ctx, w, path, [32]byte{}) },
	}
	for name, write := range writes {
		for _, room := range []full{0, 1, 300_000, 2_000_000, full(l.Size() - 600_000)} {
			if err := write(t.Context(), &room); !errors.Is(err, errFull) {
				t.Errorf("%s: got %v, want %v", name, err, errFull)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		var got bytes.Buffer
		err := write(ctx, &meddler{w: &got, meddle: func() { cancel(errFull) }})
		if !errors.Is(err, errFull) || int64(got.Len()) > l.Size()/2 {
			t.Errorf("%s: cancelled after %d bytes of %d with %v", name, got.Len(), l.Size(), err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// openFiles counts the file descriptors of this process.
func openFiles(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}

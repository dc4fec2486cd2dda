package dir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"firn/internal/depot/blob"
	"firn/internal/depot/blob/blobtest"
	"firn/internal/depot/blob/dir"
)

func open(t testing.TB, path string, opts dir.Options) *dir.Store {
	t.Helper()
	opts.Make = true
	s, err := dir.Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	blobtest.Test(t, func(t testing.TB) blob.Store {
		return open(t, filepath.Join(t.TempDir(), "state", "packs"), dir.Options{})
	})
}

// Whatever call fails, alone or with all behind it, only a whole blob is ever to be seen,
// none that was aborted stays unless it cannot be removed, and Sweep finds all else.
func TestFaults(t *testing.T) {
	for _, abort := range []bool{true, false} {
		for _, forever := range []bool{true, false} {
			for failing := 0; ; failing++ {
				if !testFault(t, failing, forever, abort) {
					if failing < 8 {
						t.Errorf("there were %d calls only", failing)
					}
					break
				}
			}
		}
	}
}

// testFault fails one call, or it and all that follow, and reports whether there were so many.
func testFault(t *testing.T, failing int, forever, abort bool) bool {
	path := filepath.Join(t.TempDir(), "packs")
	broken := errors.New("broken")
	var failed []string
	calls := 0
	fault := func(call, path string) error {
		calls++
		if calls-1 == failing || forever && calls-1 > failing {
			failed = append(failed, call)
			return broken
		}
		return nil
	}
	err := write(t, path, dir.Options{Fault: fault}, abort)
	if len(failed) == 0 {
		if err != nil {
			t.Fatal(err)
		}
		return false
	}
	what := fmt.Sprintf("%v fail, abort %v", failed, abort)
	// What fails to be removed by Abort, after all is written, is no error of the commit.
	if !errors.Is(err, broken) {
		t.Errorf("%s: error %v", what, err)
	}

	s := open(t, path, dir.Options{})
	if err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	var left []string
	err = filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != dir.Marker {
			left = append(left, e.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case len(left) == 0:
	case len(left) > 1 || left[0] != "blob":
		t.Errorf("%s: left %v", what, left)
	case failed[0] != "syncdir" || abort && !forever:
		t.Errorf("%s: the blob is there", what)
	default:
		got, err := os.ReadFile(filepath.Join(path, "bl", "blob"))
		if err != nil || string(got) != "some bytessome bytes" {
			t.Errorf("%s: the blob is not whole: %q, error %v", what, got, err)
		}
	}
	return true
}

// write writes a blob, and leaves it as a process does that ends there, unless it is to be aborted.
func write(t *testing.T, path string, opts dir.Options, abort bool) error {
	opts.Make = true
	s, err := dir.Open(path, opts)
	if err != nil {
		return err
	}
	w, err := s.Create(t.Context(), "blob")
	if err != nil {
		return err
	}
	if abort {
		defer w.Abort()
	} else {
		defer dir.Vanish(w)
	}
	for range 2 {
		if _, err := w.Write([]byte("some bytes")); err != nil {
			return err
		}
	}
	return w.Commit(t.Context())
}

// A blob that a write failed for is never committed: it has a hole.
func TestNoCommitAfterFailedWrite(t *testing.T) {
	full := errors.New("full")
	s := open(t, t.TempDir(), dir.Options{Fault: func(call, path string) error {
		if call == "write" {
			return full
		}
		return nil
	}})
	w, err := s.Create(t.Context(), "blob")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if n, err := w.Write([]byte("some bytes")); n != 5 || !errors.Is(err, full) {
		t.Errorf("wrote %d bytes, error %v", n, err)
	}
	if err := w.Commit(t.Context()); !errors.Is(err, full) {
		t.Errorf("commit: error %v", err)
	}
}

// TestSlowWriter: a blob is as old as its commit, and not as its last byte, which may have come a day before.
func TestSlowWriter(t *testing.T) {
	path := t.TempDir()
	s := open(t, path, dir.Options{})
	w, err := s.Create(t.Context(), "slow.pack")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write([]byte("bytes")); err != nil {
		t.Fatal(err)
	}
	begun, err := filepath.Glob(filepath.Join(path, "*", ".slow.pack.*"))
	if err != nil || len(begun) != 1 {
		t.Fatalf("begun files: %q, %v", begun, err)
	}
	start := time.Now().Add(-time.Minute)
	yesterday := start.Add(-25 * time.Hour)
	if err := os.Chtimes(begun[0], yesterday, yesterday); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = s.List(t.Context(), func(i blob.Info) error {
		if i.Modified.Before(start) {
			t.Errorf("%s was committed at %s", i.Name, i.Modified)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAbsent: a directory without the marker has not lost its blobs, it is another one; nothing is
// written to it.
func TestAbsent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "packs")
	for _, there := range []bool{false, true} {
		if there {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		s, err := dir.Open(path, dir.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, opened := s.Open(t.Context(), "blob")
		_, created := s.Create(t.Context(), "blob")
		for what, err := range map[string]error{"Check": s.Check(t.Context()), "Open": opened, "Create": created} {
			if !errors.Is(err, blob.ErrAbsent) || errors.Is(err, blob.ErrNotFound) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if left, err := os.ReadDir(path); there && (err != nil || len(left) > 0) {
			t.Errorf("there is %v, %v", left, err)
		}
	}
	s, err := dir.Open(path, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, dir.Marker), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), "blob"); !errors.Is(err, blob.ErrNotFound) {
		t.Error(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	// A folder that this process has made may go with its disk.
	for range 2 {
		w, err := s.Create(t.Context(), "blob")
		if err != nil {
			t.Fatal(err)
		}
		w.Abort()
		if err := os.Remove(filepath.Join(path, "bl")); err != nil {
			t.Fatal(err)
		}
	}
}

// What a live writer has is not swept, however old; what it left behind is.
func TestSweep(t *testing.T) {
	s := open(t, t.TempDir(), dir.Options{})
	w, err := s.Create(t.Context(), "slow")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	later := time.Now().Add(time.Hour)
	if err := s.Sweep(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Errorf("a blob was swept while it was written: %v", err)
	}

	if w, err = s.Create(t.Context(), "left"); err != nil {
		t.Fatal(err)
	}
	path := dir.Vanish(w)
	for _, step := range []struct {
		before time.Time
		there  bool
	}{{time.Now().Add(-time.Hour), true}, {later, false}} {
		if err := s.Sweep(t.Context(), step.before); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); (err == nil) != step.there {
			t.Errorf("after a sweep of what is older than %v: %v", step.before, err)
		}
	}
	b, err := s.Open(t.Context(), "slow")
	if err != nil {
		t.Fatalf("a blob was swept: %v", err)
	}
	b.Close()
}

// What else is in the directory is no blob, and stays.
func TestForeignFiles(t *testing.T) {
	path := t.TempDir()
	s := open(t, path, dir.Options{})
	if err := os.Mkdir(filepath.Join(path, "ab"), 0o755); err != nil {
		t.Fatal(err)
	}
	foreign := []string{"README", "ab/cdef", "ab/UPPER"}
	for _, name := range foreign {
		if err := os.WriteFile(filepath.Join(path, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(path, "ab", "abdir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.List(t.Context(), func(i blob.Info) error { return errors.New(i.Name) }); err != nil {
		t.Errorf("listed %v", err)
	}
	if err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	for _, name := range foreign {
		if _, err := os.Lstat(filepath.Join(path, name)); err != nil {
			t.Error(err)
		}
	}
}

// Writers that take a file get sections of the one that is open: a hundred ranges at once take one
// file descriptor, and have the right bytes also when the blob is deleted half-way.
func TestHandsFilesOver(t *testing.T) {
	s := open(t, t.TempDir(), dir.Options{})
	data := bytes.Repeat([]byte("0123456789"), 1000)
	w, err := s.Create(t.Context(), "blob")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := s.Open(t.Context(), "blob")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()

	// Each taker writes the next range while it has a file.
	const takers = 100
	files := map[*os.File]bool{}
	before := openFiles(t)
	var nest func(depth int) io.Writer
	nest = func(depth int) io.Writer {
		return takesFiles{func(r io.Reader) (int64, error) {
			section, ok := r.(*io.SectionReader)
			if !ok {
				t.Fatalf("it was given a %T", r)
			}
			whole, _, _ := section.Outer()
			f, ok := whole.(*os.File)
			if !ok {
				t.Fatalf("it was given a section of a %T", whole)
			}
			files[f] = true
			first := make([]byte, 10)
			if _, err := io.ReadFull(r, first); err != nil {
				t.Fatal(err)
			}
			if depth == takers/2 {
				if err := s.Delete(t.Context(), "blob"); err != nil {
					t.Error(err)
				}
			}
			if depth == takers {
				if now := openFiles(t); now != before {
					t.Errorf("%d files are open while %d ranges are read, and %d were before", now, takers, before)
				}
				var rest bytes.Buffer
				if err := b.WriteRange(t.Context(), &rest, 7, 9000); err != nil || !bytes.Equal(rest.Bytes(), data[7:9007]) {
					t.Errorf("a deleted blob: error %v", err)
				}
			} else if err := b.WriteRange(t.Context(), nest(depth+1), int64(depth+1), 5000); err != nil {
				t.Error(err)
			}
			rest, err := io.ReadAll(r)
			if got := append(first, rest...); !bytes.Equal(got, data[depth:depth+5000]) {
				t.Errorf("range %d has other bytes", depth)
			}
			return 5000, err
		}}
	}
	if err := b.WriteRange(t.Context(), nest(0), 0, 5000); err != nil {
		t.Error(err)
	}
	if len(files) != 1 {
		t.Errorf("%d files were handed over, want one", len(files))
	}
}

// openFiles returns how many files this process has open.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

type takesFiles struct {
	readFrom func(io.Reader) (int64, error)
}

func (w takesFiles) Write([]byte) (int, error)               { return 0, errors.New("it was given bytes") }
func (w takesFiles) ReadFrom(r io.Reader) (n int64, e error) { return w.readFrom(r) }

// Many ranges at once over connections have the right bytes.
func TestConnections(t *testing.T) {
	s := open(t, t.TempDir(), dir.Options{})
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i >> 3 * 7)
	}
	w, err := s.Create(t.Context(), "blob")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := s.Open(t.Context(), "blob")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const conns = 8
	done := make(chan error)
	for i := range conns {
		go func() {
			c, err := l.Accept()
			if err == nil {
				err = errors.Join(b.WriteRange(t.Context(), c, 0, int64(len(data))), c.Close())
			}
			done <- err
		}()
		go func() {
			c, err := net.Dial("tcp", l.Addr().String())
			if err == nil {
				var got []byte
				got, err = io.ReadAll(c)
				if err == nil && !bytes.Equal(got, data) {
					err = fmt.Errorf("connection %d: other bytes", i)
				}
				c.Close()
			}
			done <- err
		}()
	}
	for range 2 * conns {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Room is what df says.
func TestRoom(t *testing.T) {
	path := t.TempDir()
	free, all, err := open(t, path, dir.Options{}).Room(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("df", "--portability", "--block-size=1", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(strings.Split(string(out), "\n")[1])
	size, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		t.Fatalf("df says %s", out)
	}
	if all != size || free < 0 || free > all {
		t.Errorf("%d bytes are free of %d; df says %s", free, all, out)
	}
}

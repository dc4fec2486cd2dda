package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A blockade is a disk that takes what it is given only when it is told to.
type blockade struct {
	turns chan struct{}
	mu    sync.Mutex
	text  bytes.Buffer
}

func (b *blockade) Write(p []byte) (int, error) {
	<-b.turns
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *blockade) lines() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Count(b.text.Bytes(), []byte("\n"))
}

// Lines are written soon, many at once, and none is lost at the end.
func TestRequestsAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &blockade{turns: make(chan struct{}, 10)}
		for range cap(disk.turns) {
			disk.turns <- struct{}{}
		}
		r := NewRequests(disk, RequestOptions{})
		for range 3 {
			r.Add(example())
		}
		time.Sleep(writeInterval / 2)
		if n := disk.lines(); n != 0 {
			t.Errorf("%d lines were written at once, which take a write each", n)
		}
		time.Sleep(writeInterval)
		if n := disk.lines(); n != 3 {
			t.Errorf("%d lines after the interval, want 3", n)
		}
		if n := len(disk.turns); n != cap(disk.turns)-1 {
			t.Errorf("%d writes, want 1", cap(disk.turns)-n)
		}
		added := 0
		for size := 0; size < writeSize; added++ {
			size += len(Combined.appendTo(nil, example()))
			r.Add(example())
		}
		synctest.Wait()
		if n := disk.lines(); n != 3+added {
			t.Errorf("%d of %d lines: many are to be written without waiting", n-3, added)
		}
		r.Add(example())
		r.Close()
		if n := disk.lines(); n != 4+added {
			t.Errorf("%d lines at the end, want %d", n, 4+added)
		}
	})
}

// Nobody waits for a disk that hangs; what does not fit in memory is counted.
func TestSlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &blockade{turns: make(chan struct{})}
		var said bytes.Buffer
		r := NewRequests(disk, RequestOptions{Logger: slog.New(slog.NewTextHandler(&said, nil))})
		r.Add(example())
		time.Sleep(2 * writeInterval) // the disk has it now, and hangs
		const many = 4 * bufferSize / 100
		for range many {
			r.Add(example())
		}
		if n := cap(r.waiting); n > 2*bufferSize {
			t.Errorf("%d bytes wait, want no more than about %d", n, bufferSize)
		}
		close(disk.turns)
		r.Close()
		lost := 1 + many - disk.lines()
		if want := fmt.Sprintf("requests=%d", lost); lost == 0 || strings.Count(said.String(), want) != 1 {
			t.Errorf("%d lines are missing, and it says\n%s", lost, &said)
		}
	})
}

// What was renamed gets no more lines once the log was opened anew.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	f := open(t, path)
	write(t, f, "one\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, f, "two\n")
	if err := f.Reopen(); err != nil {
		t.Fatal(err)
	}
	write(t, f, "three\n")
	want(t, path+".1", "one\ntwo\n")
	want(t, path, "three\n")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("everybody may read it: %v, %v", info.Mode(), err)
	}

	// One that cannot be opened stays as it is.
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir + ".away") })
	if err := f.Reopen(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "make its directory first") {
		t.Errorf("%v, want a word on the directory", err)
	}
	write(t, f, "four\n")
	want(t, dir+".away/log", "three\nfour\n")
}

// A line that a full disk cut is ended before the next one.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f := open(t, path)
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	// A limit stands for a full disk. Go ignores the signal that comes with it.
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 6, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := f.Write([]byte("one\ntwo\n"))
	if serr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); serr != nil {
		t.Fatal(serr)
	}
	if !errors.Is(err, syscall.EFBIG) {
		t.Fatalf("%v, want EFBIG", err)
	}
	write(t, f, "three\n")
	want(t, path, "one\ntw\nthree\n")
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir:          "open log: open " + dir + ": is a directory",
		dir + "/a/b": "no such file or directory; make its directory first",
	} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	for _, path := range []string{"stderr", "/dev/stderr"} {
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Reopen(), f.Close()); err != nil || f.file != os.Stderr || f.Path() != "" {
			t.Errorf("%s is %v, %v", path, f.file.Name(), err)
		}
		if _, err := os.Stderr.Stat(); err != nil {
			t.Errorf("standard error was closed: %v", err)
		}
	}
}

func open(t *testing.T, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t *testing.T, f *File, line string) {
	t.Helper()
	if _, err := f.Write([]byte(line)); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, path, text string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != text {
		t.Errorf("%s holds %q, %v, want %q", path, got, err, text)
	}
}

// The journal is told how important a record is, and no time.
func TestJournal(t *testing.T) {
	for _, test := range []struct {
		opts HandlerOptions
		want string
	}{
		{HandlerOptions{Level: slog.LevelDebug, Journal: true}, "<7>level=DEBUG msg=a n=1\n<6>level=INFO msg=b n=1\n<4>level=WARN msg=c n=1 g.k=v\n<3>level=ERROR msg=d n=1\n<3>level=ERROR+4 msg=e n=1\n"},
		{HandlerOptions{Level: slog.LevelWarn, Journal: true, JSON: true}, `<4>{"level":"WARN","msg":"c","n":1,"g":{"k":"v"}}` + "\n" +
			`<3>{"level":"ERROR","msg":"d","n":1}` + "\n" + `<3>{"level":"ERROR+4","msg":"e","n":1}` + "\n"},
	} {
		var b bytes.Buffer
		log := slog.New(NewHandler(&b, test.opts)).With("n", 1)
		log.Debug("a")
		log.Info("b")
		log.WithGroup("g").Warn("c", "k", "v")
		log.Error("d")
		log.Log(t.Context(), slog.LevelError+4, "e")
		if b.String() != test.want {
			t.Errorf("%+v: it says\n%swant\n%s", test.opts, &b, test.want)
		}
	}
	var b bytes.Buffer
	slog.New(NewHandler(&b, HandlerOptions{})).Info("a")
	if !strings.HasPrefix(b.String(), "time=") {
		t.Errorf("without a journal it says %q", &b)
	}
}

func TestIsJournal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	for stream, want := range map[string]bool{
		fmt.Sprintf("%d:%d", stat.Dev, stat.Ino):   true,
		fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1): false,
		"": false, "8": false, "8:x": false,
	} {
		if got := IsJournal(f, stream); got != want {
			t.Errorf("%q: %t", stream, got)
		}
	}
}

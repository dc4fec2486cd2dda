package depot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite/sqlitetest"
	"firn/internal/depot"
	"firn/internal/depot/blob/blobtest"
	"firn/nix"
)

// stuck is a client that takes nothing until it is let go, and then everything.
type stuck struct {
	bytes.Buffer
	reached func()
	until   <-chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	s.reached()
	<-s.until
	return s.Buffer.Write(p)
}

// TestSlowReaders: however many clients take nothing of a NAR that is decompressed for them, others get theirs, and it can be verified;
// and who is slow gets the right bytes nevertheless.
func TestSlowReaders(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	nar := archive(t, dir(""), file("a", text(700_000, 1)), file("b", []byte(reference(1, 1))), file("c", noise(1_500_000, 2)), file("d", text(100, 3)))
	info := t.push(nar)
	const slow = 150
	var reading, begun sync.WaitGroup
	until := make(chan struct{})
	for i := range slow {
		begun.Add(1)
		reading.Go(func() {
			n, err := t.OpenNAR(t.Context(), info)
			if err != nil {
				begun.Done()
				t.Error(err)
				return
			}
			defer n.Close()
			off := int64(i) * 1000
			w := &stuck{reached: sync.OnceFunc(begun.Done), until: until}
			if err := n.WriteRange(t.Context(), w, off, n.Size()-off-int64(i)); err != nil || !bytes.Equal(w.Bytes(), nar[off:len(nar)-i]) {
				t.Errorf("slow client %d: %d bytes, %v", i, w.Len(), err)
			}
		})
	}
	begun.Wait()
	t.wantPlain(nar)
	t.wantClean()
	close(until)
	reading.Wait()
}

// blocked is a client that takes nothing, and then goes away.
type blocked struct {
	reached func()
	until   <-chan struct{}
}

var errLeft = errors.New("left")

func (b *blocked) Write([]byte) (int, error) {
	b.reached()
	<-b.until
	return 0, errLeft
}

// TestMemoryOfSlowReaders: what slow clients hold is on the heap no more than docs/adr/0025 says:
// the memory for decompressing, which all of them share, and 64 KiB for each.
func TestMemoryOfSlowReaders(tt *testing.T) {
	const (
		slow  = 2000
		piece = 64 << 10
		// What else each has: its goroutine, the NAR that is open, a hash.
		other = 4 << 10
	)
	t := newTester(tt, depot.Options{})
	whole := archive(t, file("", text(8<<20, 1)))
	info := t.push(whole)
	heap := func() int64 {
		var m runtime.MemStats
		for range 2 { // what is in a pool goes with the second
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var reading, begun sync.WaitGroup
	until := make(chan struct{})
	for i := range slow {
		begun.Add(1)
		reading.Go(func() {
			reached := sync.OnceFunc(begun.Done)
			defer reached()
			n, err := t.OpenNAR(t.Context(), info)
			if err != nil {
				t.Error(err)
				return
			}
			defer n.Close()
			// From anywhere in a frame, and of the whole, which is hashed on the way.
			off := int64(i%2) * int64(i) * 1000
			if err := n.WriteRange(t.Context(), &blocked{reached, until}, off, n.Size()-off); !errors.Is(err, errLeft) {
				t.Error(err)
			}
		})
	}
	begun.Wait()
	held := heap() - before
	t.Logf("%d slow readers hold %d KiB each", slow, held/slow>>10)
	if most := int64(depot.MaxDecoding + slow*(piece+other)); held > most {
		t.Errorf("%d slow readers hold %d bytes, more than %d", slow, held, most)
	}
	close(until)
	reading.Wait()
	t.wantPlain(whole)
}

// TestReadersThatLeave give their memory back, wherever they were.
func TestReadersThatLeave(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	nar := archive(t, file("", text(3_000_000, 1)))
	info := t.push(nar)
	var reading sync.WaitGroup
	for range 150 {
		ctx, cancel := context.WithCancelCause(t.Context())
		left := errors.New("left")
		reading.Go(func() {
			n, err := t.OpenNAR(t.Context(), info)
			if err != nil {
				t.Error(err)
				return
			}
			defer n.Close()
			w := &stuck{reached: func() { cancel(left) }, until: ctx.Done()}
			if err := n.WriteRange(ctx, w, 0, n.Size()); !errors.Is(err, left) {
				t.Errorf("a client that left: %v", err)
			}
		})
	}
	reading.Wait()
	t.wantPlain(nar)
}

func derivation(t testing.TB, name string) nix.StorePath {
	t.Helper()
	drv, err := nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-" + name + ".drv")
	if err != nil {
		t.Fatal(err)
	}
	return drv
}

// TestBrokenLog: a log that breaks off is not stored, and the one that was stored before stays.
func TestBrokenLog(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	const whole = "it is built\n"
	drv := derivation(t, "log")
	if err := t.PutLog(t.Context(), drv, strings.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	for _, broken := range []error{io.ErrUnexpectedEOF, io.ErrClosedPipe} {
		err := t.PutLog(t.Context(), drv, io.MultiReader(strings.NewReader(whole[:5]), iotest.ErrReader(broken)))
		wantError(t, "a log that breaks off", err, broken)
		log, err := t.OpenLog(t.Context(), drv)
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		if got, err := io.ReadAll(log); err != nil || string(got) != whole {
			t.Errorf("after %v, the log is %q, %v, want %q", broken, got, err, whole)
		}
	}
}

// TestManyLogs: two large logs that nobody takes keep no small one from being read, and no large one from being kept.
func TestManyLogs(tt *testing.T) {
	t := newTester(tt, depot.Options{})
	put := func(name string, log []byte) {
		if err := t.PutLog(t.Context(), derivation(t, name), bytes.NewReader(log)); err != nil {
			t.Fatal(err)
		}
	}
	put("large", noise(20<<20, 1))
	put("small", []byte("it is built"))
	opened := 0
	for ; opened < 100; opened++ {
		log, err := t.OpenLog(t.Context(), derivation(t, "large"))
		if errors.Is(err, cache.ErrUnavailable) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
	}
	if opened == 0 || opened > 4 {
		t.Errorf("%d large logs are open", opened)
	}
	log, err := t.OpenLog(t.Context(), derivation(t, "small"))
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	put("another", noise(2<<20, 2))
}

// dripping is a client that has sent all but the end of something, and waits.
type dripping struct {
	io.Reader
	reached func()
	until   <-chan struct{}
}

func (d *dripping) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err == io.EOF {
		d.reached()
		<-d.until
	}
	return n, err
}

// TestStalledLogs: however many large logs are begun and do not end, others are kept; and those are right when they end after all.
func TestStalledLogs(tt *testing.T) {
	spool := tt.TempDir()
	t := newTester(tt, depot.Options{Spool: spool})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const stalled = 8
	var begun, sending sync.WaitGroup
	until := make(chan struct{})
	for i := range stalled {
		begun.Add(1)
		sending.Go(func() {
			reached := sync.OnceFunc(begun.Done)
			defer reached()
			log := &dripping{bytes.NewReader(noise(3<<20+i, uint64(i))), reached, until}
			if err := t.PutLog(ctx, derivation(t, fmt.Sprint("stalled-", i)), log); err != nil {
				t.Error(err)
			}
		})
	}
	begun.Wait()
	if err := t.PutLog(ctx, derivation(t, "another"), bytes.NewReader(noise(3<<20, stalled))); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(spool); err != nil || len(left) > 0 {
		t.Errorf("a crash would leave %v, %v", left, err)
	}
	close(until)
	sending.Wait()
	for i := range stalled {
		log, err := t.OpenLog(t.Context(), derivation(t, fmt.Sprint("stalled-", i)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(log); err != nil || !bytes.Equal(got, noise(3<<20+i, uint64(i))) {
			t.Errorf("of log %d %d bytes came back, %v", i, len(got), err)
		}
		log.Close()
	}
}

// slowFiles is a catalog that takes until it is let go to read a file.
type slowFiles struct {
	Catalog
	reading atomic.Int64
	until   chan struct{}
}

func (c *slowFiles) File(ctx context.Context, id catalog.CacheID, key string) ([]byte, error) {
	c.reading.Add(1)
	<-c.until
	return c.Catalog.File(ctx, id, key)
}

// TestLogsAtOnce: however many ask for a log at once, few are read into memory before it is known whether there is room for them.
func TestLogsAtOnce(tt *testing.T) {
	synctest.Test(tt, func(tt *testing.T) {
		cat := &slowFiles{Catalog: sqlitetest.Open(tt, nil), until: make(chan struct{})}
		t := newTesterOn(tt, cat, blobtest.NewMemory(), depot.Options{})
		if err := t.PutLog(t.Context(), derivation(t, "log"), strings.NewReader("it is built")); err != nil {
			t.Fatal(err)
		}
		var asking sync.WaitGroup
		for range 64 {
			asking.Go(func() {
				log, err := t.OpenLog(t.Context(), derivation(t, "log"))
				if err != nil {
					t.Error(err)
					return
				}
				log.Close()
			})
		}
		synctest.Wait()
		if n := cat.reading.Load(); n != 2 {
			t.Errorf("%d logs are read at once", n)
		}
		close(cat.until)
		asking.Wait()
	})
}

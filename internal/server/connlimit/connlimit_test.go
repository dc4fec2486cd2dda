package connlimit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"firn/internal/fairlimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A file that is written to an answer reaches the connection in a form that lets the kernel send it: as slices of the file itself.
func TestFilesAreHandedDown(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 5*Slice/32) // two slices and a half
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int64{-1, 0, 1, Slice, Slice + 1, int64(len(content)), 1 << 40} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var r io.Reader = f
			want := content
			if limit >= 0 {
				r = &io.LimitedReader{R: f, N: limit}
				want = content[:min(limit, int64(len(content)))]
			}
			conn := &recorder{t: t, file: f}
			n, err := newConn(conn, func(*Conn) {}).ReadFrom(r)
			if err != nil || n != int64(len(want)) || conn.got.String() != want {
				t.Errorf("ReadFrom is %d, %v, and %d bytes came, want %d", n, err, conn.got.Len(), len(want))
			}
			if l, ok := r.(*io.LimitedReader); ok && l.N != limit-n {
				t.Errorf("the reader has %d bytes left, want %d", l.N, limit-n)
			}
		})
	}

}

// A section of a file is sent by the kernel as well, over TCP and over Unix sockets, and many
// connections may be sent the same file at once.
func TestSectionsAreHandedDown(t *testing.T) {
	content := make([]byte, 5*Slice/2)
	for i := range content {
		content[i] = byte(i>>8 ^ i)
	}
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, address := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", filepath.Join(t.TempDir(), "s")}} {
		l, err := net.Listen(address[0], address[1])
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var all sync.WaitGroup
		for i, want := range [][2]int{{0, len(content)}, {1, Slice}, {Slice, Slice + 1}, {len(content) - 1, 1}, {7, 0}, {0, 5000}, {3, 2 * Slice}} {
			client, err := net.Dial(address[0], l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			off, size := want[0], want[1]
			all.Go(func() {
				link := newConn(server, func(*Conn) {})
				defer link.Close()
				section := io.NewSectionReader(f, int64(off), int64(size))
				skipped := min(512, size)
				if _, err := io.CopyN(io.Discard, section, int64(skipped)); err != nil {
					t.Error(err)
				}
				if n, err := link.ReadFrom(section); err != nil || n != int64(size-skipped) {
					t.Errorf("range %d: ReadFrom is %d, %v", i, n, err)
				}
				if runtime.GOOS == "linux" {
					if _, err := sendFile(server, f, 0, 0); err != nil {
						t.Errorf("%s is not sent by the kernel: %v", address[0], err)
					}
				}
			})
			all.Go(func() {
				defer client.Close()
				time.Sleep(10 * time.Millisecond) // so that the connection is full for a while
				skipped := min(512, size)
				if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, content[off+skipped:off+size]) {
					t.Errorf("range %d: %d other bytes, %v", i, len(got), err)
				}
			})
		}
		all.Wait()
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		t.Errorf("the offset of the file is %d, %v: others read from there", at, err)
	}

	// What is no socket, a file that is shorter, a client that has gone, and one that takes
	// nothing.
	client, server := net.Pipe()
	go func() {
		newConn(server, func(*Conn) {}).ReadFrom(io.NewSectionReader(f, 3, 2*Slice))
		server.Close()
	}()
	if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, content[3:3+2*Slice]) {
		t.Errorf("over a pipe: %d other bytes, %v", len(got), err)
	}
	client, server = socketPair(t)
	short := make(chan int64, 1)
	go func() {
		n, err := newConn(server, func(*Conn) {}).ReadFrom(io.NewSectionReader(f, int64(len(content))-10, 1000))
		if err != nil {
			t.Error(err)
		}
		server.Close()
		short <- n
	}()
	if got, err := io.ReadAll(client); err != nil || len(got) != 10 || <-short != 10 {
		t.Errorf("a file that is shorter: %d bytes, %v", len(got), err)
	}
	client, server = socketPair(t)
	client.Close()
	_, err = newConn(server, func(*Conn) {}).ReadFrom(io.NewSectionReader(f, 0, int64(len(content))))
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) { // by which the server knows who ended it
		t.Errorf("a client that has gone: %v", err)
	}
	if runtime.GOOS == "linux" {
		_, server = socketPair(t)
		if err := server.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for err = nil; err == nil; {
			_, err = sendFile(server, f, 0, int64(len(content)))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a client that takes nothing: %v", err)
		}
	}
}

// socketPair returns the ends of a connection.
func socketPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// recorder is a connection that insists on slices of a file.
type recorder struct {
	net.Conn
	t    *testing.T
	file *os.File
	got  strings.Builder
}

func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) Write(p []byte) (int, error)      { return 0, errors.New("not by sendfile") }

func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	l, ok := src.(*io.LimitedReader)
	if !ok || l.R != r.file || l.N > Slice {
		r.t.Errorf("the connection was given a %T, want a Slice of the file", src)
	}
	return io.Copy(&r.got, src)
}

// What the kernel holds for a client, or from it, is seen.
func TestHasMore(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if hasMore(server) {
		t.Error("of a connection through which nothing came it is said that there is something")
	}
	if _, err := client.Write([]byte("GET")); err != nil {
		t.Fatal(err)
	}
	for !hasMore(server) { // as soon as it has come
		if err := t.Context().Err(); err != nil {
			t.Fatal("what came was not seen")
		}
	}
	if _, err := io.ReadFull(server, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if hasMore(server) {
		t.Error("what was read is still said to be there")
	}
	if runtime.GOOS != "linux" {
		return
	}
	// The buffers of both are full once nothing more goes out in a while. On a busy machine the
	// time of a write may be over before it has begun, so the test writes some more then.
	for range 100 {
		if err := server.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := server.Write(make([]byte, 64<<20)) // more than the buffers hold
		if err == nil {
			t.Fatal("64 MiB went out to a client that does not read")
		}
		if n == 0 && hasMore(server) {
			return
		}
	}
	t.Error("what is to go out was not seen")
}

// pipes is a listener of connections that a test makes.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// When there are too many connections, the one that was idle for the longest makes room, and never one that is at work.
func TestTooManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := make(pipes, 1)
		ls := Listen(in, fairlimit.NewSeats[*Conn](3), func(net.Conn) string { return "" })
		accept := func() (client net.Conn, l *Conn) {
			t.Helper()
			client, server := net.Pipe()
			t.Cleanup(func() { client.Close() })
			in <- server
			c, err := ls.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return client, c.(*Conn)
		}
		wantOpen := func(client net.Conn, want bool) {
			t.Helper()
			err := client.SetReadDeadline(time.Now().Add(time.Second))
			if err == nil {
				_, err = client.Read(make([]byte, 1))
			}
			if open := errors.Is(err, os.ErrDeadlineExceeded); open != want {
				t.Errorf("open is %v, want %v (%v)", open, want, err)
			}
		}

		busy, l1 := accept()
		SetState(l1, http.StateActive)
		idle, l2 := accept()
		SetState(l2, http.StateActive)
		later, l3 := accept()
		time.Sleep(time.Second)
		SetState(l2, http.StateIdle)
		time.Sleep(time.Second)

		// l3 never had a request, so it is idle since it was made.
		fourth, l4 := accept()
		SetState(l4, http.StateActive)
		wantOpen(later, false)
		for _, c := range []net.Conn{busy, idle, fourth} {
			wantOpen(c, true)
		}
		if err := l3.Close(); err != nil {
			t.Error(err)
		}

		_, l5 := accept()
		SetState(l5, http.StateActive)
		wantOpen(idle, false)

		// All are at work: a new one is turned away, until one of them ends.
		away, server := net.Pipe()
		in <- server
		go func() {
			if _, err := away.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("a connection too many: %v, want EOF", err)
			}
			l1.Close()
			_, server := net.Pipe()
			in <- server
		}()
		if _, err := ls.Accept(); err != nil {
			t.Error(err)
		}
		wantOpen(busy, false)
	})
}

// TestReadDeadlines: however seldom a link sets one, a read ends at the deadline that was asked for last.
func TestReadDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		l := newConn(server, func(*Conn) {})
		defer l.Close()
		start := time.Now()
		want := func(what string, at time.Duration) {
			t.Helper()
			if n, err := l.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %d bytes, %v", what, n, err)
			}
			if took := time.Since(start); took != at {
				t.Errorf("%s: it ended after %s, want %s", what, took, at)
			}
		}
		set := func(at time.Duration) {
			if err := l.SetReadDeadline(start.Add(at)); err != nil {
				t.Fatal(err)
			}
		}
		set(time.Second)
		set(3 * time.Second)
		want("a later one", 3*time.Second)
		want("one that has passed", 3*time.Second)
		set(9 * time.Second)
		set(5 * time.Second)
		want("an earlier one", 5*time.Second)

		// net/http takes one away, and ends a read that is under way by one in the past.
		set(6 * time.Second)
		if err := l.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(5*time.Second, func() { set(-time.Hour) })
		want("none, until it is ended", 10*time.Second)
		if err := l.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(5*time.Second, func() { client.Write([]byte{1}) })
		if n, err := l.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("with none: %d bytes, %v", n, err)
		}
	})
}

package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// When there are too many connections, the one that was idle for the longest makes room, and never one that is at work.
func TestTooManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := make(pipes, 1)
		ls := newLinks(in, 3)
		accept := func() (client net.Conn, l *link) {
			t.Helper()
			client, server := net.Pipe()
			t.Cleanup(func() { client.Close() })
			in <- server
			c, err := ls.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return client, c.(*link)
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
		connState(l1, http.StateActive)
		idle, l2 := accept()
		connState(l2, http.StateActive)
		later, l3 := accept()
		time.Sleep(time.Second)
		connState(l2, http.StateIdle)
		time.Sleep(time.Second)

		// l3 never had a request, so it is idle since it was made.
		fourth, l4 := accept()
		connState(l4, http.StateActive)
		wantOpen(later, false)
		for _, c := range []net.Conn{busy, idle, fourth} {
			wantOpen(c, true)
		}
		if err := l3.Close(); err != nil {
			t.Error(err)
		}

		_, l5 := accept()
		connState(l5, http.StateActive)
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

// Connections leave files for what is sent over them.
func TestMostLinks(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		files uint64
		want  int
	}{{limit.Cur, int(min(maxLinks, limit.Cur/4*3))}, {200, 150}} {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: test.files, Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
		if got := mostLinks(); got != test.want {
			t.Errorf("of %d files, %d may be connections, want %d", test.files, got, test.want)
		}
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Error(err)
	}
}

// TestReadDeadlines: however seldom a link sets one, a read ends at the deadline that was asked for last.
func TestReadDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		l := newLink(server, func(*link) {})
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

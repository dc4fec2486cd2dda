package localstore

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"modernc.org/sqlite"

	"firn/internal/cache"
	"firn/internal/memo"
	"firn/nix"
)

// What the daemon says of a path is what the database says of it.
func TestDaemonPathInfo(t *testing.T) {
	n := newNix(t)
	ref := n.add("ref", "referred to")
	path := n.register([]string{"one"}, string(n.storeDir)+"/"+strings.Repeat("1", 32)+"-x.drv", ref)[0]
	n.edit(`update ValidPaths set ultimate = 1, sigs = 'test-1:` + strings.Repeat("A", 86) + `==' where path = '` + path.String() + `'`)
	n.startDaemon()
	s := n.open()
	for _, p := range []nix.StorePath{ref, path} {
		want, err := s.PathInfo(t.Context(), p.Hash())
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.daemon.pathInfo(t.Context(), p.Hash())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b nix.StorePath) bool { return a == b }),
			cmp.Comparer(func(a, b nix.Hash) bool { return a == b }), cmp.Comparer(func(a, b nix.Signature) bool { return a == b }),
			cmp.Comparer(func(a, b nix.ContentAddress) bool { return a == b })); diff != "" {
			t.Errorf("path info of %v (-database +daemon):\n%s", p, diff)
		}
	}
	if got, err := s.daemon.pathInfo(t.Context(), nix.PathHash{1}); got != nil || err != nil {
		t.Errorf("an absent path: %v, %v, want neither", got, err)
	}
}

// A process that may not write into the state directory serves all the same: it reads the database, has the daemon confirm
// what is absent, and has it keep what is being sent.
func TestUnprivileged(t *testing.T) {
	n := newNix(t)
	path, gone := n.add("file", "hello\n"), n.add("gone", "not sent")

	stop := n.startDaemon()
	c := n.startChild(t, nobody)
	if c.first != "ready" {
		t.Fatal(c.first)
	}
	if got := c.ask("writable"); got != "false" {
		t.Errorf("it may write the WAL index: %s", got)
	}
	ask := func(p nix.StorePath) string { return c.ask("info " + p.Hash().String()) }
	want := func(p nix.StorePath) {
		t.Helper()
		if got := ask(p); !strings.HasPrefix(got, p.String()+" ") {
			t.Errorf("it says %q of %v", got, p)
		}
	}
	wantMiss := func(p nix.StorePath) {
		t.Helper()
		if got := ask(p); !strings.HasSuffix(got, "not found") {
			t.Errorf("it says %q of %v, want that it is not found", got, p)
		}
	}
	want(path)
	absent := n.path(string(n.storeDir) + "/" + strings.Repeat("0", 32) + "-absent")
	for range 3 {
		wantMiss(absent)
	}
	if got := c.ask("filter"); got != "<nil>" {
		t.Fatal(got)
	}
	wantMiss(absent)
	for _, name := range []string{"x", "y", "z"} {
		added := n.add(name, name)
		want(added)
		n.run("nix-store", "--delete", added.String())
		wantMiss(added)
	}

	if got := c.ask("open " + path.Hash().String()); got != "opened <nil>" {
		t.Fatal(got)
	}
	n.run("nix-store", "--gc")
	if !n.exists(path) || n.exists(gone) {
		t.Errorf("after a collection there is what is being sent: %t, and the rest: %t", n.exists(path), n.exists(gone))
	}
	if got := c.ask("send"); got != "sent <nil>" {
		t.Error(got)
	}
	c.ask("close")
	waitForDaemon(n)
	n.run("nix-store", "--gc")
	if n.exists(path) {
		t.Error("what was sent is not collected afterwards")
	}

	// Without the daemon an absent path is absent, and a path is sent unprotected.
	stop()
	again := n.add("again", "again")
	want(again)
	wantMiss(absent)
	if got := c.ask("open " + again.Hash().String()); got != "opened <nil>" {
		t.Error(got)
	}
}

// Where Nix leaves the WAL index behind, as newer ones do, no daemon is needed to read the database without writing it;
// and what real Nix does to it later is seen at once.
func TestUnprivilegedWithoutDaemon(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	n.leaveIndex()
	c := n.startChild(t, nobody)
	if c.first != "ready" {
		t.Fatal(c.first)
	}
	if got := c.ask("writable"); got != "false" {
		t.Errorf("it may write the WAL index: %s", got)
	}
	for i := range 12 {
		p := path
		if i > 0 {
			p = n.add("later-"+strconv.Itoa(i), "later "+strconv.Itoa(i))
		}
		if got := c.ask("info " + p.Hash().String()); !strings.HasPrefix(got, p.String()+" ") {
			t.Errorf("it says %q of %v", got, p)
		}
		n.run("nix-store", "--delete", p.String())
		if got := c.ask("info " + p.Hash().String()); !strings.HasSuffix(got, "not found") {
			t.Errorf("it says %q of %v, which was deleted", got, p)
		}
		if i%3 == 0 {
			c.ask("filter")
		}
	}
}

// leaveIndex leaves WAL and WAL index beside the database although nobody has it open, as newer Nix does.
func (n *nixStore) leaveIndex() {
	n.t.Helper()
	db := n.sqlite("")
	defer db.Close()
	conn, err := db.Conn(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Raw(func(c any) error {
		_, err := c.(sqlite.FileControl).FileControlPersistWAL("main", 1)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := conn.ExecContext(n.t.Context(), `update ValidPaths set registrationTime = registrationTime`); err != nil {
		n.t.Fatal(err)
	}
}

// waitForDaemon waits until the processes of the daemon whose connections were closed have ended,
// which is when they hold no locks on temporary roots any more.
func waitForDaemon(n *nixStore) {
	n.t.Helper()
	for _, name := range n.tempRoots() {
		f, err := os.OpenFile(filepath.Join(n.stateDir, "temproots", name), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			n.t.Fatal(err)
		}
		if err := flock(f, 2); err != nil { // LOCK_EX
			n.t.Fatal(err)
		}
		f.Close()
	}
}

// Whatever listens at the daemon's socket, an absent path is absent, and soon.
func TestHostileDaemon(t *testing.T) {
	word := func(n uint64) string { return new(words).numbers(n).String() }
	hello := word(magicServer) + word(1<<8|34) + word(6) + "2.8.0\x00\x00\x00" + word(stderrLast)
	for name, answer := range map[string]string{
		"nothing":            "",
		"HTTP":               "HTTP/1.1 400 Bad Request\r\n\r\n",
		"version 2":          word(magicServer) + word(2<<8),
		"version 1.10":       word(magicServer) + word(1<<8|10),
		"endless string":     word(magicServer) + word(1<<8|34) + word(1<<62),
		"long message":       hello + word(stderrNext) + word(1<<20) + strings.Repeat("x", 1<<20),
		"many fields":        hello + word(stderrResult) + word(1) + word(1) + word(1<<40),
		"unknown field":      hello + word(stderrResult) + word(1) + word(1) + word(1) + word(9),
		"unknown message":    hello + word(12345),
		"error":              hello + word(stderrError) + word(5) + "Error\x00\x00\x00" + word(0) + word(5) + "Error\x00\x00\x00" + word(3) + "why\x00\x00\x00\x00\x00",
		"a path, and no end": hello + word(stderrLast) + word(8) + "/nix/sto",
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, answer)
					c.(*net.UnixConn).CloseWrite()
					io.Copy(io.Discard, c)
					c.Close()
				}
			}()
			d := newDaemon(socket, nix.DefaultStoreDir)
			defer d.close()
			if info, err := d.pathInfo(t.Context(), nix.PathHash{}); err == nil {
				t.Errorf("got %v, want an error", info)
			} else {
				t.Log(err)
			}
		})
	}
}

// A daemon that does not answer is left alone for a while, so that it delays one request and not all of them.
func TestHangingDaemon(t *testing.T) {
	n := newNix(t)
	socket := filepath.Join(n.dir, "hangs")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := newDaemon(socket, n.storeDir)
	d.fail(t.Context(), errors.New("it hung")) // as after daemonTimeout
	if _, err := d.pathInfo(t.Context(), nix.PathHash{}); err == nil || !strings.Contains(err.Error(), "it hung") {
		t.Errorf("asked again at once: %v, want the error that it gave before", err)
	}
	d.failed.at = time.Now().Add(-2 * daemonPause)
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// What the daemon does not confirm in time is not known to be absent: a client would remember a miss for an hour.
// A daemon that is not there confirms nothing, and neither does one that is silent for long.
func TestUnconfirmed(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	s := n.open()
	s.db.writable = false // as for a user who may not write there
	var log strings.Builder
	s.log = textLogger(&log)
	wantWithin := func(ctx context.Context, why string, want error) {
		t.Helper()
		if _, err := s.PathInfo(ctx, nix.PathHash{1}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", why, err, want)
		}
		if _, err := s.PathInfo(t.Context(), path.Hash()); err != nil {
			t.Errorf("%s: a path that is there: %v", why, err)
		}
	}
	want := func(why string, want error) {
		t.Helper()
		wantWithin(t.Context(), why, want)
	}
	want("no daemon", cache.ErrNotFound)

	if err := os.MkdirAll(filepath.Dir(s.daemon.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.daemon.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.daemon.failed = failure{}
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // nobody else waits for it in vain
	defer cancel()
	wantWithin(soon, "a daemon that says nothing", cache.ErrUnavailable)

	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }); err != nil {
		t.Fatal(err)
	}
	for err == nil { // somebody else waits for it
		var c net.Conn
		if c, err = net.Dial("unix", s.daemon.socket); err == nil {
			defer c.Close()
		}
	}
	for range 2 { // also while it is left alone
		want("a daemon that has too much to do", cache.ErrUnavailable)
	}
	if s.daemon.silent.IsZero() {
		t.Error("it is not known since when it is silent")
	}

	s.daemon.silent = time.Now().Add(-daemonPatience)
	for range 2 {
		want("a daemon that hangs", cache.ErrNotFound)
	}
	if n := strings.Count(log.String(), "the Nix daemon does not answer"); n != 1 {
		t.Errorf("it is logged %d times:\n%s", n, &log)
	}
	done, ok := s.daemon.try()
	if !ok {
		t.Fatal("nobody finds out whether it answers again")
	}
	for range maxExchanges {
		s.daemon.slots <- struct{}{} // who waited for it would wait for these
	}
	late, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	wantWithin(late, "a daemon that hangs, and somebody else is asking", cache.ErrNotFound)
	if late.Err() != nil {
		t.Error("it waited for a daemon that is given up")
	}
	for range maxExchanges {
		<-s.daemon.slots
	}
	done()

	s.daemon.failed.at = time.Now().Add(-2 * daemonPatience)
	want("a daemon that had been asked nothing for long", cache.ErrUnavailable)

	l.Close()
	s.daemon.failed = failure{}
	want("no daemon any more", cache.ErrNotFound)
	n.startDaemon()
	s.daemon.failed = failure{}
	want("a daemon that answers", cache.ErrNotFound)
	if s.daemon.given || !s.daemon.silent.IsZero() || !confirmed(t, s, nix.PathHash{1}) {
		t.Error("it has answered, and is still given up, or was not believed")
	}
}

// confirmed reports whether it is remembered that the daemon has no path with this hash.
func confirmed(t *testing.T, s *Store, hash nix.PathHash) bool {
	t.Helper()
	_, at, ok := s.confirmed.Get(hash)
	return ok && at.Miss(memo.Exactly(mustVersion(t, s), true))
}

func mustVersion(t *testing.T, s *Store) uint64 {
	t.Helper()
	version, ok := s.db.version()
	if !ok {
		t.Fatal("the database was replaced")
	}
	return version
}

func TestDaemonReconnects(t *testing.T) {
	n := newNix(t)
	path := n.add("file", "hello\n")
	n.startDaemon()
	d := newDaemon(filepath.Join(n.stateDir, "daemon-socket/socket"), n.storeDir)
	defer d.close()
	for range 3 {
		if info, err := d.pathInfo(t.Context(), path.Hash()); err != nil || info == nil {
			t.Fatalf("got %v, %v", info, err)
		}
		c := <-d.idle
		c.Conn.(*net.UnixConn).CloseRead() // the connection dies while it is kept
		d.idle <- c
	}
	for _, hash := range []nix.PathHash{{}, path.Hash()} {
		if _, err := d.pathInfo(t.Context(), hash); err != nil && !errors.Is(err, cache.ErrNotFound) {
			t.Error(err)
		}
	}
}

// However many ask for absent paths, the daemon is not made to run a process for each.
func TestExchangesBounded(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 100)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn // and say nothing
		}
	}()
	d := newDaemon(socket, nix.DefaultStoreDir)
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for i := range 2 * maxExchanges {
		asking.Go(func() {
			if _, err := d.pathInfo(ctx, nix.PathHash{byte(i)}); !errors.Is(err, context.Canceled) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("pathInfo: %v", err)
			}
		})
	}
	for range maxExchanges {
		defer (<-accepted).Close()
	}
	cancel()
	asking.Wait()
	l.Close()
	for conn := range accepted {
		conn.Close()
		t.Errorf("more than %d connections", maxExchanges)
	}
}

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"firn/internal/fairlimit"
)

// How slowly a client may take what is sent to it: slice bytes in patience, so 4 KiB/s averaged over four minutes.
// That is less than any link in use gives, and shorter than the five minutes after which Nix drops a silent server.
// A client that takes less holds a NAR open for no longer than that; one that takes more gets everything, however long that takes.
const (
	slice    = 1 << 20 // bytes; the kernel sends as many at once, and a quarter of it took a tenth more CPU
	minRate  = 4 << 10 // bytes a second
	patience = slice / minRate * time.Second

	// watchInterval is how often it is looked whether a client is still there that has to wait.
	watchInterval = time.Second
)

// link is a connection that gives up on a client that takes less than a slice in patience.
//
// It is below net/http because a deadline of http.Server is one for a whole answer, however long,
// and because setting one for each answer would be a part of the cost of every narinfo: a link sets one only now and then.
type link struct {
	net.Conn
	made     time.Time
	extended atomic.Int64           // when the deadline for writing was last set, in nanoseconds since made; less than 0: never
	idle     atomic.Int64           // since when it waits for a request, or when it last heard a part of one, in nanoseconds since made; less than 0: it has one; 0: it never heard anything
	closed   func()                 // called by Close
	head     []byte                 // what was read already: Read begins with it
	seat     *fairlimit.Seat[*link] // nil in some tests

	reading sync.Mutex
	wanted  time.Duration // since made: the deadline for reading; never if there is none
	set     time.Duration // that of the connection, which may be an earlier one
}

// never is later than any deadline.
const never = 1<<63 - 1

func newLink(c net.Conn, closed func(*link)) *link {
	l := &link{Conn: c, made: time.Now(), wanted: never, set: never}
	l.closed = sync.OnceFunc(func() { closed(l) })
	l.extended.Store(-int64(patience))
	return l
}

func (l *link) Close() error {
	l.closed()
	return l.Conn.Close()
}

// state is told by an http.Server what it does with the connection.
func (l *link) state(s http.ConnState) {
	switch s {
	case http.StateActive:
		l.idle.Store(-1)
	case http.StateIdle:
		l.idle.Store(l.now())
		l.spared()
	}
}

// spared tells the seat that it waits for a request since another time.
func (l *link) spared() {
	if l.seat != nil {
		l.seat.Spared()
	}
}

// Spare reports whether another connection may have the place of this one: whether it waits for a
// request, and since when.
func (l *link) Spare() (since int64, ok bool) {
	idle := l.idle.Load()
	return l.made.UnixNano() + idle, idle >= 0
}

// now is the time as idle has it.
func (l *link) now() int64 { return max(1, int64(time.Since(l.made))) }

// idleSince returns since when the connection waits for a request.
func (l *link) idleSince() (since time.Time, ok bool) {
	idle := l.idle.Load()
	return l.made.Add(time.Duration(idle)), idle >= 0
}

// hear renews the wait for a request of which a part has come.
func (l *link) hear() {
	if idle := l.idle.Load(); idle >= 0 && l.idle.CompareAndSwap(idle, l.now()) {
		l.spared()
	}
}

// retire ends the wait for a request: Read fails, and net/http closes the connection. A request that has come already is not lost by that:
// net/http sets another deadline when it begins to read one.
//
// The wait begins anew where the client cannot have had all of the last answer, since some of it is still in the kernel, as on a slow link,
// and where a request lies there that nobody has read yet, as on a machine that has much to do.
func (l *link) retire() {
	if hasMore(l.Conn) {
		l.hear()
		return
	}
	l.reading.Lock()
	defer l.reading.Unlock()
	l.wanted = time.Since(l.made)
	l.wake(l.made.Add(l.wanted)) // fails only when it is closed
}

// hasMore reports whether the kernel holds something that came through a connection, or is to go out.
func hasMore(c net.Conn) bool {
	return ask(c, func(fd int) bool {
		n, _, err := syscall.Recvfrom(fd, make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return err == nil && n > 0 || unsent(fd) > 0
	})
}

// ask asks the kernel about a connection. It knows of sockets only.
func ask(c net.Conn, whether func(fd int) bool) (yes bool) {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) { yes = whether(int(fd)) })
	return err == nil && yes
}

// watch calls gone when the client hangs up, until stop is called. net/http notices that only when the body has been read.
func (l *link) watch(gone func()) (stop func()) {
	end := make(chan struct{})
	go func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(watchInterval):
			}
			if ask(l.Conn, hungUp) {
				gone()
				return
			}
		}
	}()
	return func() { close(end) }
}

// extend gives the client the time for another slice, unless it has nearly as much.
func (l *link) extend() error {
	now := time.Since(l.made)
	if now-time.Duration(l.extended.Load()) < patience/16 {
		return nil
	}
	l.extended.Store(int64(now))
	return l.Conn.SetWriteDeadline(l.made.Add(now + patience))
}

// Write writes in slices.
func (l *link) Write(p []byte) (n int, err error) {
	for {
		if err := l.extend(); err != nil {
			return n, err
		}
		m, err := l.Conn.Write(p[n:min(n+slice, len(p))])
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// ReadFrom writes in slices too. Files are sent with sendfile: a section of a file that others read
// at the same time as it is, and another file where the connection is given the one form of which
// it makes a sendfile, an io.LimitedReader right around a file.
func (l *link) ReadFrom(r io.Reader) (n int64, err error) {
	if section, ok := r.(*io.SectionReader); ok {
		return l.sendSection(section)
	}
	whole, ok := r.(*io.LimitedReader)
	if !ok {
		whole = &io.LimitedReader{R: r, N: 1<<63 - 1}
	}
	part := &io.LimitedReader{R: whole.R}
	for whole.N > 0 {
		if err := l.extend(); err != nil {
			return n, err
		}
		part.N = min(slice, whole.N)
		want := part.N
		m, err := io.Copy(l.Conn, part)
		n += m
		whole.N -= m
		if err != nil || m < want {
			return n, err
		}
	}
	return n, nil
}

// sendSection writes what is left of a section.
func (l *link) sendSection(section *io.SectionReader) (n int64, err error) {
	whole, start, size := section.Outer()
	at, err := section.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	file, ok := whole.(*os.File)
	for ok && at < size {
		if err := l.extend(); err != nil {
			return n, err
		}
		m, err := sendFile(l.Conn, file, start+at, min(slice, size-at))
		if errors.Is(err, errors.ErrUnsupported) {
			break
		}
		n, at = n+m, at+m
		if err != nil {
			return n, err
		}
		if m == 0 { // the file ends before the section
			size = at
		}
	}
	if at == size {
		return n, nil
	}
	if _, err := section.Seek(at, io.SeekStart); err != nil {
		return n, err
	}
	m, err := io.Copy(struct{ io.Writer }{l}, section)
	return n + m, err
}

// SetWriteDeadline does nothing: net/http takes deadlines away that it has not set.
func (l *link) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline leaves an earlier deadline as it is, as long as that has not passed: Read sees to the rest.
// net/http sets three for each request, which is more than finding its narinfo costs.
func (l *link) SetReadDeadline(t time.Time) error {
	l.reading.Lock()
	defer l.reading.Unlock()
	l.wanted = never
	if !t.IsZero() {
		l.wanted = t.Sub(l.made)
	}
	if l.set <= l.wanted && l.set > time.Since(l.made) {
		return nil
	}
	return l.wake(t)
}

// wake sets the deadline of the connection to the one that is wanted.
func (l *link) wake(t time.Time) error {
	l.set = l.wanted
	return l.Conn.SetReadDeadline(t)
}

// Read goes on where an earlier deadline than the one that is wanted has passed.
func (l *link) Read(p []byte) (int, error) {
	if len(l.head) > 0 {
		n := copy(p, l.head)
		l.head = l.head[n:]
		return n, nil
	}
	for {
		n, err := l.Conn.Read(p)
		if n > 0 {
			l.hear()
		}
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !l.early() {
			return n, err
		}
	}
}

// early reports whether the deadline that is wanted has not passed yet, and sets it.
func (l *link) early() bool {
	l.reading.Lock()
	defer l.reading.Unlock()
	if l.wanted <= time.Since(l.made) {
		return false
	}
	var t time.Time
	if l.wanted != never {
		t = l.made.Add(l.wanted)
	}
	return l.wake(t) == nil
}

// SetDeadline sets that for reading.
func (l *link) SetDeadline(t time.Time) error { return l.SetReadDeadline(t) }

// linkKey is the key of the link of a request in its context.
type linkKey struct{}

// withLink returns the context of the requests that come through a connection.
func withLink(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if l, ok := c.(*link); ok {
		return context.WithValue(ctx, linkKey{}, l)
	}
	return ctx
}

// corkMin is the length in bytes of bodies from which on they are corked.
const corkMin = 64 << 10

// cork has the system send what follows in as few packets as it can, until the function is called that it returns.
// A NAR is written in parts, of which many are short, and each one wakes whoever waits for it: on a virtual machine,
// which has to wake a core for that, this took a fifth of the time of a NAR.
// length is that of the body, -1 if it is not known yet: then it is sent as it comes.
// err is how the writing of the body ended.
func (x *exchange) cork(length int64) (uncork func(err error)) {
	l, ok := x.r.Context().Value(linkKey{}).(*link)
	if !ok || x.r.TLS != nil || length < corkMin || !setCork(l.Conn, true) {
		return func(error) {}
	}
	return func(err error) {
		if err == nil { // else the connection is cut, and nobody waits for the last bytes
			_ = http.NewResponseController(x.w).Flush() // what it fails with, the next write fails with
		}
		setCork(l.Conn, false)
	}
}

// reset has Close tell the client that the connection broke, where there is a way to tell.
func (l *link) reset() {
	if c, ok := l.Conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = c.SetLinger(0)
	}
}

// CloseWrite ends what is sent, so that the client sees the end of an answer
// before the connection is gone; net/http asks for it.
func (l *link) CloseWrite() error {
	if c, ok := l.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

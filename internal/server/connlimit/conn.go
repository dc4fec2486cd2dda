package connlimit

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

// How slowly a client may take what is sent to it: Slice bytes in Patience, so 4 KiB/s averaged
// over four minutes. That is less than any link in use gives, and shorter than the five minutes
// after which Nix drops a silent server. A client that takes less holds a NAR open for no longer
// than that. A client that takes more gets everything, however long that takes.
const (
	Slice    = 1 << 20 // bytes; the kernel sends as many at once, and a quarter of it took a tenth more CPU
	MinRate  = 4 << 10 // bytes a second
	Patience = Slice / MinRate * time.Second

	// watchInterval is how often Watch looks whether the client is still there.
	watchInterval = time.Second
)

// Conn is a connection that gives up on a client that takes less than a Slice in Patience.
//
// It is below net/http because a deadline of http.Server is for a whole answer, however long, and
// because setting a deadline for each answer would be a part of the cost of every narinfo. A Conn
// sets one only now and then.
type Conn struct {
	net.Conn
	made     time.Time
	extended atomic.Int64  // when the deadline for writing was last set, in nanoseconds since made; less than 0: never
	phase    atomic.Uint32 // a phase
	since    atomic.Int64  // when it began to wait, or last received a part of a request, in nanoseconds since made
	closed   func()        // called by Close
	unread   []byte        // Read begins with it
	seat     *fairlimit.Seat[*Conn]

	reading sync.Mutex
	wanted  time.Duration // since made: the deadline for reading; never if there is none
	set     time.Duration // the deadline of net.Conn, which may be an earlier one
}

// A phase says what a connection does.
type phase = uint32

const (
	fresh   phase = iota // it waits for its first request, and nothing has come yet
	waiting              // it waits for a request, or for the rest of one
	active               // a request is being answered
)

// never is later than any deadline.
const never = 1<<63 - 1

func newConn(c net.Conn, closed func(*Conn)) *Conn {
	l := &Conn{Conn: c, made: time.Now(), wanted: never, set: never}
	l.closed = sync.OnceFunc(func() { closed(l) })
	l.extended.Store(-int64(Patience))
	return l
}

// Close closes the connection and gives its seat back.
func (c *Conn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Unread has Read begin with b. It is called before the next Read, by the goroutine that reads.
func (c *Conn) Unread(b []byte) { c.unread = b }

// SetState notes what an http.Server does with the connection.
func (c *Conn) SetState(s http.ConnState) {
	switch s {
	case http.StateActive:
		c.phase.Store(active)
	case http.StateIdle:
		c.since.Store(int64(time.Since(c.made)))
		c.phase.Store(waiting)
		c.seatSpared()
	}
}

// seatSpared tells the seat that the connection waits, since another time than before.
func (c *Conn) seatSpared() {
	if c.seat != nil { // nil in some tests
		c.seat.Spared()
	}
}

// Spare reports whether another connection may have the seat of this one: whether it waits for a
// request, and since when.
func (c *Conn) Spare() (since int64, ok bool) {
	return c.made.UnixNano() + c.since.Load(), c.phase.Load() != active
}

// quiet reports whether the connection waits for a request, and has been silent for so long that a
// server that ends may close it.
func (c *Conn) quiet() bool {
	limit := QuietTime
	switch c.phase.Load() {
	case active:
		return false
	case fresh:
		limit = FreshTime
	}
	return time.Since(c.made)-time.Duration(c.since.Load()) >= limit
}

// heard renews the wait for a request of which a part has come.
func (c *Conn) heard() {
	if c.phase.Load() == active {
		return
	}
	c.since.Store(int64(time.Since(c.made)))
	c.phase.CompareAndSwap(fresh, waiting)
	c.seatSpared()
}

// retire ends the wait for a request: Read fails, and net/http closes the connection. A request that
// has come already is not lost by that: net/http sets another deadline when it begins to read one.
//
// The wait begins again in two cases: the client cannot have had all of the last answer, since the
// kernel still holds some of it, as on a slow link; or a request lies in the kernel that the server
// has not read yet, as on a machine that has much to do.
func (c *Conn) retire() {
	if hasMore(c.Conn) {
		c.heard()
		return
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	c.wanted = time.Since(c.made)
	c.wake(c.made.Add(c.wanted)) // fails only when it is closed
}

// hasMore reports whether the kernel holds bytes that came through a connection, or that are to go
// out.
func hasMore(c net.Conn) bool {
	return askKernel(c, func(fd int) bool {
		n, _, err := syscall.Recvfrom(fd, make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return err == nil && n > 0 || unsent(fd) > 0
	})
}

// askKernel returns what question answers about the socket of a connection; false if the connection
// is no socket.
func askKernel(c net.Conn, question func(fd int) bool) (yes bool) {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) { yes = question(int(fd)) })
	return err == nil && yes
}

// Watch calls gone when the client hangs up, until stop is called. net/http notices that only when
// the body has been read.
func (c *Conn) Watch(gone func()) (stop func()) {
	end := make(chan struct{})
	go func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(watchInterval):
			}
			if askKernel(c.Conn, hungUp) {
				gone()
				return
			}
		}
	}()
	return func() { close(end) }
}

// Cork has the kernel send what follows in as few packets as it can, until uncork is called.
// ok is false if the kernel cannot do that for this connection.
func (c *Conn) Cork() (uncork func(), ok bool) {
	if !setCork(c.Conn, true) {
		return nil, false
	}
	return func() { setCork(c.Conn, false) }, true
}

// Reset has Close tell the client that the connection broke, where there is a way to tell.
func (c *Conn) Reset() {
	if l, ok := c.Conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0)
	}
}

// CloseWrite ends what is sent, so that the client sees the end of an answer before the connection
// is gone. net/http asks for it.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// extend gives the client the time for another Slice, unless it has nearly as much.
func (c *Conn) extend() error {
	now := time.Since(c.made)
	if now-time.Duration(c.extended.Load()) < Patience/16 {
		return nil
	}
	c.extended.Store(int64(now))
	return c.Conn.SetWriteDeadline(c.made.Add(now + Patience))
}

// Write writes in slices.
func (c *Conn) Write(p []byte) (n int, err error) {
	for {
		if err := c.extend(); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(p[n:min(n+Slice, len(p))])
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// ReadFrom writes in slices too, and has the kernel send files. It sends a section of a file by its
// own sendFile, because others read the same file at the same time. It gives the connection other
// files as an io.LimitedReader right around the file, the one form of which package net makes a
// sendfile.
func (c *Conn) ReadFrom(r io.Reader) (n int64, err error) {
	if section, ok := r.(*io.SectionReader); ok {
		return c.sendSection(section)
	}
	all, ok := r.(*io.LimitedReader)
	if !ok {
		all = &io.LimitedReader{R: r, N: 1<<63 - 1}
	}
	part := &io.LimitedReader{R: all.R}
	for all.N > 0 {
		if err := c.extend(); err != nil {
			return n, err
		}
		part.N = min(Slice, all.N)
		want := part.N
		m, err := io.Copy(c.Conn, part)
		n += m
		all.N -= m
		if err != nil || m < want {
			return n, err
		}
	}
	return n, nil
}

// sendSection writes what is left of a section.
func (c *Conn) sendSection(section *io.SectionReader) (n int64, err error) {
	outer, start, size := section.Outer()
	at, err := section.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	file, ok := outer.(*os.File)
	for ok && at < size {
		if err := c.extend(); err != nil {
			return n, err
		}
		m, err := sendFile(c.Conn, file, start+at, min(Slice, size-at))
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
	m, err := io.Copy(struct{ io.Writer }{c}, section)
	return n + m, err
}

// SetWriteDeadline does nothing: net/http removes deadlines that it has not set.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline leaves an earlier deadline as it is, as long as that has not passed: Read does the
// rest. net/http sets three for each request, which costs more than finding the narinfo.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.wanted = never
	if !t.IsZero() {
		c.wanted = t.Sub(c.made)
	}
	if c.set <= c.wanted && c.set > time.Since(c.made) {
		return nil
	}
	return c.wake(t)
}

// wake sets the deadline of the connection to the wanted one.
func (c *Conn) wake(t time.Time) error {
	c.set = c.wanted
	return c.Conn.SetReadDeadline(t)
}

// Read reads on when a deadline has passed that is earlier than the wanted one.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.unread) > 0 {
		n := copy(p, c.unread)
		c.unread = c.unread[n:]
		return n, nil
	}
	for {
		n, err := c.Conn.Read(p)
		if n > 0 {
			c.heard()
		}
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !c.early() {
			return n, err
		}
	}
}

// early reports whether the wanted deadline has not passed yet, and sets it.
func (c *Conn) early() bool {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.wanted <= time.Since(c.made) {
		return false
	}
	var t time.Time
	if c.wanted != never {
		t = c.made.Add(c.wanted)
	}
	return c.wake(t) == nil
}

// SetDeadline sets the deadline for reading.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// connKey is the key of the Conn of a request in its context.
type connKey struct{}

// Context is for http.Server.ConnContext: it returns a context in which [Of] finds the connection.
func Context(ctx context.Context, c net.Conn) context.Context {
	if limited, ok := below(c); ok {
		return context.WithValue(ctx, connKey{}, limited)
	}
	return ctx
}

// Of returns the connection of a request; ok is false if the request came through no Conn.
func Of(ctx context.Context) (c *Conn, ok bool) {
	c, ok = ctx.Value(connKey{}).(*Conn)
	return c, ok
}

// SetState is for http.Server.ConnState: it tells a Conn what the server does with it.
func SetState(c net.Conn, s http.ConnState) {
	if limited, ok := below(c); ok {
		limited.SetState(s)
	}
}

// below returns the Conn that c is, or that is below its TLS.
func below(c net.Conn) (limited *Conn, ok bool) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	limited, ok = c.(*Conn)
	return limited, ok
}

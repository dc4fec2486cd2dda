//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The load client shares two cores with the server that it measures, so it must cost less than any server:
// one thread, no goroutine per connection, no header map, and bodies that are thrown away by the kernel.
// It speaks as much HTTP/1.1 as a measurement needs: GET, a status, a Content-Length, a kept-alive connection.
// It is the same for every server.

const (
	// headLimit is the size of the buffer that a response head is read into, in bytes.
	// What arrives of the body behind the head is copied with it, so it is little more than a narinfo.
	headLimit = 4 << 10
	// copyBuffer is the size of the reads of a client that copies bodies, in bytes:
	// the size of the reads that curl, and so Nix, can ask for at most.
	copyBuffer = 512 << 10
	// truncateReach is how many bytes one MSG_TRUNC call may throw away. It costs address space, not memory.
	truncateReach = 1 << 30
	// stallLimit is how long a server may send nothing at all before the measurement is given up.
	stallLimit = 60 * time.Second
)

// Discard says what the client does with a body.
type Discard string

const (
	// DiscardCopy reads a body into memory that is overwritten by the next read, as a program that wants the bytes must.
	DiscardCopy Discard = "copy"
	// DiscardTruncate lets the kernel drop a body without copying it (recv(2) with MSG_TRUNC; tcp(7), "Since Linux 2.4"),
	// so that nearly all the time measured is the server's own, as if the client were another machine.
	DiscardTruncate Discard = "truncate"
)

// Load is what a pass sends.
type Load struct {
	Addr        netip.AddrPort
	Connections int
	Discard     Discard
	Requests    []Request     // sent in order, each by whichever connection is free first
	Duration    time.Duration // zero: every request once; otherwise the requests round and round for so long
}

// Tally is what a pass has done.
type Tally struct {
	Requests   int
	Bytes      int64 // of bodies
	Reconnects int   // connections that the server closed although they were to be kept
	Elapsed    time.Duration
}

var (
	errWouldBlock = errors.New("nothing to read yet")
	errClosed     = errors.New("connection closed by the server")
)

// Client runs passes. It is not safe for concurrent use.
type Client struct {
	buffer []byte // of copied bodies
	void   []byte // address space without memory: a call that wrote to it would fail with EFAULT
}

// NewClient reserves the client's buffers.
func NewClient() (*Client, error) {
	void, err := unix.Mmap(-1, 0, truncateReach, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve address space: %w", err)
	}
	return &Client{buffer: make([]byte, copyBuffer), void: void}, nil
}

// Run sends a load and returns what came of it.
// Any answer other than the one expected is an error: no number stands for wrong bytes.
func (c *Client) Run(ctx context.Context, load Load) (Tally, error) {
	p, err := c.begin(load)
	defer p.close()
	if err != nil {
		return Tally{}, err
	}
	if len(p.conns) == 1 {
		err = p.runOne(ctx)
	} else {
		err = p.runMany(ctx)
	}
	p.tally.Elapsed = time.Since(p.start)
	return p.tally, err
}

// FirstBytes sends a load over one connection and returns, for each request,
// the time from sending it to having the first byte of the body.
func (c *Client) FirstBytes(ctx context.Context, load Load) ([]time.Duration, error) {
	load.Connections = 1
	p, err := c.begin(load)
	defer p.close()
	if err != nil {
		return nil, err
	}
	var times []time.Duration
	for k := p.conns[0]; p.next(k); {
		before := p.tally.Bytes
		sent, begun := time.Now(), false
		if err := p.send(k); err != nil {
			return nil, err
		}
		for done := false; !done; {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if done, err = p.stepBlocking(k); err != nil {
				return nil, err
			}
			if !begun && p.tally.Bytes > before {
				begun = true
				times = append(times, time.Since(sent))
			}
		}
	}
	return times, nil
}

// Hold begins one response on each of a load's connections, reads no more than its head, calls during, and hangs up.
func (c *Client) Hold(ctx context.Context, load Load, during func() error) error {
	p, err := c.begin(load)
	defer p.close()
	if err != nil {
		return err
	}
	for _, k := range p.conns {
		if !p.next(k) {
			break
		}
		if err := p.send(k); err != nil {
			return err
		}
	}
	for _, k := range p.conns[:p.sent] {
		for k.body < 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := p.stepBlocking(k); err != nil {
				return err
			}
		}
	}
	return during()
}

// begin opens the connections of a pass. The pass is to be closed even after an error.
func (c *Client) begin(load Load) (*pass, error) {
	p := &pass{load: load, sink: c.buffer, start: time.Now()}
	if load.Discard == DiscardTruncate {
		p.sink, p.flags = c.void, unix.MSG_TRUNC
	}
	if load.Duration == 0 {
		p.total = len(load.Requests)
		load.Connections = min(load.Connections, p.total)
	}
	for range load.Connections {
		k := &conn{fd: -1}
		p.conns = append(p.conns, k)
		if err := k.dial(load.Addr); err != nil {
			return p, err
		}
	}
	return p, nil
}

// pass is one Run.
type pass struct {
	load  Load
	sink  []byte
	flags int
	start time.Time
	total int // requests to send; 0: until the time is over
	sent  int
	tally Tally
	conns []*conn
}

// next gives k its next request; it reports false when there is none left.
func (p *pass) next(k *conn) bool {
	if p.total != 0 && p.sent == p.total {
		return false
	}
	if p.total == 0 && time.Since(p.start) >= p.load.Duration {
		return false
	}
	k.request = &p.load.Requests[p.sent%len(p.load.Requests)]
	p.sent++
	return true
}

// runOne drives a single connection with blocking calls: one send and one receive for a narinfo, and no epoll.
func (p *pass) runOne(ctx context.Context) error {
	k := p.conns[0]
	for p.next(k) {
		if err := p.send(k); err != nil {
			return err
		}
		for done := false; !done; {
			if err := ctx.Err(); err != nil {
				return err
			}
			var err error
			if done, err = p.stepBlocking(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// stepBlocking is step on a connection that waits for bytes.
func (p *pass) stepBlocking(k *conn) (done bool, err error) {
	done, err = p.step(k)
	if errors.Is(err, errWouldBlock) {
		err = fmt.Errorf("GET %s: no byte in %v", k.request.path(), stallLimit)
	}
	return done, err
}

// runMany drives all connections from one epoll loop.
func (p *pass) runMany(ctx context.Context) error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("create epoll: %w", err)
	}
	defer unix.Close(poll)
	watch := func(i int) error {
		k := p.conns[i]
		if err := unix.SetNonblock(k.fd, true); err != nil {
			return fmt.Errorf("set nonblocking: %w", err)
		}
		if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, k.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			return fmt.Errorf("watch connection: %w", err)
		}
		k.watched = k.fd
		return nil
	}
	busy := 0
	for i, k := range p.conns {
		if !p.next(k) {
			break
		}
		if err := watch(i); err != nil {
			return err
		}
		if err := p.send(k); err != nil {
			return err
		}
		busy++
	}
	events := make([]unix.EpollEvent, len(p.conns))
	for busy > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.EpollWait(poll, events, int(stallLimit.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for connections: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("%d connections open: no byte in %v", busy, stallLimit)
		}
		for _, event := range events[:n] {
			i := int(event.Fd)
			k := p.conns[i]
			done, err := p.step(k)
			if errors.Is(err, errWouldBlock) {
				continue
			}
			if err != nil {
				return err
			}
			if done {
				if !p.next(k) {
					k.close() // or the server's hanging up would wake the loop
					busy--
					continue
				}
				if err := p.send(k); err != nil {
					return err
				}
			}
			if k.watched != k.fd {
				if err := watch(i); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p *pass) close() {
	for _, k := range p.conns {
		k.close()
	}
}

// conn is one kept-alive connection, and the response that is being read from it.
type conn struct {
	fd      int
	watched int // the descriptor that epoll knows
	request *Request
	served  int // responses read from this descriptor
	head    [headLimit]byte
	filled  int   // bytes of head
	body    int64 // bytes of the body still to come; negative: the head is not complete
	last    bool  // the server closes the connection after this response
}

func (k *conn) dial(addr netip.AddrPort) error {
	k.close()
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().Unmap().As4()})
	if addr.Addr().Is6() && !addr.Addr().Is4In6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	k.fd, k.watched, k.served = fd, -1, 0
	if err := unix.Connect(fd, sa); err != nil {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	limit := unix.NsecToTimeval(stallLimit.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return fmt.Errorf("set receive timeout: %w", err)
	}
	return nil
}

func (k *conn) close() {
	if k.fd >= 0 {
		unix.Close(k.fd)
		k.fd = -1
	}
}

// send writes k's request. A request is far smaller than a socket buffer, and the connection is idle, so it never blocks.
func (p *pass) send(k *conn) error {
	if k.last {
		if err := p.reconnect(k); err != nil {
			return err
		}
	}
	k.filled, k.body, k.last = 0, -1, false
	err := k.write()
	if isReset(err) && k.served > 0 {
		if err := p.reconnect(k); err != nil {
			return err
		}
		err = k.write()
	}
	return err
}

func (k *conn) write() error {
	if n, err := unix.SendmsgN(k.fd, k.request.Bytes, nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("send request: %w", err)
	} else if n != len(k.request.Bytes) {
		return fmt.Errorf("send request: %d of %d bytes taken", n, len(k.request.Bytes))
	}
	return nil
}

// reconnect replaces a connection that the server has closed.
func (p *pass) reconnect(k *conn) error {
	p.tally.Reconnects++
	return k.dial(p.load.Addr)
}

// step receives once. It reports true when k's response is complete.
func (p *pass) step(k *conn) (done bool, err error) {
	if k.body < 0 {
		err = p.stepHead(k)
	} else {
		var n int
		n, err = receive(k.fd, p.sink[:min(k.body, int64(len(p.sink)))], p.flags)
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("GET %s: %w, %d bytes short", k.request.path(), errClosed, k.body)
		}
		k.body -= int64(n)
		p.tally.Bytes += int64(n)
	}
	if err != nil || k.body != 0 {
		return false, err
	}
	k.served++
	p.tally.Requests++
	return true, nil
}

// stepHead receives a part of a response head, and checks the head once it is complete.
func (p *pass) stepHead(k *conn) error {
	n, err := receive(k.fd, k.head[k.filled:], 0)
	if (errors.Is(err, io.EOF) || isReset(err)) && k.filled == 0 && k.served > 0 {
		// The server has closed a kept-alive connection before this request reached it.
		if err := p.reconnect(k); err != nil {
			return err
		}
		return k.write()
	}
	if err != nil {
		return fmt.Errorf("GET %s: %w", k.request.path(), err)
	}
	k.filled += n
	h, size, err := parseHead(k.head[:k.filled])
	if err != nil {
		return fmt.Errorf("GET %s: %w", k.request.path(), err)
	}
	if size == 0 {
		if k.filled == len(k.head) {
			return fmt.Errorf("GET %s: response head of more than %d bytes", k.request.path(), headLimit)
		}
		return nil
	}
	if err := h.check(k.request); err != nil {
		return fmt.Errorf("GET %s: %w", k.request.path(), err)
	}
	begun := int64(k.filled - size)
	if begun > h.length {
		return fmt.Errorf("GET %s: %d bytes more than the Content-Length of %d", k.request.path(), begun-h.length, h.length)
	}
	k.body, k.last = h.length-begun, h.close
	p.tally.Bytes += begun
	return nil
}

// receive is recv(2), without the allocation that the wrappers make for an address that TCP does not give.
func receive(fd int, buf []byte, flags int) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), uintptr(flags), 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return 0, errWouldBlock
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.EOF
		default:
			return int(n), nil
		}
	}
}

func isReset(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

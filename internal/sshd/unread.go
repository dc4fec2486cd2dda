package sshd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// The SSH library lets a client send 2 MiB on a channel before anybody reads them, and keeps each packet by itself: in packets of one byte
// these take 100 MB. It cannot be told otherwise, so what is taken from a connection is bounded: by its bytes on the wire that nobody has read yet.
//
// How many these are is not to be seen. What comes in is counted, what is read is taken off, and what is left is the cost of packets, and what
// is for the library itself. So now and then it is looked whether all channels are empty: then nothing is unread. A channel is empty when a read
// from it gives less than there is space for, or waits.
const (
	// maxUnread is what one connection has at most: all windows of its channels, and a fifth more.
	maxUnread = 24 << 20
	// allUnread is what all connections have together, from which on each has leastUnread.
	allUnread   = 256 << 20
	leastUnread = 256 << 10
	// shareOfRest is the part of what is left of allUnread that one connection may have.
	shareOfRest = 4
	// enough is from how much on it is looked whether nothing is unread, when a channel has become empty.
	enough = 1 << 20

	// settleTime is how long a read waits that finds nothing: the library returns what there is at once.
	settleTime = 5 * time.Millisecond
	// maxLook is how many bytes are read of a channel before its session wants them, to see whether there are any; lookSize how many at once.
	maxLook, lookSize = 128 << 10, 32 << 10
)

// unread counts, in bytes on the wire, what clients have sent.
type unread struct {
	all                atomic.Int64 // of all connections
	most, least, whole int64
}

func newUnread() *unread { return &unread{most: maxUnread, least: leastUnread, whole: allUnread} }

// A backlog is what one connection has of it.
type backlog struct {
	of   *unread
	held atomic.Int64  // changed with count held
	read chan struct{} // holds something when a channel was read from since it was last looked at
	over chan struct{} // closed when the connection is

	count  sync.Mutex
	closed bool

	mu       sync.Mutex // before that of a channel
	channels map[*channel]struct{}
}

func (u *unread) backlog() *backlog {
	return &backlog{of: u, read: make(chan struct{}, 1), over: make(chan struct{}), channels: map[*channel]struct{}{}}
}

func (b *backlog) add(n int) { b.change(func(held int64) int64 { return held + int64(n) }) }

// take takes off what was read.
func (b *backlog) take(n int) {
	b.change(func(held int64) int64 { return max(0, held-int64(n)) })
	select {
	case b.read <- struct{}{}:
	default:
	}
}

func (b *backlog) reset() { b.change(func(int64) int64 { return 0 }) }

func (b *backlog) change(to func(held int64) int64) {
	b.count.Lock()
	defer b.count.Unlock()
	if b.closed {
		return
	}
	held := b.held.Load()
	now := to(held)
	b.held.Store(now)
	b.of.all.Add(now - held)
}

func (b *backlog) close() {
	b.count.Lock()
	defer b.count.Unlock()
	if !b.closed {
		b.of.all.Add(-b.held.Swap(0))
		b.closed = true
		close(b.over)
	}
}

func (b *backlog) isFull() bool {
	return b.held.Load() >= max(b.of.least, min(b.of.most, (b.of.whole-b.of.all.Load())/shareOfRest))
}

// wait waits until more may be taken from the connection, for so long at most.
func (b *backlog) wait(limit time.Duration) error {
	begun := time.Now()
	for b.isFull() {
		if b.isEmpty(begun, nil) {
			b.reset()
			return nil
		}
		if time.Since(begun) > limit {
			return fmt.Errorf("nobody reads what the client sends: %w", os.ErrDeadlineExceeded)
		}
		select {
		case <-b.read:
		case <-time.After(settleTime):
		case <-b.over:
			return net.ErrClosed
		}
	}
	return nil
}

// isEmpty reports whether all channels, but maybe one, have been empty since a time at which nothing was taken from the connection any more.
// The zero time: whether they are now, as far as that is known.
func (b *backlog) isEmpty(since time.Time, but *channel) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	empty := true
	for c := range b.channels {
		if c != but && !c.isEmpty(since) {
			empty = false // the others are looked at as well
		}
	}
	return empty
}

// A channel is what an answer reads and writes.
type channel struct {
	ssh.Channel
	backlog *backlog
	cut     func() // ends the connection

	mu      sync.Mutex
	looked  sync.Cond // that looking has ended
	reading bool      // the session is
	looking bool      // somebody is who wants to know whether there is something
	begun   time.Time // when either of them began
	emptied time.Time // when it was last seen that there was nothing left
	ended   bool      // the client has said that nothing follows
	ahead   []byte    // what was found when it was looked
}

// channel returns a channel of the connection, which counts until it is closed.
func (b *backlog) channel(of ssh.Channel, cut func()) *channel {
	c := &channel{Channel: of, backlog: b, cut: cut}
	c.looked.L = &c.mu
	b.mu.Lock()
	defer b.mu.Unlock()
	b.channels[c] = struct{}{}
	return c
}

// gone says that both ends have closed the channel.
func (c *channel) gone() {
	c.backlog.mu.Lock()
	defer c.backlog.mu.Unlock()
	delete(c.backlog.channels, c)
}

// Read reads for the session.
func (c *channel) Read(p []byte) (int, error) {
	c.mu.Lock()
	for c.looking {
		c.looked.Wait()
	}
	if n := copy(p, c.ahead); n > 0 {
		c.ahead = c.ahead[n:]
		c.mu.Unlock()
		return n, nil
	}
	if c.ended {
		c.mu.Unlock()
		return 0, io.EOF
	}
	c.reading, c.begun = true, time.Now()
	c.mu.Unlock()
	n, err := c.Channel.Read(p)
	c.mu.Lock()
	c.reading = false
	short := c.seen(n, len(p), err)
	c.mu.Unlock()
	c.backlog.take(n)
	if short && c.backlog.held.Load() > enough && c.backlog.isEmpty(time.Time{}, c) {
		c.backlog.reset()
	}
	return n, err
}

// seen notes what a read into size bytes came to. It is called with mu held.
func (c *channel) seen(n, size int, err error) (short bool) {
	c.ended = c.ended || errors.Is(err, io.EOF)
	if short = n < size; short {
		c.emptied = time.Now()
	}
	return short
}

// isEmpty reports whether the channel has been empty since a time. Where that cannot be told yet, it is looked.
func (c *channel) isEmpty(since time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
		// What comes after the end is nobody's, and reading it does not wait.
		_, _ = io.Copy(io.Discard, c.Channel)
		_, _ = io.Copy(io.Discard, c.Stderr())
		return true
	case !since.IsZero() && c.emptied.After(since):
		return true
	case c.reading, c.looking:
		return time.Since(c.begun) >= settleTime
	case since.IsZero() || len(c.ahead) > maxLook-lookSize:
		return false
	}
	c.looking, c.begun = true, time.Now()
	go c.look()
	return false
}

// look reads what there is, for the session to have when it wants it.
func (c *channel) look() {
	p := make([]byte, lookSize)
	n, err := c.Channel.Read(p)
	c.mu.Lock()
	c.looking = false
	c.ahead = append(c.ahead, p[:n]...)
	c.seen(n, len(p), err)
	c.looked.Broadcast()
	c.mu.Unlock()
	c.backlog.take(n)
}

package sshd

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// The SSH library lets a client send 2 MiB on a channel before the server reads any of it, and keeps
// each packet by itself: packets of one byte take 48 bytes of heap and 36 on the wire, so that one
// channel takes 100 MB. The window cannot be set. So a connection is not read on while one of its
// channels may hold too many unread bytes, counted as bytes on the wire.
//
// The library does not say how many bytes of a channel are unread. But a read that returns less than
// it has space for, or that waits, has found the channel empty. A pump therefore reads each channel
// ahead of its session, and each channel counts the bytes on the wire since it was last found empty.
const (
	// maxUnread is the limit of a connection: the windows of all its channels and a fifth more, so
	// that only a client that sends small packets meets it.
	maxUnread = 24 << 20
	// keyUnread is what all connections of one key share. It costs at most 130 MB of heap.
	keyUnread = 96 << 20
	// pumpSize is how many bytes a pump reads ahead.
	pumpSize = 32 << 10
)

// A limits is how many unread bytes a connection may have.
type limits struct {
	connection, key int64

	mu   sync.Mutex
	open map[string]map[*unread]bool // connections by key
}

func newLimits(connection, key int64) *limits {
	return &limits{connection: connection, key: key, open: map[string]map[*unread]bool{}}
}

// join counts a connection of a key until leave is called. The others of the key may have more from
// then on, and look again.
func (l *limits) join(key string) (u *unread, leave func()) {
	u = newUnread(func() int64 { return l.of(key) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[key] == nil {
		l.open[key] = map[*unread]bool{}
	}
	l.open[key][u] = true
	return u, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.open[key], u)
		for other := range l.open[key] {
			other.lookAgain()
		}
		if len(l.open[key]) == 0 {
			delete(l.open, key)
		}
	}
}

// of returns the limit of one connection of a key.
func (l *limits) of(key string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(l.connection, l.key/int64(max(1, len(l.open[key]))))
}

// An unread counts what a connection has received since its channels were last found empty.
type unread struct {
	limit   func() int64
	changed chan struct{} // holds something when a channel was read from, or the limit rose, since it was last looked at
	closed  chan struct{}
	close   func() // closes closed, once

	mu       sync.Mutex
	channels map[*backlog]bool
}

func newUnread(limit func() int64) *unread {
	u := &unread{limit: limit, changed: make(chan struct{}, 1), closed: make(chan struct{}), channels: map[*backlog]bool{}}
	u.close = sync.OnceFunc(func() { close(u.closed) })
	return u
}

// A backlog is what one channel may hold. The mutex of its unread guards it.
type backlog struct {
	of      *unread
	held    int64 // at most so many bytes on the wire
	reading bool  // the pump reads, so that nothing stays in the channel
}

// backlog counts what a channel holds from now on, until it is removed.
func (u *unread) backlog() *backlog {
	u.mu.Lock()
	defer u.mu.Unlock()
	b := &backlog{of: u}
	u.channels[b] = true
	return b
}

func (b *backlog) remove() {
	b.change(func() { delete(b.of.channels, b) })
}

// change changes what is counted, and has wait look again.
func (b *backlog) change(do func()) {
	b.of.mu.Lock()
	do()
	b.of.mu.Unlock()
	b.of.lookAgain()
}

// lookAgain has wait look again.
func (u *unread) lookAgain() {
	select {
	case u.changed <- struct{}{}:
	default:
	}
}

// received adds bytes that came in, for whichever channel.
func (u *unread) received(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for b := range u.channels {
		b.held += int64(n)
	}
}

// read notes that n bytes were read from the channel. empty: there were no more.
func (b *backlog) read(n int, empty bool) {
	b.change(func() {
		b.reading = false
		if empty {
			b.held = 0
		}
		for other := range b.of.channels { // each has counted these bytes
			other.held = max(0, other.held-int64(n))
		}
	})
}

func (u *unread) isFull() bool {
	limit := u.limit()
	u.mu.Lock()
	defer u.mu.Unlock()
	for b := range u.channels {
		if b.held >= limit && !b.reading {
			return true
		}
	}
	return false
}

// wait waits until more may be taken from the connection, and fails after limit.
func (u *unread) wait(limit time.Duration) error {
	if !u.isFull() {
		return nil
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	for u.isFull() {
		select {
		case <-u.changed:
		case <-late.C:
			return fmt.Errorf("what the client sends is not read: %w", os.ErrDeadlineExceeded)
		case <-u.closed:
			return net.ErrClosed
		}
	}
	return nil
}

// A channel is what an answer reads and writes.
type channel struct {
	ssh.Channel
	in  *io.PipeReader // what the pump has read
	out *io.PipeWriter
	cut func() // ends the connection
}

func newChannel(of ssh.Channel, cut func()) *channel {
	c := &channel{Channel: of, cut: cut}
	c.in, c.out = io.Pipe()
	return c
}

// pump reads the channel until the client has closed it. It drops what the session does not want, so
// that the client goes on.
func (c *channel) pump(b *backlog) {
	p := make([]byte, pumpSize)
	for {
		b.change(func() { b.reading = true })
		n, err := c.Channel.Read(p)
		b.read(n, n < len(p))
		_, _ = c.out.Write(p[:n]) // fails once the session reads no more
		if err != nil {
			c.out.CloseWithError(err)
			return
		}
	}
}

// Read reads for the session.
func (c *channel) Read(p []byte) (int, error) { return c.in.Read(p) }

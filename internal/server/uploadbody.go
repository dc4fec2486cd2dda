package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"firn/internal/server/connlimit"
)

var (
	// errSlow ends an upload of which less than a slice arrived in its time.
	errSlow = errors.New("too slow")
	// errGone ends an upload whose client went away.
	errGone = errors.New("gone")
)

const (
	// firstSlice is how many bytes a client has to send before it is trusted to go on. A body that
	// never comes, and a small one, so holds its slot for seconds only.
	firstSlice = 64 << 10
	// firstPatience is the time that the client gets for these beside what connlimit.MinRate gives
	// it: a packet that is lost a few times over is late by that.
	firstPatience = 30 * time.Second
)

// uploadBody reads the body of an upload, and gives up on a client that sends as slowly as
// connlimit.Conn gives up on one that receives slowly.
type uploadBody struct {
	x     *exchange
	n     int64     // bytes so far
	next  int64     // with so many, the client gets time for another slice
	until time.Time // when that time is over
	read  time.Time // when Read returned last: the client is not to blame for what follows
	ended bool      // all of it has been read
	err   error     // with which it broke
}

// body returns the body of an upload for reading. The first Read asks a client for it that waits to be
// asked.
func (x *exchange) body() *uploadBody {
	x.upload = &uploadBody{x: x}
	return x.upload
}

// Read fails with errSlow, errGone, or io.EOF at the end of what the client promised to send.
func (b *uploadBody) Read(p []byte) (n int, err error) {
	if b.ended {
		return 0, io.EOF
	}
	if b.err != nil {
		return 0, b.err
	}
	control := http.NewResponseController(b.x.w)
	now := time.Now()
	if b.n >= b.next {
		// A response writer without deadlines, as in some tests, has no connection to hold up.
		part, limit := int64(connlimit.Slice), connlimit.Patience
		if b.n < firstSlice {
			part = firstSlice
		}
		if length := b.x.r.ContentLength; length >= 0 {
			part = min(part, max(length-b.n, 1))
		}
		limit = min(limit, firstPatience+time.Duration(part)*time.Second/connlimit.MinRate)
		b.until = now.Add(limit)
		_ = control.SetReadDeadline(b.until)
		b.next = b.n + part
	} else if paused := now.Sub(b.read); paused > time.Second {
		b.until = b.until.Add(paused)
		_ = control.SetReadDeadline(b.until)
	}
	n, err = b.x.r.Body.Read(p)
	b.read = time.Now()
	b.n += int64(n)
	b.x.share.arrived(int64(n))
	switch {
	case err == io.EOF:
		b.ended = true
		// net/http reads on from here, to see whether the client goes away. It may take as long as the
		// work takes.
		_ = control.SetReadDeadline(time.Time{})
		return n, io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.err = fmt.Errorf("read body: %w: %d bytes so far", errSlow, b.n)
	case err != nil:
		// Not wrapped: io.ErrUnexpectedEOF means something else to the reader of a NAR.
		b.err = fmt.Errorf("read body: %w: %d bytes so far: %v", errGone, b.n, err)
	}
	return n, b.err
}

// hasBody reports whether the request has a body, or may have one, of which not all was read.
func (x *exchange) hasBody() bool {
	return x.r.ContentLength != 0 && (x.upload == nil || !x.upload.ended)
}

// drain reads some of the body of a request that has been answered without it, so that the client
// sees the answer and not a broken connection. A client that waits to be asked for the body sends
// none. While it is drained, the connection may be closed for another one.
func (x *exchange) drain() {
	if x.status == 0 || x.r.ProtoMajor != 1 {
		return
	}
	control := http.NewResponseController(x.w)
	if err := control.Flush(); err != nil {
		return
	}
	if c, ok := connlimit.Of(x.r.Context()); ok {
		c.SetState(http.StateIdle) // net/http goes on waiting for a while, too
	}
	if x.r.Header["Expect"] != nil && x.upload == nil {
		return
	}
	if err := control.SetReadDeadline(time.Now().Add(bodyLimit)); err != nil {
		return
	}
	// The connection is closed in any case, whatever this fails with.
	_, _ = io.CopyN(io.Discard, x.r.Body, bodyBytes)
}

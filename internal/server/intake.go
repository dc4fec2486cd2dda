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
	// errSlow ends an upload of which less than a slice arrived in patience.
	errSlow = errors.New("too slow")
	// errGone ends an upload whose client went away.
	errGone = errors.New("gone")
)

const (
	// firstSlice is how many bytes a client has to send before it is trusted to go on.
	// A body that never comes, and a small one, so holds its slot for seconds only.
	firstSlice = 64 << 10
	// firstPatience is the time that it gets for these beside what minRate gives it: a packet that is lost a few times over is late by that.
	firstPatience = 30 * time.Second
)

// intake reads the body of an upload, and gives up on a client that sends as slowly as link gives up on one that takes slowly.
type intake struct {
	x     *exchange
	n     int64     // bytes so far
	next  int64     // with so many, the client gets time for another slice
	until time.Time // when that is over
	read  time.Time // when Read returned last: the client is not to blame for what follows
	ended bool      // all of it has been read
	err   error     // with which it broke
}

// body returns the body of the request, which is an upload, for reading it.
// The client that waits to be asked for it is asked by the first Read.
func (x *exchange) body() *intake {
	x.intake = &intake{x: x}
	return x.intake
}

// Read fails with errSlow, errGone, or io.EOF at the end of what the client promised to send.
func (i *intake) Read(p []byte) (n int, err error) {
	if i.ended {
		return 0, io.EOF
	}
	if i.err != nil {
		return 0, i.err
	}
	control := http.NewResponseController(i.x.w)
	now := time.Now()
	if i.n >= i.next {
		// What has no deadlines, as some tests, has no connection to hold up.
		part, limit := int64(connlimit.Slice), connlimit.Patience
		if i.n < firstSlice {
			part = firstSlice
		}
		if length := i.x.r.ContentLength; length >= 0 {
			part = min(part, max(length-i.n, 1))
		}
		limit = min(limit, firstPatience+time.Duration(part)*time.Second/connlimit.MinRate)
		i.until = now.Add(limit)
		_ = control.SetReadDeadline(i.until)
		i.next = i.n + part
	} else if paused := now.Sub(i.read); paused > time.Second {
		i.until = i.until.Add(paused)
		_ = control.SetReadDeadline(i.until)
	}
	n, err = i.x.r.Body.Read(p)
	i.read = time.Now()
	i.n += int64(n)
	i.x.share.arrived(int64(n))
	switch {
	case err == io.EOF:
		i.ended = true
		// net/http reads on from here, to see whether the client goes away. It may take as long as the work takes.
		_ = control.SetReadDeadline(time.Time{})
		return n, io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		i.err = fmt.Errorf("read body: %w: %d bytes so far", errSlow, i.n)
	case err != nil:
		// Not wrapped: io.ErrUnexpectedEOF means something else to who reads a NAR.
		i.err = fmt.Errorf("read body: %w: %d bytes so far: %v", errGone, i.n, err)
	}
	return n, i.err
}

// hasBody reports whether the request has a body, or may have one, of which not all was read.
func (x *exchange) hasBody() bool {
	return x.r.ContentLength != 0 && (x.intake == nil || !x.intake.ended)
}

// drain reads some of the body of a request that has been answered without it.
// A client that waits to be asked for it sends none.
// It is a kindness: once the answer is sent, the connection makes room for another where that is
// needed.
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
	if x.r.Header["Expect"] != nil && x.intake == nil {
		return
	}
	if err := control.SetReadDeadline(time.Now().Add(bodyLimit)); err != nil {
		return
	}
	// What it fails with, the connection is closed for anyway.
	_, _ = io.CopyN(io.Discard, x.r.Body, bodyBytes)
}

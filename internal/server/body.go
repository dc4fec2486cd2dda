package server

import (
	"io"
	"net/http"
	"time"
)

// How slowly a client may take a long body: slice bytes in patience, so 1 KiB/s averaged over four minutes.
// That is less than any link in use gives, and shorter than the five minutes after which Nix drops a silent server.
// A client that takes less holds a NAR open for no longer than that.
const (
	slice    = 256 << 10 // bytes
	patience = slice / minRate * time.Second
	minRate  = 1 << 10 // bytes a second
)

// body is the way of a long body to the client.
// It begins the answer with the first byte and lets the connection live as long as slices get through in time.
//
// It is an io.ReaderFrom down to the connection, which for files means sendfile.
type body struct {
	x        *exchange
	status   int       // of the answer, when it begins
	extended time.Time // when the deadline was last set
}

func (b *body) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		b.extend()
		var m int
		m, err = b.x.w.Write(p[n:min(n+slice, len(p))])
		n += m
		b.x.sent += int64(m)
	}
	return n, err
}

func (b *body) ReadFrom(r io.Reader) (n int64, err error) {
	// The connection sees through one LimitedReader to the file, not through two.
	whole, ok := r.(*io.LimitedReader)
	if !ok {
		whole = &io.LimitedReader{R: r, N: 1<<63 - 1}
	}
	part := &io.LimitedReader{R: whole.R}
	for whole.N > 0 {
		b.extend()
		part.N = min(slice, whole.N)
		want := part.N
		m, err := io.Copy(b.x.w, part)
		n += m
		whole.N -= m
		b.x.sent += m
		if err != nil || m < want {
			return n, err
		}
	}
	return n, nil
}

// extend gives the client the time for another slice.
func (b *body) extend() {
	if b.x.status == 0 {
		b.x.begin(b.status)
	}
	now := time.Now()
	if now.Sub(b.extended) < b.x.patience/16 {
		return // near enough
	}
	b.extended = now
	// Where there is no deadline to set, as in some tests, there is no connection to hold up.
	_ = http.NewResponseController(b.x.w).SetWriteDeadline(now.Add(b.x.patience))
}

package logs

import (
	"cmp"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// writeInterval is how long a line may wait to be written. So many are written at once, and a person
	// who watches does not notice.
	writeInterval = time.Second

	// writeSize is from how many bytes on lines do not wait.
	writeSize = 64 << 10

	// bufferSize bounds the bytes that wait for a disk that is slow: some 10,000 requests.
	bufferSize = 2 << 20
)

// RequestOptions are options of Requests.
type RequestOptions struct {
	// Format is Combined if empty.
	Format Format

	// Logger gets a record when requests could not be logged. Nil discards it.
	Logger *slog.Logger
}

// Requests is a log of requests. A request waits neither for the disk nor for others: lines are gathered in
// memory, and written by another goroutine. If the disk is too slow, lines are dropped and counted, so that
// memory stays bounded. It is safe for concurrent use.
type Requests struct {
	out    io.Writer
	format Format
	log    *slog.Logger

	wake chan struct{} // holds something when there are lines
	full chan struct{} // holds something when there are many
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex
	waiting []byte
	lost    int // since it was last said

	spare []byte // for the goroutine that writes
}

// NewRequests returns a log that writes to out, until it is closed.
func NewRequests(out io.Writer, opts RequestOptions) *Requests {
	r := &Requests{
		out:    out,
		format: cmp.Or(opts.Format, Combined),
		log:    cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		wake:   make(chan struct{}, 1),
		full:   make(chan struct{}, 1),
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	go r.run()
	return r
}

// Add logs a request.
func (r *Requests) Add(request *Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) >= bufferSize {
		r.lost++
		return
	}
	before := len(r.waiting)
	r.waiting = r.format.appendTo(r.waiting, request)
	if before == 0 {
		wake(r.wake)
	}
	if before < writeSize && len(r.waiting) >= writeSize {
		wake(r.full)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close writes what waits. Nothing is added any more.
func (r *Requests) Close() {
	close(r.stop)
	<-r.done
}

func (r *Requests) run() {
	defer close(r.done)
	defer r.write()
	for {
		select {
		case <-r.wake:
		case <-r.stop:
			return
		}
		select {
		case <-time.After(writeInterval):
		case <-r.full:
		case <-r.stop:
			return
		}
		r.write()
	}
}

// write writes what waits.
func (r *Requests) write() {
	r.mu.Lock()
	lines, lost := r.waiting, r.lost
	r.waiting, r.lost = r.spare[:0], 0
	r.mu.Unlock()
	r.spare = lines
	if len(lines) > 0 {
		if _, err := r.out.Write(lines); err != nil {
			r.log.Error("requests were not logged", "error", err)
		}
	}
	if lost > 0 {
		r.log.Error("requests were not logged: the disk was too slow", "requests", lost)
	}
}

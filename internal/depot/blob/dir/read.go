package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

const (
	// partSize is how many bytes of a file are handed over at once: between two parts, a cancelled context is seen.
	partSize = 16 << 20

	// bufferSize is how many bytes are read at once for who takes no file.
	bufferSize = 128 << 10

	// maxIdle is how many handles of a blob stay open beside the first: those of ranges that were written at the same time.
	maxIdle = 3
)

// buffers has what files are read into: *[bufferSize]byte.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// file is a blob that is open.
type file struct {
	size  int64
	first *os.File // ReadAt does not move its offset, so it may be lent as well

	mu   sync.Mutex
	lent bool // first is
	idle []*os.File
}

// Size asks the file: somebody may have truncated it since.
func (f *file) Size() int64 {
	info, err := f.first.Stat()
	if err != nil {
		return f.size
	}
	return min(info.Size(), f.size)
}

func (f *file) ReadAt(p []byte, off int64) (int, error) { return f.first.ReadAt(p, off) }

func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.idle {
		h.Close()
	}
	f.idle = nil
	return f.first.Close()
}

// borrow returns a handle that nobody else reads from, for giveBack.
func (f *file) borrow() (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.lent {
		f.lent = true
		return f.first, nil
	}
	if last := len(f.idle) - 1; last >= 0 {
		h := f.idle[last]
		f.idle = f.idle[:last]
		return h, nil
	}
	h, err := os.Open(f.first.Name())
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (f *file) giveBack(h *os.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case h == f.first:
		f.lent = false
	case len(f.idle) < maxIdle:
		f.idle = append(f.idle, h)
	default:
		h.Close()
	}
}

// WriteRange hands the file over to w, for sendfile, if w takes one.
func (f *file) WriteRange(ctx context.Context, w io.Writer, off, n int64) error {
	if off < 0 || n < 0 || off > f.size-n {
		return fmt.Errorf("write blob: %d bytes from %d on are not within its %d bytes", n, off, f.size)
	}
	if err := f.writeRange(ctx, w, off, n); err != nil {
		return fmt.Errorf("write blob: %w", err)
	}
	return nil
}

func (f *file) writeRange(ctx context.Context, w io.Writer, off, n int64) error {
	if _, ok := w.(io.ReaderFrom); ok {
		h, err := f.borrow()
		if err == nil {
			defer f.giveBack(h)
			return send(ctx, w, h, off, n)
		}
		// The blob was deleted, or too many files are open: the first handle can always be read.
	}
	buffer := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m, err := f.first.ReadAt(buffer[:min(n, bufferSize)], off)
		if m == 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if _, err := w.Write(buffer[:m]); err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
	}
	return nil
}

// send copies n bytes of a file to w as what a net.Conn makes a sendfile of.
func send(ctx context.Context, w io.Writer, h *os.File, off, n int64) error {
	if _, err := h.Seek(off, io.SeekStart); err != nil {
		return err
	}
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m, err := io.CopyN(w, h, min(n, partSize))
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		n -= m
	}
	return nil
}

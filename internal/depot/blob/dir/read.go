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
	// partSize is how many bytes of a file are handed over at once. Between two parts, a cancelled
	// context is noticed.
	partSize = 16 << 20

	// bufferSize is how many bytes are read at once for a writer that takes no file.
	bufferSize = 128 << 10
)

// buffers are memory for reading files: *[bufferSize]byte.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// file is an open blob. It has one file descriptor, however many ranges are being read: every read
// has an offset of its own, and the offset of the file is not used.
type file struct {
	*os.File
	size int64
}

// Size asks the file: it may have been truncated since.
func (f *file) Size() int64 {
	info, err := f.Stat()
	if err != nil {
		return f.size
	}
	return min(info.Size(), f.size)
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
	if to, ok := w.(io.ReaderFrom); ok {
		return f.lend(ctx, to, off, n)
	}
	buffer := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m, err := f.ReadAt(buffer[:min(n, bufferSize)], off)
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

// lend has w read n bytes of the file.
func (f *file) lend(ctx context.Context, w io.ReaderFrom, off, n int64) error {
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := min(n, partSize)
		m, err := w.ReadFrom(io.NewSectionReader(f.File, off, part))
		if err == nil && m < part {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

package zstdcache

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
)

// partSize is how many bytes of a file are handed over at once: between two parts, a cancelled context is seen.
const partSize = 16 << 20

// kept is a cache.NAR: a kept file, opened, or its bytes.
type kept struct {
	dir    *dir
	file   *file
	handle *os.File // nil if the bytes are in data
	data   []byte
	broken bool // the file has not the bytes it should have
}

func (k *kept) Size() int64 { return k.file.size }

func (k *kept) Close() error {
	switch {
	case k.handle == nil:
		return nil
	case k.broken:
		k.dir.drop(k.file, io.ErrUnexpectedEOF)
		return k.handle.Close()
	}
	return k.dir.giveBack(k.file, k.handle)
}

func (k *kept) WriteRange(ctx context.Context, w io.Writer, off, n int64) error {
	if off < 0 || n < 0 || off > k.file.size-n {
		return fmt.Errorf("write compressed NAR: %d bytes from %d on are not within its %d bytes", n, off, k.file.size)
	}
	if k.handle == nil {
		_, err := w.Write(k.data[off : off+n])
		return err
	}
	if _, err := k.handle.Seek(off, io.SeekStart); err != nil {
		return err
	}
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Of this shape a net.Conn makes a sendfile.
		m, err := io.CopyN(w, k.handle, min(n, partSize))
		if err == io.EOF {
			k.broken = true
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("write compressed NAR: %w", err)
		}
		n -= m
	}
	return nil
}

// open opens the file of k, or has it in memory if it is tiny.
func (k *kept) open() error {
	d, f := k.dir, k.file
	handle, err := d.root.Open(d.name(f))
	if err != nil {
		return err
	}
	info, err := handle.Stat()
	if err == nil && info.Size() != f.size {
		err = fmt.Errorf("%s has %d bytes", handle.Name(), info.Size())
	}
	if err == nil && f.size > tinySize {
		k.handle = handle
		return nil
	}
	defer handle.Close()
	if err != nil {
		return err
	}
	k.data = make([]byte, f.size)
	if _, err := io.ReadFull(handle, k.data); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.has(f) {
		d.tiny.Put(f.hash, k.data, f.size)
	}
	for d.tiny.Cost() > tinyMemory {
		oldest, _ := d.tiny.Oldest()
		d.tiny.Remove(oldest)
	}
	return nil
}

// giveBack keeps the handle of a file open for the next who asks.
func (d *dir) giveBack(f *file, handle *os.File) error {
	d.mu.Lock()
	if d.has(f) && d.maxIdle > 0 {
		f.idle = append(f.idle, handle)
		d.idle.Put(handle, f, 1)
		handle = nil
	}
	if d.idle.Cost() > d.maxIdle {
		handle, _ = d.idle.Oldest()
		f, _ := d.idle.Peek(handle)
		d.idle.Remove(handle)
		f.idle = slices.DeleteFunc(f.idle, func(h *os.File) bool { return h == handle })
	}
	d.mu.Unlock()
	if handle == nil {
		return nil
	}
	return handle.Close()
}

// closeIdle closes what is open of f and not in use. It is called with mu held.
func (d *dir) closeIdle(f *file) {
	for _, handle := range f.idle {
		d.idle.Remove(handle)
		handle.Close()
	}
	f.idle = nil
}

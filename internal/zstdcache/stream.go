package zstdcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"firn/internal/cache"
	"firn/nix"
)

// stream is a NAR while it is compressed: a file that grows, one maker, and any number of readers.
type stream struct {
	info   *nix.PathInfo
	cancel context.CancelCauseFunc // ends the making
	users  int                     // the maker and the readers; guarded by the mutex of the Cache

	mu     sync.Mutex
	making *making       // nil until there is a file; closed by the last user
	size   int64         // how much of the file is whole frames
	frames int64         // how many
	ended  bool          // nothing will be added
	err    error         // why, if not because it is whole
	grown  chan struct{} // closed, and replaced, when any of this changes
}

// release is called for each user when it goes, with the mutex of the Cache held.
func (s *stream) release() {
	s.users--
	if s.users == 0 && s.making != nil {
		s.making.file.Close()
	}
}

// change lets the waiters see what f changes.
func (s *stream) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.grown)
	s.grown = make(chan struct{})
}

// wait returns when the stream has more than size bytes or is whole: how many there are now, and whether these are all.
func (s *stream) wait(ctx context.Context, size int64) (now int64, whole bool, err error) {
	for {
		s.mu.Lock()
		now, whole, err = s.size, s.ended && s.err == nil, s.err
		grown := s.grown
		s.mu.Unlock()
		switch {
		case now > size || whole:
			return now, whole, nil
		case err != nil:
			return 0, false, err
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return 0, false, context.Cause(ctx)
		}
	}
}

// halfMade reports whether about half of the NAR is compressed.
func (s *stream) halfMade() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frames >= frames(s.info)/2
}

// frames is how many frames a NAR has.
func frames(info *nix.PathInfo) int64 { return (info.NARSize + frameSize - 1) / frameSize }

// run makes the stream, and keeps the file. It returns after that, so that who sees the end finds the file kept.
func (c *Cache) run(ctx context.Context, s *stream, open func(context.Context) (cache.NAR, error)) error {
	lane := c.large
	if s.info.NARSize <= smallSize {
		lane = c.small
	}
	if err := enter(ctx, lane.open); err != nil {
		return err
	}
	defer func() { <-lane.open }()
	in, err := open(ctx)
	if err != nil {
		return err
	}
	defer in.Close()
	m, err := c.dir.begin()
	if err != nil {
		return err
	}
	s.change(func() { s.making = m })
	err = lane.compress(ctx, s.info, in, 0, func(frame []byte) error {
		if err := m.write(frame); err != nil {
			return err
		}
		s.change(func() { s.size, s.frames = m.size, s.frames+1 })
		return nil
	})
	if err != nil {
		m.drop()
		return err
	}
	if err := m.keep(s.info.NARHash); err != nil {
		c.log.Warn("did not keep a compressed NAR", "path", s.info.Path.String(), "error", err)
	}
	return nil
}

// reader is a cache.NAR and cache.Unfinished: one reader of a stream.
type reader struct {
	cache  *Cache
	stream *stream
	open   func(context.Context) (cache.NAR, error)
	size   int64     // -1 until it is known
	in     cache.NAR // what open gave, for direct; or nil
}

// begin waits until it is certain that there is something to read.
func (r *reader) begin(ctx context.Context) error {
	most := int64(0)
	if frames(r.stream.info) == 1 {
		most = 1<<63 - 1 // all of it
	}
	size, whole, err := r.stream.wait(ctx, most)
	switch {
	case errors.Is(err, errNotKept):
		r.in, err = r.open(ctx)
	case whole:
		r.size = size
	}
	return err
}

func (r *reader) Size() int64 { return r.size }

func (r *reader) Close() error {
	r.cache.leave(r.stream)
	if r.in != nil {
		return r.in.Close()
	}
	return nil
}

func (r *reader) Wait(ctx context.Context) error {
	size, _, err := r.stream.wait(ctx, 1<<63-1)
	if err == nil {
		r.size = size
	}
	return r.describe("wait for", err)
}

func (r *reader) WriteRange(ctx context.Context, w io.Writer, off, n int64) error {
	err := r.write(ctx, w, off, n)
	if errors.Is(err, errNotKept) {
		err = r.direct(ctx, w)
	}
	return r.describe("write", err)
}

func (r *reader) write(ctx context.Context, w io.Writer, off, n int64) error {
	switch all := r.size < 0 && off == 0 && n == -1; {
	case all:
		n = 1<<63 - 1
	case off < 0 || n < 0 || off > r.size-n:
		return fmt.Errorf("%d bytes from %d on are not within its %d bytes", n, off, r.size)
	}
	for n > 0 {
		size, whole, err := r.stream.wait(ctx, off)
		if err != nil {
			return err
		}
		part := min(n, size-off)
		if part == 0 && whole {
			return nil
		}
		m, err := io.Copy(w, io.NewSectionReader(r.stream.making.file, off, part))
		if err != nil {
			return err
		}
		if m < part {
			return io.ErrUnexpectedEOF
		}
		off, n = off+part, n-part
	}
	return nil
}

// direct writes the frames that the stream could not keep, made for this reader alone.
func (r *reader) direct(ctx context.Context, w io.Writer) error {
	s := r.stream
	if err := enter(ctx, r.cache.directs); err != nil {
		return err
	}
	defer func() { <-r.cache.directs }()
	r.cache.direct.Add(1)
	if r.in == nil {
		in, err := r.open(ctx)
		if err != nil {
			return err
		}
		r.in = in
	}
	lane := newLane(r.cache.level, 1, 1, frameSize)
	if s.info.NARSize <= smallSize {
		lane = newLane(r.cache.level, 1, 1, smallSize)
	}
	return lane.compress(ctx, s.info, r.in, s.frames, func(frame []byte) error {
		_, err := w.Write(frame)
		return err
	})
}

func (r *reader) describe(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s compressed NAR of %s: %w", verb, r.stream.info.Path, err)
}

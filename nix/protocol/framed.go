package protocol

import (
	"bufio"
	"context"
	"errors"
	"io"
)

// maxFrame is the longest frame that there is, in bytes: Nix keeps its length in 32 bits. It is read piece by piece.
const maxFrame = 1<<32 - 1

// frames reads what is sent in frames: the length of each, its bytes, and 0 at the end.
type frames struct {
	c    *wire
	left uint64 // of the current frame
	done bool
}

func (f *frames) Read(p []byte) (int, error) {
	if f.c.err != nil {
		return 0, f.c.err
	}
	if f.left == 0 && !f.done {
		f.left = f.c.uint()
		if f.c.err == nil && f.left > maxFrame {
			f.c.malformed("a frame of %d bytes", f.left)
		}
		if f.c.err != nil {
			f.c.err = cutOff(f.c.err)
			return 0, f.c.err
		}
		f.done = f.left == 0
	}
	if f.done {
		return 0, io.EOF
	}
	n, err := f.c.r.Read(p[:min(uint64(len(p)), f.left)])
	f.left -= uint64(n)
	if err != nil {
		f.c.fail(cutOff(err))
		return n, f.c.err
	}
	return n, nil
}

// drain reads up to the end of the frames, so that another question can follow.
func (f *frames) drain() {
	if f.c.err == nil {
		_, err := io.Copy(io.Discard, f)
		f.c.fail(err)
	}
}

var errMore = errors.New("there is more than was announced")

// framed runs f on what the client sends in frames. An error is told at once, so that the client may stop before it has sent all in vain.
func (s *workerServer) framed(f func(r io.Reader) error, put func()) error {
	if s.err != nil {
		return s.err
	}
	in := &frames{c: s.wire}
	err := f(in)
	if s.err != nil { // the connection is of no use
		return s.err
	}
	if err == nil {
		if n, _ := in.Read(make([]byte, 1)); n > 0 {
			err = errMore
		}
	}
	if err != nil {
		s.sayError(err)
		s.flush()
		in.drain()
		return nil
	}
	return s.result(nil, put)
}

// nothing is the result of a question that has none.
func nothing() {}

func (s *workerServer) addToStoreNar(ctx context.Context) error {
	info := s.info(s.dir, s.path(s.dir))
	s.skip(2) // repair, and whether to check signatures: nothing is repaired, and the reader checks
	if s.err != nil {
		return s.err
	}
	add := func(r io.Reader) error {
		if s.opts.ReadOnly {
			return errReadOnly
		}
		if err := s.store.ReadNAR(ctx, info, exactly(r, info.NARSize)); err != nil {
			return err
		}
		return s.store.Settle(ctx)
	}
	if s.has(23) {
		return s.framed(add, nothing)
	}
	// Before there were frames the server asked for each piece. To ask for more than there is, is an error to the client.
	return s.result(add(&pulled{s: s, left: info.NARSize}), nothing)
}

// pulled asks for each piece of a NAR. After an error of another kind the client still knows what to do: it was not asked for more.
type pulled struct {
	s     *workerServer
	left  int64 // not asked for
	piece int   // that was sent and not read
	pad   int
}

func (p *pulled) Read(buf []byte) (int, error) {
	c := p.s.wire
	if p.piece == 0 {
		if p.left == 0 {
			return 0, io.EOF
		}
		want := min(p.left, bufferSize)
		c.putUint(stderrRead)
		c.putUint(uint64(want))
		p.piece = c.count(int(want), "bytes in a piece of a NAR")
		if c.err == nil && p.piece == 0 {
			c.err = io.ErrUnexpectedEOF
		}
		if c.err != nil {
			c.err = cutOff(c.err)
			return 0, c.err
		}
		p.pad = -p.piece & 7
		p.left -= int64(p.piece)
	}
	n, err := c.r.Read(buf[:min(len(buf), p.piece)])
	p.piece -= n
	if err == nil && p.piece == 0 {
		_, err = c.r.Discard(p.pad)
	}
	if err != nil {
		c.fail(cutOff(err))
		return n, c.err
	}
	return n, nil
}

// addMultipleToStore reads any number of paths with their NARs. Each NAR is read while those before it are still being kept.
func (s *workerServer) addMultipleToStore(ctx context.Context) error {
	s.skip(2) // repair, and whether to check signatures
	return s.framed(func(r io.Reader) error {
		if s.opts.ReadOnly {
			return errReadOnly
		}
		in := &wire{r: bufio.NewReaderSize(r, bufferSize), budget: s.budget}
		n := in.count(maxPaths, "paths")
		for range n {
			in.budget.clear()
			info := in.info(s.dir, in.path(s.dir))
			if in.err != nil {
				break
			}
			if err := s.store.ReadNAR(ctx, info, exactly(in.r, info.NARSize)); err != nil {
				in.fail(err)
				break
			}
		}
		if in.err == nil {
			if _, err := in.r.Peek(1); err == nil {
				in.fail(errMore)
			}
		}
		err := s.store.Settle(ctx) // also what was read before a failure stays
		if in.err != nil {
			return cutOff(in.err)
		}
		return err
	}, nothing)
}

func (s *workerServer) addBuildLog(ctx context.Context) error {
	name := s.string(maxPath)
	return s.framed(func(r io.Reader) error {
		if s.opts.ReadOnly {
			return errReadOnly
		}
		drv, err := s.dir.ParseBase(name)
		if err != nil {
			return err
		}
		return s.store.PutBuildLog(ctx, drv, r)
	}, s.yes)
}

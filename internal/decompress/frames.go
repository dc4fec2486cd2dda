package decompress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"firn/internal/cache"
)

// frames walks over the frames of zstd and lz4 without decoding them, and hands their bytes on. So it knows
// how much memory a frame takes before the decoder does, and where the data must not end. It ends with
// io.EOF before a frame that takes more memory than is held.
type frames struct {
	in *bufio.Reader
	// header reads the header of the next frame, after its magic number, to head,
	// and returns the memory in bytes that the frame takes and what is in it.
	header func(f *frames, magic uint32) (memory int64, blocks blocks, err error)
	skips  func(magic uint32) bool

	held int64 // bytes of memory
	need int64 // of the frame that begins here

	blocks blocks // of the frame that this is in; nil between two
	head   []byte // to hand on before the rest
	left   int64  // bytes of in to hand on
	err    error
}

// blocks reads what comes next in a frame to f.head, and sets f.left. done is true if the frame ends after that.
type blocks func(f *frames) (done bool, err error)

func (f *frames) Read(p []byte) (n int, err error) {
	for {
		switch {
		case len(f.head) > 0 && f.need <= f.held:
			n = copy(p, f.head)
			f.head = f.head[n:]
			return n, nil
		case f.need > f.held:
			return 0, io.EOF
		case f.left > 0:
			n, err = f.in.Read(p[:min(int64(len(p)), f.left)])
			f.left -= int64(n)
			return n, early(err)
		case f.err != nil:
			return 0, f.err
		case f.blocks != nil:
			f.head = f.head[:0]
			done, err := f.blocks(f)
			if err != nil {
				f.err = early(err)
				return 0, f.err
			}
			if done {
				f.blocks = nil
			}
		default:
			if f.err = f.next(); f.err != nil {
				return 0, f.err
			}
		}
	}
}

// next reads the header of the next frame, or io.EOF.
func (f *frames) next() error {
	f.head = f.head[:0]
	for {
		if _, err := f.in.Peek(1); err != nil {
			return err
		}
		if err := f.more(4); err != nil {
			return err
		}
		magic := binary.LittleEndian.Uint32(f.head)
		if !f.skips(magic) {
			memory, blocks, err := f.header(f, magic)
			if err != nil {
				return early(err)
			}
			f.need, f.blocks = memory, blocks
			return nil
		}
		if err := f.more(4); err != nil {
			return err
		}
		size := int(binary.LittleEndian.Uint32(f.head[4:]))
		if _, err := f.in.Discard(size); err != nil {
			return early(err)
		}
		f.head = f.head[:0]
	}
}

// more appends n bytes to head.
func (f *frames) more(n int) error {
	old := len(f.head)
	f.head = append(f.head, make([]byte, n)...)
	_, err := io.ReadFull(f.in, f.head[old:])
	return early(err)
}

// end is called when a decoder has come to an end of the frames: nil if more of them follow.
func (f *frames) end() error {
	switch {
	case f.need > f.held:
		return nil
	case f.err != nil:
		return f.err
	}
	return errors.New("it ends before its frames do")
}

// walk opens the next frames of a format that is walked over.
func (s *stream) walk(f frames) (*frames, error) {
	if s.frames == nil {
		f.in = s.in
		s.frames = &f
		// A file of skippable frames only is valid, and an empty one is not.
		if f.err = f.next(); f.err != nil && (f.err != io.EOF || s.source.n == 0) {
			return nil, f.err
		}
	}
	if err := s.reserve(s.frames.need); err != nil {
		return nil, err
	}
	s.frames.held = s.held
	return s.frames, nil
}

// skippable reports whether a frame has no data, in zstd and lz4 alike.
func skippable(magic uint32) bool { return magic&^0xf == 0x184D2A50 }

func zstdFormat(s *stream) (io.Reader, error) {
	f, err := s.walk(frames{header: zstdHeader, skips: skippable})
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1), // no goroutines: other uploads keep the other cores busy
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(max(uint64(f.held), zstd.MinWindowSize)))
	if err != nil {
		return nil, err
	}
	return d, d.Reset(f)
}

// zstdHeader reads a frame header of zstd (RFC 8878, 3.1.1.1).
func zstdHeader(f *frames, magic uint32) (int64, blocks, error) {
	if magic != 0xFD2FB528 {
		return 0, nil, errMagic
	}
	if err := f.more(1); err != nil {
		return 0, nil, err
	}
	descriptor := f.head[4]
	single, checksum := descriptor&0x20 != 0, descriptor&4 != 0
	var window uint64
	if !single {
		if err := f.more(1); err != nil {
			return 0, nil, err
		}
		b := f.head[5]
		window = 1 << (10 + b>>3)
		window += window / 8 * uint64(b&7)
	}
	if n := [4]int{0, 1, 2, 4}[descriptor&3]; n > 0 {
		if err := f.more(n); err != nil {
			return 0, nil, err
		}
		for _, b := range f.head[len(f.head)-n:] {
			if b != 0 {
				return 0, nil, cache.Refuse(cache.ErrInvalid, "the zstd data needs a dictionary, which this server does not have")
			}
		}
	}
	size := [4]int{0, 2, 4, 8}[descriptor>>6]
	if size == 0 && single {
		size = 1
	}
	if err := f.more(size); err != nil {
		return 0, nil, err
	}
	if single {
		var b [8]byte
		copy(b[:], f.head[len(f.head)-size:])
		window = binary.LittleEndian.Uint64(b[:])
		if size == 2 {
			window += 256
		}
	}
	window = max(window, zstd.MinWindowSize)
	return int64(min(window, 1<<62)), func(f *frames) (done bool, err error) { return zstdBlock(f, checksum) }, nil
}

// zstdBlock walks over a block of zstd (RFC 8878, 3.1.1.2), and over the checksum after the last.
func zstdBlock(f *frames, checksum bool) (last bool, err error) {
	if err := f.more(3); err != nil {
		return false, err
	}
	h := uint32(f.head[0]) | uint32(f.head[1])<<8 | uint32(f.head[2])<<16
	last = h&1 != 0
	f.left = int64(h >> 3)
	switch h >> 1 & 3 {
	case 1: // one byte, repeated
		f.left = 1
	case 3:
		return false, errors.New("it has a block of a reserved type")
	}
	if last && checksum {
		f.left += 4
	}
	return last, nil
}

func lz4Format(s *stream) (io.Reader, error) {
	f, err := s.walk(frames{header: lz4Header, skips: skippable})
	if err != nil {
		return nil, err
	}
	r := lz4.NewReader(f)
	return r, r.Apply(lz4.ConcurrencyOption(1))
}

// lz4Header reads a frame header of lz4 (https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md).
func lz4Header(f *frames, magic uint32) (int64, blocks, error) {
	if magic != 0x184D2204 {
		return 0, nil, errMagic
	}
	if err := f.more(2); err != nil {
		return 0, nil, err
	}
	flags, block := f.head[4], f.head[5]>>4&7
	if flags>>6 != 1 || block < 4 {
		return 0, nil, errors.New("it is of another version of lz4")
	}
	rest := 1 // checksum of the header
	if flags&8 != 0 {
		rest += 8 // content size
	}
	if flags&1 != 0 {
		return 0, nil, cache.Refuse(cache.ErrInvalid, "the lz4 data needs a dictionary, which this server does not have")
	}
	if err := f.more(rest); err != nil {
		return 0, nil, err
	}
	// A block, compressed and not, and what the next block refers to.
	memory := int64(2)<<(8+2*block) + 192<<10
	sum := func(flag byte) int64 {
		if flags&flag != 0 {
			return 4
		}
		return 0
	}
	return memory, func(f *frames) (done bool, err error) {
		if err := f.more(4); err != nil {
			return false, err
		}
		h := binary.LittleEndian.Uint32(f.head)
		if h == 0 {
			f.left = sum(4)
			return true, nil
		}
		f.left = int64(h&^(1<<31)) + sum(16)
		return false, nil
	}, nil
}

var errMagic = errors.New("there is no frame where one should begin")

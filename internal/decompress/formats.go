package decompress

import (
	"bufio"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/mikelolasagasti/xz"
	"github.com/ulikunitz/xz/lzma"

	"firn/internal/cache"
)

// Memory of decoders that does not depend on the data, in bytes.
const (
	inflateMemory = 64 << 10 // a window of 32 KiB, and tables
	bzip2Memory   = 4 << 20  // 900,000 bytes, 4 bytes for each
)

func gzipFormat(s *stream) (io.Reader, error) {
	if s.gzip == nil {
		if err := s.reserve(inflateMemory); err != nil {
			return nil, err
		}
		s.gzip = new(gzip.Reader)
	}
	if err := s.gzip.Reset(s.in); err != nil {
		return nil, err
	}
	// Each member is a part: a decoder that goes on by itself takes the beginning of the next member for
	// the end.
	s.gzip.Multistream(false)
	return s.gzip, nil
}

// deflate is zlib, as in HTTP.
func deflate(s *stream) (io.Reader, error) {
	if s.opened > 0 {
		return nil, errTrailing
	}
	if err := s.reserve(inflateMemory); err != nil {
		return nil, err
	}
	r, err := zlib.NewReader(s.in)
	return r, err
}

func bzip2Format(s *stream) (io.Reader, error) {
	if err := s.reserve(bzip2Memory); err != nil {
		return nil, err
	}
	if _, err := s.in.Peek(1); err != nil {
		return nil, err
	}
	return bzip2.NewReader(s.in), nil
}

func brotliFormat(s *stream) (io.Reader, error) {
	first, err := s.in.Peek(1)
	if err != nil {
		return nil, err
	}
	// The window grows with the data: for a moment there are two.
	if err := s.reserve(2 << brotliWindow(first[0])); err != nil {
		return nil, err
	}
	return brotli.NewReader(s.in), nil
}

// brotliWindow returns the logarithm of the size of the window of a stream that begins with b (RFC 7932, 9.1).
func brotliWindow(b byte) int {
	switch {
	case b&1 == 0:
		return 16
	case b>>1&7 != 0:
		return 17 + int(b>>1&7)
	case b>>4&7 == 0:
		return 17
	}
	return 8 + int(b>>4&7) // 1 is of large windows, which the decoder refuses
}

// xzFormat decodes all streams and blocks. No block may have a larger dictionary than the first: programs
// make them all alike.
func xzFormat(s *stream) (io.Reader, error) {
	size, err := xzDictionary(s.in)
	if err != nil {
		return nil, err
	}
	size = max(size, xzLeast)
	if err := s.reserve(size); err != nil {
		return nil, err
	}
	r, err := xz.NewReader(s.in, uint32(size))
	return xzReader{r}, err
}

// xzLeast is the size of dictionaries that later blocks may have in any case, in bytes.
const xzLeast = 1 << 20

type xzReader struct{ r *xz.Reader }

func (x xzReader) Read(p []byte) (int, error) {
	n, err := x.r.Read(p)
	switch err {
	case xz.ErrBuf:
		err = io.ErrUnexpectedEOF // it has checked all that came before
	case xz.ErrMemlimit:
		err = cache.Refuse(cache.ErrTooLarge, "a later block of the xz data has a larger dictionary than the first one")
	}
	return n, err
}

// xzDictionary returns the size in bytes of the dictionary of the first block, 0 if there is no block, and
// reads nothing. It checks no headers: the decoder does.
func xzDictionary(in *bufio.Reader) (int64, error) {
	const streamHeader = 12
	b, err := in.Peek(streamHeader + 1)
	if err != nil {
		return 0, err
	}
	if b[streamHeader] == 0 { // the index
		return 0, nil
	}
	b, err = in.Peek(streamHeader + 4*(int(b[streamHeader])+1))
	if err != nil {
		return 0, err
	}
	h := b[streamHeader+1 : len(b)-4] // without size and CRC32
	flags := h[0]
	h = h[1:]
	varint := func() (v uint64) {
		v, n := binary.Uvarint(h)
		h = h[max(n, 0):]
		if n <= 0 {
			h = nil
		}
		return v
	}
	if flags&0x40 != 0 {
		varint() // compressed size
	}
	if flags&0x80 != 0 {
		varint() // uncompressed size
	}
	const lzma2 = 0x21
	for range flags&3 + 1 {
		id, size := varint(), varint()
		if uint64(len(h)) < size {
			break
		}
		if id != lzma2 {
			h = h[size:]
			continue
		}
		if size != 1 || h[0] > 40 {
			break
		}
		return int64(2|h[0]&1) << (h[0]/2 + 11), nil // at most 4 GiB
	}
	return 0, errors.New("its first block has no LZMA2 filter")
}

func lzmaFormat(s *stream) (io.Reader, error) {
	if s.opened > 0 {
		return nil, errTrailing
	}
	h, err := s.in.Peek(lzma.HeaderLen)
	if err != nil {
		return nil, err
	}
	dictionary := int64(binary.LittleEndian.Uint32(h[1:]))
	if size := binary.LittleEndian.Uint64(h[5:]); size < uint64(dictionary) {
		dictionary = int64(size) // the decoder takes no more either
	}
	if lc, lp := h[0]%9, h[0]/9%5; lc+lp > 4 {
		return nil, errors.New("its properties are not allowed") // nor are they by Nix's own decoder: they take memory too
	}
	if err := s.reserve(max(dictionary, lzma.MinDictCap)); err != nil {
		return nil, err
	}
	r, err := lzma.NewReader(s.in)
	return r, err
}

// lzipFormat decodes one member (https://www.nongnu.org/lzip/manual/lzip_manual.html#File-format).
func lzipFormat(s *stream) (io.Reader, error) {
	start := s.position()
	var h [6]byte
	if _, err := io.ReadFull(s.in, h[:]); err != nil {
		return nil, err
	}
	if string(h[:5]) != "LZIP\x01" {
		return nil, errors.New("it is not of lzip, version 1")
	}
	dictionary := int64(1) << (h[5] & 31)
	dictionary -= dictionary / 16 * int64(h[5]>>5)
	if dictionary < lzma.MinDictCap || dictionary > 512<<20 {
		return nil, errors.New("the size of its dictionary is not allowed")
	}
	if err := s.reserve(dictionary); err != nil {
		return nil, err
	}
	const properties = 3 + 9*5*2 // lc 3, lp 0, pb 2
	head := binary.LittleEndian.AppendUint32([]byte{properties}, uint32(dictionary))
	head = binary.LittleEndian.AppendUint64(head, 1<<64-1) // ends with a marker
	r, err := lzma.NewReader(&headed{head, s.in})
	return &lzipMember{s: s, r: r, start: start, sum: crc32.NewIEEE()}, err
}

// position returns how many bytes of the input decoders have read.
func (s *stream) position() int64 { return s.source.n - int64(s.in.Buffered()) }

// lzipMember compares a member with what follows it.
type lzipMember struct {
	s           *stream
	r           io.Reader
	start, size int64
	sum         hash.Hash32
}

func (m *lzipMember) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.sum.Write(p[:n])
	m.size += int64(n)
	if err != io.EOF {
		return n, err
	}
	var t [20]byte
	if _, err := io.ReadFull(m.s.in, t[:]); err != nil {
		return n, early(err)
	}
	if binary.LittleEndian.Uint32(t[:]) != m.sum.Sum32() ||
		binary.LittleEndian.Uint64(t[4:]) != uint64(m.size) ||
		binary.LittleEndian.Uint64(t[12:]) != uint64(m.s.position()-m.start) {
		return n, errors.New("its checksum or size is another one")
	}
	return n, io.EOF
}

// headed reads head, then in.
type headed struct {
	head []byte
	in   *bufio.Reader
}

func (h *headed) Read(p []byte) (int, error) {
	if len(h.head) == 0 {
		return h.in.Read(p)
	}
	n := copy(p, h.head)
	h.head = h.head[n:]
	return n, nil
}

func (h *headed) ReadByte() (byte, error) {
	if len(h.head) == 0 {
		return h.in.ReadByte()
	}
	b := h.head[0]
	h.head = h.head[1:]
	return b, nil
}

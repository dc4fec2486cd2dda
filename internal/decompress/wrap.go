package decompress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"firn/internal/cache"
	"firn/nix"
)

// Wrap returns n as a file of compression c that is not compressed: a container of stored blocks.
// It serves clients that remember the URL of a file that this server does not keep.
// The result has a Size and can write any range of itself, like n, in constant memory; closing it closes n.
// The bytes are always the same. None is n itself.
//
// A file of gzip ends with a checksum of all before it. It can write that only if it has written
// the rest, in order: see [Ranges].
//
// ok is false where c has no stored blocks (bzip2, lzma, lzip, …) and where the size of n is not known.
func Wrap(c nix.Compression, n cache.NAR) (wrapped cache.NAR, ok bool) {
	if c == nix.None || c == "" {
		return n, true
	}
	container, ok := containers[c]
	if !ok || n.Size() <= 0 {
		return nil, false
	}
	w := &wrapping{container: container, nar: n, payload: n.Size()}
	w.blocks = (w.payload + w.block - 1) / w.block
	w.body = int64(len(w.prefix)) + w.blocks*w.header + w.payload
	w.size = w.body + int64(len(w.suffix(w, 0)))
	return w, true
}

// Ranges reports whether a client may ask for any range of what Wrap returns: to find the checksum
// at the end of gzip, the whole NAR would have to be read for the last byte.
func Ranges(c nix.Compression) bool {
	container, ok := containers[c]
	return !ok || !container.sums
}

// A container is how a format holds stored blocks: a prefix, then blocks with a header each, then a suffix.
type container struct {
	prefix []byte
	block  int64 // bytes in all blocks but the last
	header int64 // bytes of each header

	// appendHeader appends the header of a block of n bytes.
	appendHeader func(dst []byte, n int, first, last bool) []byte
	// suffix returns what follows the blocks. Its length depends on w.payload and w.body only.
	suffix func(w *wrapping, sum uint32) []byte
	// sums says whether the suffix has the CRC32 of the payload.
	sums bool
}

var containers = map[nix.Compression]*container{
	// RFC 1952, and 3.2.4 of RFC 1951.
	nix.Gzip: {
		prefix: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, // no flags, no time, no particular system
		block:  1<<16 - 1, header: 5,
		appendHeader: func(dst []byte, n int, _, last bool) []byte {
			dst = binary.LittleEndian.AppendUint16(append(dst, bit(last)), uint16(n))
			return binary.LittleEndian.AppendUint16(dst, ^uint16(n))
		},
		suffix: func(w *wrapping, sum uint32) []byte {
			return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, sum), uint32(w.payload))
		},
		sums: true,
	},

	// RFC 8878, 3.1.1: no content size, no checksum, a window of 128 KiB, which is also the largest block.
	nix.Zstd: {
		prefix: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3},
		block:  1 << 17, header: 3,
		appendHeader: func(dst []byte, n int, _, last bool) []byte {
			h := uint32(n)<<3 | uint32(bit(last))
			return append(dst, byte(h), byte(h>>8), byte(h>>16))
		},
		suffix: func(*wrapping, uint32) []byte { return nil },
	},

	// https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md: independent blocks of 4 MiB, no checksum but that of the header.
	nix.LZ4: {
		prefix: []byte{0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73},
		block:  4 << 20, header: 4,
		appendHeader: func(dst []byte, n int, _, _ bool) []byte {
			return binary.LittleEndian.AppendUint32(dst, 1<<31|uint32(n))
		},
		suffix: func(*wrapping, uint32) []byte { return make([]byte, 4) },
	},

	// RFC 7932, 9.2. The prefix is a window of 64 KiB and an empty block of metadata, which ends with a byte:
	// so the headers of all blocks are alike.
	nix.Brotli: {
		prefix: []byte{0x0c},
		block:  1 << 16, header: 3,
		appendHeader: func(dst []byte, n int, _, _ bool) []byte {
			h := uint32(n-1)<<3 | 1<<19 // not the last; a length of 4 nibbles; not compressed
			return append(dst, byte(h), byte(h>>8), byte(h>>16))
		},
		suffix: func(*wrapping, uint32) []byte { return []byte{3} }, // the last, empty
	},

	// https://tukaani.org/xz/xz-file-format.txt: one block of chunks of LZMA2, a dictionary of 64 KiB,
	// and no check, which would take a pass over the NAR.
	nix.XZ: {
		prefix: append(append([]byte("\xfd7zXZ\x00"), summed(0, 0)...), summed(2, 0, 0x21, 1, 8, 0, 0, 0)...),
		block:  1 << 16, header: 3,
		appendHeader: func(dst []byte, n int, first, _ bool) []byte {
			control := byte(2)
			if first {
				control = 1 // resets the dictionary
			}
			return binary.BigEndian.AppendUint16(append(dst, control), uint16(n-1))
		},
		suffix: xzSuffix,
	},
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// summed appends to b the CRC32 of b.
func summed(b ...byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }

// xzSuffix returns what ends the chunks, the index and the footer.
func xzSuffix(w *wrapping, _ uint32) []byte {
	const streamHeader = 12
	unpadded := w.body - streamHeader + 1 // block header and chunks, with their end
	index := binary.AppendUvarint([]byte{0, 1}, uint64(unpadded))
	index = summed(padded(binary.AppendUvarint(index, uint64(w.payload)), 0)...)
	footer := summed(append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), 0, 0)...)

	suffix := append(padded([]byte{0}, w.body), index...)
	suffix = append(suffix, footer[6:]...) // the sum goes first
	return append(append(suffix, footer[:6]...), "YZ"...)
}

// padded appends zeros to b, which begins at off, until it ends at a multiple of 4.
func padded(b []byte, off int64) []byte {
	for (off+int64(len(b)))%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// wrapping is the NAR that Wrap returns.
type wrapping struct {
	*container
	nar     cache.NAR
	payload int64 // bytes of nar
	blocks  int64
	body    int64 // bytes up to the suffix
	size    int64

	sum    uint32 // CRC32 of the first bytes of the payload,
	summed int64  // as many
}

func (w *wrapping) Size() int64  { return w.size }
func (w *wrapping) Close() error { return w.nar.Close() }

func (w *wrapping) WriteRange(ctx context.Context, to io.Writer, off, n int64) error {
	end := off + n
	if off < 0 || n < 0 || end > w.size {
		return fmt.Errorf("write range: %w: %d bytes from %d on, of %d", cache.ErrInvalid, n, off, w.size)
	}
	if prefix := int64(len(w.prefix)); off < min(prefix, end) {
		m := min(prefix, end) - off
		if _, err := to.Write(w.prefix[off : off+m]); err != nil {
			return err
		}
		off += m
	}
	if off < min(w.body, end) {
		if err := w.writeBlocks(ctx, to, off, min(w.body, end)); err != nil {
			return err
		}
		off = min(w.body, end)
	}
	if off < end {
		if w.sums && w.summed != w.payload {
			return errors.New("write range: the checksum at the end needs all that comes before it to be written first")
		}
		_, err := to.Write(w.suffix(w, w.sum)[off-w.body : end-w.body])
		return err
	}
	return nil
}

// writeBlocks writes the bytes from off to end of the container, all of them in blocks.
// It writes that range of the NAR in one go, because a NAR may begin a range at some cost.
func (w *wrapping) writeBlocks(ctx context.Context, to io.Writer, off, end int64) error {
	f := &framer{w: w, to: to, off: off, end: end}
	from, until := w.payloadAt(off), w.payloadAt(end)
	if from == 0 {
		w.sum, w.summed = 0, 0
	}
	if err := f.headers(); err != nil {
		return err
	}
	if from < until {
		if err := w.nar.WriteRange(ctx, f, from, until-from); err != nil {
			return err
		}
	}
	if f.off != end {
		return errors.New("source wrote less than it was asked for")
	}
	return nil
}

// payloadAt returns how many bytes of the payload come before an offset in the container.
func (w *wrapping) payloadAt(off int64) int64 {
	i, rest := w.place(off)
	return min(i*w.block+max(rest-w.header, 0), w.payload)
}

// place returns the block that an offset in the container is in, and the offset in that.
func (w *wrapping) place(off int64) (i, rest int64) {
	off -= int64(len(w.prefix))
	return off / (w.header + w.block), off % (w.header + w.block)
}

// framer puts headers into what is written to it, a part of the payload.
type framer struct {
	w        *wrapping
	to       io.Writer
	off, end int64 // where the next byte belongs in the container, and where to stop
	scratch  [8]byte
}

func (f *framer) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if err := f.headers(); err != nil {
			return n, err
		}
		_, rest := f.w.place(f.off)
		part := p[n:]
		part = part[:min(int64(len(part)), f.w.header+f.w.block-rest, f.end-f.off)]
		if len(part) == 0 {
			return n, errors.New("source wrote more than it was asked for")
		}
		at := f.w.payloadAt(f.off)
		m, err := f.to.Write(part)
		if f.w.sums && f.w.summed == at {
			f.w.sum = crc32.Update(f.w.sum, crc32.IEEETable, part[:m])
			f.w.summed += int64(m)
		}
		n, f.off = n+m, f.off+int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, f.headers()
}

// headers writes what of a header belongs at off.
func (f *framer) headers() error {
	i, rest := f.w.place(f.off)
	if rest >= f.w.header || f.off >= f.end {
		return nil
	}
	n := min(f.w.block, f.w.payload-i*f.w.block)
	h := f.w.appendHeader(f.scratch[:0], int(n), i == 0, i == f.w.blocks-1)
	h = h[rest:]
	m, err := f.to.Write(h[:min(int64(len(h)), f.end-f.off)])
	f.off += int64(m)
	return err
}

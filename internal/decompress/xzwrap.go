package decompress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"firn/internal/cache"
)

// WrapXZ returns n, of which the size is known, as a file of xz that is not compressed. It serves
// clients that remember the URL of a file that this server does not keep. The result can write any
// range of itself, like n, in constant memory; closing it closes n. The bytes are always the same.
func WrapXZ(n cache.NAR) cache.NAR {
	w := &xzFile{nar: n, payload: n.Size()}
	w.blocks = (w.payload + xzBlock - 1) / xzBlock
	w.body = int64(len(xzPrefix)) + w.blocks*xzHeader + w.payload
	w.suffix = xzSuffix(w.payload, w.body)
	return w
}

// https://tukaani.org/xz/xz-file-format.txt: one block of chunks of LZMA2, a dictionary of 64 KiB,
// and no check, which would take a pass over the NAR.
const (
	xzBlock  = 1 << 16 // bytes in all chunks but the last
	xzHeader = 3       // bytes of the header of each
)

var xzPrefix = append(append([]byte("\xfd7zXZ\x00"), summed(0, 0)...), summed(2, 0, 0x21, 1, 8, 0, 0, 0)...)

// summed appends to b the CRC32 of b.
func summed(b ...byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }

// xzSuffix returns the end of the chunks, the index and the footer.
func xzSuffix(payload, body int64) []byte {
	const streamHeader = 12
	unpadded := body - streamHeader + 1 // block header and chunks, with their end
	index := binary.AppendUvarint([]byte{0, 1}, uint64(unpadded))
	index = summed(padded(binary.AppendUvarint(index, uint64(payload)), 0)...)
	footer := summed(append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), 0, 0)...)

	suffix := append(padded([]byte{0}, body), index...)
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

// xzFile is the NAR that WrapXZ returns: a prefix, then chunks with a header each, then a suffix.
type xzFile struct {
	nar     cache.NAR
	payload int64 // bytes of nar
	blocks  int64
	body    int64 // bytes up to the suffix
	suffix  []byte
}

// Size returns the length of the file.
func (w *xzFile) Size() int64 { return w.body + int64(len(w.suffix)) }

// Close closes the NAR.
func (w *xzFile) Close() error { return w.nar.Close() }

// WriteRange writes n bytes of the file from off on.
func (w *xzFile) WriteRange(ctx context.Context, to io.Writer, off, n int64) error {
	end := off + n
	if off < 0 || n < 0 || end > w.Size() {
		return fmt.Errorf("write range: %w: %d bytes from %d on, of %d", cache.ErrInvalid, n, off, w.Size())
	}
	if prefix := int64(len(xzPrefix)); off < min(prefix, end) {
		m := min(prefix, end) - off
		if _, err := to.Write(xzPrefix[off : off+m]); err != nil {
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
		_, err := to.Write(w.suffix[off-w.body : end-w.body])
		return err
	}
	return nil
}

// writeBlocks writes the bytes from off to end of the file, all of them in chunks. It writes that
// range of the NAR in one go, because beginning a range may cost something.
func (w *xzFile) writeBlocks(ctx context.Context, to io.Writer, off, end int64) error {
	f := &xzFramer{file: w, to: to, off: off, end: end}
	from, until := w.payloadAt(off), w.payloadAt(end)
	if err := f.header(); err != nil {
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

// payloadAt returns how many bytes of the payload come before an offset in the file.
func (w *xzFile) payloadAt(off int64) int64 {
	i, rest := xzPlace(off)
	return min(i*xzBlock+max(rest-xzHeader, 0), w.payload)
}

// xzPlace returns the chunk that an offset in the file is in, and the offset in that.
func xzPlace(off int64) (i, rest int64) {
	off -= int64(len(xzPrefix))
	return off / (xzHeader + xzBlock), off % (xzHeader + xzBlock)
}

// xzFramer puts headers into the part of the payload that is written to it.
type xzFramer struct {
	file     *xzFile
	to       io.Writer
	off, end int64 // where the next byte belongs in the file, and where to stop
}

// Write writes a part of the payload.
func (f *xzFramer) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if err := f.header(); err != nil {
			return n, err
		}
		_, rest := xzPlace(f.off)
		part := p[n:]
		part = part[:min(int64(len(part)), xzHeader+xzBlock-rest, f.end-f.off)]
		if len(part) == 0 {
			return n, errors.New("source wrote more than it was asked for")
		}
		m, err := f.to.Write(part)
		n, f.off = n+m, f.off+int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, f.header()
}

// header writes the part of a header that belongs at off.
func (f *xzFramer) header() error {
	i, rest := xzPlace(f.off)
	if rest >= xzHeader || f.off >= f.end {
		return nil
	}
	control := byte(2)
	if i == 0 {
		control = 1 // resets the dictionary
	}
	size := min(xzBlock, f.file.payload-i*xzBlock)
	h := [xzHeader]byte{control, byte((size - 1) >> 8), byte(size - 1)}
	m, err := f.to.Write(h[rest:min(xzHeader, rest+f.end-f.off)])
	f.off += int64(m)
	return err
}

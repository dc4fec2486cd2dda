package depot

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"firn/internal/cache"
	"firn/nix/nar"
)

const (
	// listingVersion is the first byte of a listing as it is stored.
	listingVersion = 1

	// maxEntries bounds the objects of a NAR. A listing of so many is some 100 MB of JSON. The
	// largest known source trees have half as many.
	maxEntries = 1 << 20
	// maxText bounds the bytes of paths and targets in a listing. The files in a deep directory
	// with a long name repeat it.
	maxText = 128 << 20
	// maxListing bounds the bytes of a compressed listing. Common names take some 10 bytes of it.
	maxListing = 16 << 20
	// listingPart is how many bytes of a listing are compressed at once.
	listingPart = 256 << 10
)

// kinds of entries in a stored listing.
const (
	kindDirectory = 1 + iota
	kindRegular
	kindExecutable
	kindSymlink
)

// A lister makes the stored form of the listing of a NAR, while the NAR is read:
//
//	listing = version zstd(entry…)            version is one byte
//	entry   = shared suffix kind rest
//
// Entries are in the order of the NAR. Numbers are unsigned varints, and strings their length and
// their bytes. A path is the first shared bytes of the path before it, and then suffix. The rest of
// a regular file is its size, and then its offset less that of the regular file before it; the rest
// of a symlink is its target; a directory has none.
type lister struct {
	coders  *coders
	raw     []byte
	done    []byte
	path    string
	off     int64
	entries int
	text    int
}

func (l *lister) add(h *nar.Header) error {
	if l.entries++; l.entries > maxEntries {
		return cache.Refuse(cache.ErrTooLarge, "this NAR has more than %d files and directories", maxEntries)
	}
	if l.text += len(h.Path) + len(h.Target); l.text > maxText {
		return cache.Refuse(cache.ErrTooLarge, "the paths in this NAR have more than %d bytes", maxText)
	}
	shared := 0
	for shared < min(len(l.path), len(h.Path)) && l.path[shared] == h.Path[shared] {
		shared++
	}
	l.path = h.Path
	l.raw = binary.AppendUvarint(l.raw, uint64(shared))
	l.raw = appendString(l.raw, h.Path[shared:])
	switch {
	case h.Type == nar.TypeDirectory:
		l.raw = append(l.raw, kindDirectory)
	case h.Type == nar.TypeSymlink:
		l.raw = appendString(append(l.raw, kindSymlink), h.Target)
	default:
		kind := byte(kindRegular)
		if h.Executable {
			kind = kindExecutable
		}
		l.raw = binary.AppendUvarint(append(l.raw, kind), uint64(h.Size))
		l.raw = binary.AppendUvarint(l.raw, uint64(h.Offset-l.off))
		l.off = h.Offset
	}
	if len(l.raw) < listingPart {
		return nil
	}
	return l.flush()
}

func (l *lister) flush() error {
	if l.done == nil {
		l.done = append(l.done, listingVersion)
	}
	l.done = l.coders.encode(l.done, l.raw)
	l.raw = l.raw[:0]
	if len(l.done) > maxListing {
		return cache.Refuse(cache.ErrTooLarge, "the names in this NAR take more than %d bytes, compressed", maxListing)
	}
	return nil
}

// end returns the listing.
func (l *lister) end() ([]byte, error) {
	err := l.flush()
	return l.done, err
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

var errListing = errors.New("parse stored listing: it is malformed")

// entries yields the entries of a stored listing. Beside an error, the entry is nil.
func (c *coders) entries(stored []byte) iter.Seq2[*nar.Header, error] {
	return func(yield func(*nar.Header, error) bool) {
		if len(stored) == 0 || stored[0] != listingVersion {
			yield(nil, errListing)
			return
		}
		z, err := c.decoder()
		if err == nil {
			defer c.putDecoder(z)
			err = z.Reset(bytes.NewReader(stored[1:]))
		}
		if err != nil {
			yield(nil, fmt.Errorf("read stored listing: %w", err))
			return
		}
		p := listingParser{r: bufio.NewReader(z)}
		for text := 0; ; {
			h, err := p.next()
			if err == io.EOF {
				return
			}
			if err == nil {
				if text += len(h.Path) + len(h.Target) + 1; text > maxText+maxEntries {
					err = errListing
				}
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(h, nil) {
				return
			}
		}
	}
}

type listingParser struct {
	r    *bufio.Reader
	path []byte
	off  int64
}

func (p *listingParser) next() (*nar.Header, error) {
	if _, err := p.r.Peek(1); err != nil {
		return nil, err
	}
	var bad error
	number := func() uint64 {
		v, err := binary.ReadUvarint(p.r)
		if err != nil {
			bad = errors.Join(errListing, err)
			return 0
		}
		return v
	}
	text := func(dst []byte, most int) []byte {
		n := number()
		if n > uint64(most) {
			bad = errListing
			return dst
		}
		from := len(dst)
		dst = append(dst, make([]byte, n)...)
		if _, err := io.ReadFull(p.r, dst[from:]); err != nil {
			bad = errors.Join(errListing, err)
		}
		return dst
	}
	shared := number()
	if shared > uint64(len(p.path)) {
		return nil, errListing
	}
	p.path = text(p.path[:shared], (nar.MaxName+1)*nar.MaxDepth)
	kind, err := p.r.ReadByte()
	if err != nil || bad != nil {
		return nil, errListing
	}
	h := &nar.Header{Path: string(p.path)}
	switch kind {
	case kindDirectory:
		h.Type = nar.TypeDirectory
	case kindSymlink:
		h.Type = nar.TypeSymlink
		h.Target = string(text(nil, nar.MaxTarget))
	case kindRegular, kindExecutable:
		h.Type, h.Executable = nar.TypeRegular, kind == kindExecutable
		h.Size = int64(number())
		p.off += int64(number())
		h.Offset = p.off
		if h.Size < 0 || h.Offset < 0 {
			bad = errListing
		}
	default:
		bad = errListing
	}
	return h, bad
}

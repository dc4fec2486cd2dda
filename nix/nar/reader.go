package nar

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// FormatError says what in a NAR is against the format, and where.
type FormatError struct {
	Offset int64 // in bytes, of the string in the NAR that is wrong
	Msg    string
}

// Error returns the message with the offset before it.
func (e *FormatError) Error() string {
	return fmt.Sprintf("read NAR at byte %d: %s", e.Offset, e.Msg)
}

// Reader reads a NAR, one file system object after the other, and refuses all that Nix 2.35 refuses:
//
//	for {
//		h, err := r.Next()
//		if err == io.EOF {
//			break // the NAR has ended
//		}
//		…
//		io.Copy(file, r) // the contents, where h is the header of a regular file
//	}
//
// Input that breaks the format is a [*FormatError]; input that ends too early is [io.ErrUnexpectedEOF], wrapped.
// After an error, every call returns it again. Memory is bounded, whatever the NAR says of its lengths.
type Reader struct {
	r    *bufio.Reader
	off  int64 // of the next byte
	err  error
	at   place
	left int64 // bytes to come of the contents of the current file
	pad  int64 // bytes of padding behind them

	// path leads to the current object. The directory that the reader is in has depth dir,
	// and ends[d] is where in path the name of the last object at depth d ends: of an open directory, or of its last entry so far.
	// Bytes of path stay until another entry of the same directory takes their place.
	path []byte
	dir  int // -1: no directory is open
	ends [MaxDepth + 1]int

	buf [MaxTarget + 1]byte // the last string read; MaxTarget+1 is a multiple of 8
}

// place is what the reader stands behind.
type place uint8

const (
	placeStart place = iota // nothing
	placeLeaf               // the head of a regular file or a symlink
	placeEntry              // the head of a directory, or one of its entries
	placeEnd                // the root, so all of the NAR
)

// NewReader returns a Reader of the NAR that r begins with.
// It reads more of r than the NAR, unless r is a [*bufio.Reader]: that stands right behind the NAR when Next returns [io.EOF].
func NewReader(r io.Reader) *Reader {
	br, ok := r.(*bufio.Reader)
	if !ok {
		br = bufio.NewReaderSize(r, 32<<10)
	}
	return &Reader{r: br, dir: -1}
}

// Offset returns how many bytes of the NAR have been read.
func (r *Reader) Offset() int64 { return r.off }

// Next goes on to the next object, past what is left of the contents of the current one, and returns its header.
// It returns [io.EOF] when the NAR has ended.
func (r *Reader) Next() (*Header, error) {
	if r.err == nil {
		h, err := r.next()
		if err == nil {
			return h, nil
		}
		r.err = err
	}
	return nil, r.err
}

// Read reads contents of the current object. At their end, and where it is no regular file, it returns [io.EOF].
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.r.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	r.off += int64(n)
	if err != nil {
		r.err = r.readError(err)
	}
	return n, r.err
}

// CheckEnd returns an error if there are bytes behind the NAR. It is to be called once Next has returned [io.EOF].
func (r *Reader) CheckEnd() error {
	if r.err != io.EOF {
		return fmt.Errorf("read NAR at byte %d: its end has not been read", r.off)
	}
	switch _, err := r.r.Peek(1); err {
	case io.EOF:
		return nil
	case nil:
		return &FormatError{r.off, "there are bytes behind the end of the NAR"}
	default:
		return r.readError(err)
	}
}

func (r *Reader) next() (*Header, error) {
	switch r.at {
	case placeStart:
		if err := r.expect("nix-archive-1"); err != nil {
			return nil, err
		}
		return r.node()
	case placeLeaf:
		if err := r.skipContents(); err != nil {
			return nil, err
		}
		if err := r.endNode(); err != nil {
			return nil, err
		}
	}
	for r.at == placeEntry {
		at := r.off
		word, err := r.string(maxTag)
		if err != nil {
			return nil, err
		}
		switch string(word) {
		case "entry":
			return r.entry()
		case ")":
			r.dir--
			if err := r.endEntry(); err != nil {
				return nil, err
			}
		default:
			return nil, unexpected(at, word, `"entry" or ")"`)
		}
	}
	return nil, io.EOF
}

// entry reads an entry of the open directory up to its node's contents.
func (r *Reader) entry() (*Header, error) {
	depth := r.dir + 1
	if depth > MaxDepth {
		return nil, &FormatError{r.off, fmt.Sprintf("tree is deeper than %d levels", MaxDepth)}
	}
	if err := r.expect("(", "name"); err != nil {
		return nil, err
	}
	at := r.off
	name, err := r.string(MaxName)
	if err != nil {
		return nil, err
	}
	if msg := checkName(string(name), len(name)); msg != "" {
		return nil, &FormatError{at, msg}
	}
	from := r.ends[r.dir]
	if from > 0 {
		from++ // a slash
	}
	if last := r.ends[depth]; last > 0 {
		if before := r.path[from:last]; string(name) <= string(before) {
			return nil, &FormatError{at, fmt.Sprintf("entry %q comes after %q", name, before)}
		}
	}
	if from > 0 {
		r.path = append(r.path[:from-1], '/')
	}
	r.path = append(r.path[:from], name...)
	r.ends[depth] = len(r.path)
	if err := r.expect("node"); err != nil {
		return nil, err
	}
	return r.node()
}

// node reads a node up to its contents.
func (r *Reader) node() (*Header, error) {
	if err := r.expect("(", "type"); err != nil {
		return nil, err
	}
	h := &Header{Path: string(r.path)}
	at := r.off
	word, err := r.string(maxTag)
	if err != nil {
		return nil, err
	}
	switch string(word) {
	case "directory":
		h.Type = TypeDirectory
		r.at = placeEntry
		r.dir++
		if r.dir < MaxDepth {
			r.ends[r.dir+1] = 0
		}
		return h, nil
	case "symlink":
		h.Type = TypeSymlink
		r.at = placeLeaf
		return h, r.symlink(h)
	case "regular":
		h.Type = TypeRegular
		r.at = placeLeaf
		return h, r.regular(h)
	}
	return nil, unexpected(at, word, `"regular", "symlink" or "directory"`)
}

func (r *Reader) symlink(h *Header) error {
	if err := r.expect("target"); err != nil {
		return err
	}
	at := r.off
	target, err := r.string(MaxTarget)
	if err != nil {
		return err
	}
	h.Target = string(target)
	if msg := checkTarget(h.Target, len(h.Target)); msg != "" {
		return &FormatError{at, msg}
	}
	return nil
}

func (r *Reader) regular(h *Header) error {
	at := r.off
	word, err := r.string(maxTag)
	if err != nil {
		return err
	}
	switch string(word) {
	case "contents":
	case "executable":
		h.Executable = true
		if err := r.expect("", "contents"); err != nil {
			return err
		}
	default:
		return unexpected(at, word, `"executable" or "contents"`)
	}
	at = r.off
	size, err := r.length()
	if err != nil {
		return err
	}
	if size > math.MaxInt64-8-uint64(r.off) {
		return &FormatError{at, fmt.Sprintf("contents of %d bytes are too large", size)}
	}
	h.Size, h.Offset = int64(size), r.off
	r.left, r.pad = h.Size, padding(h.Size)
	return nil
}

// skipContents reads what is left of the contents, and their padding.
func (r *Reader) skipContents() error {
	for r.left > 0 {
		n, err := r.r.Discard(int(min(r.left, 1<<30)))
		r.left -= int64(n)
		r.off += int64(n)
		if err != nil {
			return r.readError(err)
		}
	}
	pad := r.buf[:r.pad]
	r.pad = 0
	return r.padding(pad)
}

// endNode reads the end of a regular file or a symlink.
func (r *Reader) endNode() error {
	if err := r.expect(")"); err != nil {
		return err
	}
	return r.endEntry()
}

// endEntry reads the end of the entry whose node has ended. The root is in none.
func (r *Reader) endEntry() error {
	if r.dir < 0 {
		r.at = placeEnd
		return nil
	}
	r.at = placeEntry
	return r.expect(")")
}

// expect reads strings that have to come next.
func (r *Reader) expect(words ...string) error {
	for _, want := range words {
		at := r.off
		word, err := r.string(maxTag)
		if err != nil {
			return err
		}
		if string(word) != want {
			return unexpected(at, word, fmt.Sprintf("%q", want))
		}
	}
	return nil
}

func unexpected(at int64, found []byte, want string) error {
	return &FormatError{at, fmt.Sprintf("found %q where %s has to be", found, want)}
}

// string reads a string of at most most bytes, which is valid until the next one is read.
func (r *Reader) string(most uint64) ([]byte, error) {
	at := r.off
	size, err := r.length()
	if err != nil {
		return nil, err
	}
	if size > most {
		return nil, &FormatError{at, fmt.Sprintf("found a string of %d bytes where at most %d may be", size, most)}
	}
	word := r.buf[:size+uint64(padding(int64(size)))]
	if err := r.full(word[:size]); err != nil {
		return nil, err
	}
	return word[:size], r.padding(word[size:])
}

// length reads the length of a string.
func (r *Reader) length() (uint64, error) {
	if err := r.full(r.buf[:8]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(r.buf[:]), nil
}

// padding reads len(buf) bytes of padding into buf.
func (r *Reader) padding(buf []byte) error {
	at := r.off
	if err := r.full(buf); err != nil {
		return err
	}
	for _, b := range buf {
		if b != 0 {
			return &FormatError{at, "padding is not zero"}
		}
	}
	return nil
}

// full reads all of buf.
func (r *Reader) full(buf []byte) error {
	n, err := io.ReadFull(r.r, buf)
	r.off += int64(n)
	if err != nil {
		return r.readError(err)
	}
	return nil
}

func (r *Reader) readError(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read NAR at byte %d: %w", r.off, err)
}

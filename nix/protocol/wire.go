package protocol

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"firn/nix"
)

const (
	// bufferSize is the size of the buffers for each direction, in bytes.
	bufferSize = 64 << 10

	maxPath    = 4 << 10  // bytes of a store path, a name of an output and other short things
	maxText    = 1 << 20  // bytes of a message or a realisation
	maxPaths   = 1 << 20  // store paths in one set, of some 100 bytes each
	maxStrings = 64 << 10 // other strings in one list
	maxRoots   = 4 << 20  // roots of a garbage collector, which are read one by one
	maxSigs    = 1 << 10  // signatures of one thing
)

// A wire is a connection. Reading and writing remember the first failure and do nothing from then on, so that it is asked for once, see err.
// Integers have 8 bytes, little-endian; a string is its length, its bytes, and zeros up to a multiple of 8.
type wire struct {
	r       *bufio.Reader
	w       *bufio.Writer
	err     error
	budget  *budget // for the strings of a question; nil: without bounds
	scratch [8]byte
}

// newWire returns a wire that sends what was written before it waits for more to read.
func newWire(conn io.ReadWriter) *wire {
	w := bufio.NewWriterSize(conn, bufferSize)
	return &wire{r: bufio.NewReaderSize(&flusher{conn, w}, bufferSize), w: w}
}

// flusher reads from a connection after it has sent what waits to be sent there.
type flusher struct {
	r io.Reader
	w *bufio.Writer
}

func (f *flusher) Read(p []byte) (int, error) {
	if err := f.w.Flush(); err != nil {
		return 0, err
	}
	return f.r.Read(p)
}

// A malformed is an error in what the other end has sent.
type malformed struct{ text string }

func (m *malformed) Error() string { return "malformed message: " + m.text }

func (c *wire) malformed(format string, args ...any) {
	c.fail(&malformed{fmt.Sprintf(format, args...)})
}

func (c *wire) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// take returns the failure, and forgets it.
func (c *wire) take() error {
	err := c.err
	c.err = nil
	return err
}

// uint reads an integer. The end of the input is io.EOF only where nothing of it was there.
func (c *wire) uint() uint64 {
	if c.err != nil {
		return 0
	}
	if _, err := io.ReadFull(c.r, c.scratch[:]); err != nil {
		c.fail(err)
		return 0
	}
	return binary.LittleEndian.Uint64(c.scratch[:])
}

func (c *wire) bool() bool { return c.uint() != 0 }

// skip reads integers that are of no interest.
func (c *wire) skip(n int) {
	for range n {
		c.uint()
	}
}

// count reads how many of something follow.
func (c *wire) count(most int, what string) int {
	n := c.uint()
	if c.err == nil && n > uint64(most) {
		c.malformed("%d %s, more than %d", n, what, most)
	}
	if c.err != nil {
		return 0
	}
	return int(n)
}

// string reads a string of at most so many bytes.
func (c *wire) string(most int) string {
	n := c.count(most, "bytes in a string")
	if c.err != nil || n == 0 {
		return ""
	}
	if !c.budget.take(n) {
		c.fail(errNoMemory)
		return ""
	}
	padded := n + -n&7
	var b strings.Builder
	for left := padded; left > 0; { // what is there, rather than what was said to be
		if c.r.Buffered() == 0 {
			if _, err := c.r.Peek(1); err != nil {
				c.fail(cutOff(err))
				return ""
			}
		}
		piece, _ := c.r.Peek(min(left, c.r.Buffered()))
		b.Write(piece)
		left -= len(piece)
		c.r.Discard(len(piece))
	}
	s := b.String()
	if strings.Trim(s[n:], "\x00") != "" {
		c.malformed("a string is not padded with zeros")
		return ""
	}
	return s[:n]
}

// skipString reads a string of at most so many bytes that is of no interest.
func (c *wire) skipString(most int) {
	n := c.count(most, "bytes in a string")
	if _, err := c.r.Discard(n + -n&7); err != nil {
		c.fail(cutOff(err))
	}
}

// cutOff returns err, which is not io.EOF where something is missing.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// strings reads up to most strings of up to longest bytes.
func (c *wire) strings(most, longest int) []string {
	n := c.count(most, "strings")
	var all []string
	for range n {
		s := c.string(longest)
		if c.err != nil {
			return nil
		}
		all = append(all, s)
	}
	return all
}

// path reads a store path. An error in it is told by its text.
func (c *wire) path(dir nix.StoreDir) nix.StorePath {
	p := c.optionalPath(dir)
	if c.err == nil && p.IsZero() {
		c.malformed("there is no path")
	}
	return p
}

// optionalPath reads a store path that may be empty.
func (c *wire) optionalPath(dir nix.StoreDir) nix.StorePath {
	s := c.string(maxPath)
	if c.err != nil || s == "" {
		return nix.StorePath{}
	}
	p, err := dir.ParsePath(s)
	if err != nil {
		c.malformed("%v", err)
	}
	return p
}

func (c *wire) paths(dir nix.StoreDir) []nix.StorePath {
	n := c.count(maxPaths, "paths")
	var all []nix.StorePath
	for range n {
		p := c.path(dir)
		if c.err != nil {
			return nil
		}
		all = append(all, p)
	}
	return all
}

func (c *wire) signatures() []nix.Signature {
	var sigs []nix.Signature
	for _, s := range c.strings(maxSigs, nix.MaxSignatureLen) {
		sig, err := nix.ParseSignature(s)
		if err != nil {
			c.malformed("%v", err)
			return nil
		}
		sigs = append(sigs, sig)
	}
	return sigs
}

// A Registration is what is known of a path, as text, of which some may be malformed.
type Registration struct {
	Deriver          string // full path, "" if unknown
	NARHash          string // in base 16
	References       []string
	RegistrationTime int64 // seconds since 1970
	NARSize          int64 // what does not fit is negative
	Ultimate         bool  // only its own store says so
	Signatures       []string
	CA               string
}

// registration reads what is known of a path, as AddToStoreNar of both protocols has it from version 1.16 on.
func (c *wire) registration() *Registration {
	r := &Registration{Deriver: c.string(maxPath), NARHash: c.string(maxPath)}
	for range c.count(maxPaths, "references") {
		if c.err != nil {
			return nil
		}
		r.References = append(r.References, c.string(maxPath))
	}
	r.RegistrationTime, r.NARSize, r.Ultimate = int64(c.uint()), int64(c.uint()), c.bool()
	r.Signatures = c.strings(maxSigs, nix.MaxSignatureLen)
	r.CA = c.string(maxPath)
	if c.err != nil {
		return nil
	}
	return r
}

// info reads what is known of a path. What says whose word it is, and since when, is of no interest.
func (c *wire) info(dir nix.StoreDir, path nix.StorePath) *nix.PathInfo {
	r := c.registration()
	if r == nil {
		return nil
	}
	info, err := r.parse(dir, path)
	if err != nil {
		c.malformed("%v", err)
		return nil
	}
	return info
}

func (r *Registration) parse(dir nix.StoreDir, path nix.StorePath) (info *nix.PathInfo, err error) {
	info = &nix.PathInfo{Path: path, NARSize: r.NARSize}
	if r.Deriver != "" {
		if info.Deriver, err = dir.ParsePath(r.Deriver); err != nil {
			return nil, err
		}
	}
	for _, text := range r.References {
		ref, err := dir.ParsePath(text)
		if err != nil {
			return nil, err
		}
		info.References = append(info.References, ref)
	}
	info.References = nix.SortPaths(info.References)
	if info.NARHash, err = nix.ParseHashOf(nix.SHA256, r.NARHash); err != nil {
		return nil, fmt.Errorf("NAR hash: %w", err)
	}
	if info.NARSize <= 0 {
		return nil, fmt.Errorf("NAR size: %d", uint64(r.NARSize))
	}
	for _, text := range r.Signatures {
		sig, err := nix.ParseSignature(text)
		if err != nil {
			return nil, err
		}
		info.Signatures = append(info.Signatures, sig)
	}
	if r.CA != "" {
		if info.CA, err = nix.ParseContentAddress(r.CA); err != nil {
			return nil, err
		}
	}
	return info, nil
}

func (c *wire) putUint(n uint64) {
	if c.err == nil {
		binary.LittleEndian.PutUint64(c.scratch[:], n)
		_, c.err = c.w.Write(c.scratch[:])
	}
}

func (c *wire) putBool(b bool) {
	if b {
		c.putUint(1)
	} else {
		c.putUint(0)
	}
}

func (c *wire) putString(s string) {
	c.putUint(uint64(len(s)))
	if c.err == nil {
		_, c.err = c.w.WriteString(s)
	}
	if c.err == nil {
		_, c.err = c.w.Write(zeros[:-len(s)&7])
	}
}

var zeros [8]byte

func (c *wire) putStrings(all ...string) {
	c.putUint(uint64(len(all)))
	for _, s := range all {
		c.putString(s)
	}
}

func (c *wire) putPath(p nix.StorePath) { c.putString(p.String()) } // the zero path is ""

func (c *wire) putPaths(all []nix.StorePath) {
	c.putUint(uint64(len(all)))
	for _, p := range all {
		c.putPath(p)
	}
}

func (c *wire) putSignatures(sigs []nix.Signature) {
	c.putUint(uint64(len(sigs)))
	for _, s := range sigs {
		c.putString(s.String())
	}
}

// putInfo writes what info reads.
func (c *wire) putInfo(info *nix.PathInfo) {
	c.putPath(info.Deriver)
	c.putString(info.NARHash.Base16())
	c.putPaths(info.References)
	var registered uint64
	if !info.RegistrationTime.IsZero() {
		registered = uint64(info.RegistrationTime.Unix())
	}
	c.putUint(registered)
	c.putUint(uint64(info.NARSize))
	c.putBool(false) // ultimate: it was not built by the reader
	c.putSignatures(info.Signatures)
	c.putString(contentAddress(info))
}

func contentAddress(info *nix.PathInfo) string {
	if info.CA.IsZero() {
		return ""
	}
	return info.CA.String()
}

// flush sends what was written.
func (c *wire) flush() {
	if c.err == nil {
		c.err = c.w.Flush()
	}
}

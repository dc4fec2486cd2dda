// Package chunk finds where NARs are cut into chunks, by what is in them:
// the same bytes are cut at the same places wherever they stand, so that they are kept once.
//
//	cutter := chunk.NewCutter(nix.DefaultStoreDir)
//	for len(buf) > 0 {
//		n, references := cutter.Next(buf, atEOF)
//		// n == 0: read more; else buf[:n] is a chunk
//	}
//
// A store reference is the store directory, a slash, the 32 digits of a path hash, a dash, and a
// name. A rebuild changes those digits, and the name where a version changed, and often nothing
// else. So they are cut out: a run of references is a chunk of its own, from the first digit of its
// first reference to the end of the name of its last. Each stretch between two runs is cut by
// FastCDC, as if there were nothing else. Cuts within it depend on no byte outside it.
//
// The size of a file stands before its contents in a NAR. A rebuild against a dependency with a
// longer name changes the size of every file that names it. So the contents of larger files are cut
// out too, and [Cutter.Contents] says where they lie: nothing of the NAR's structure, and nothing
// of another file, is in their chunks.
//
// The cut points are a promise on disk: docs/format.md describes them, and golden tests pin them.
package chunk

import (
	"bytes"
	"fmt"
	"math/bits"

	"firn/nix"
)

// Version is that of the cut points. It changes with them.
const Version = 1

const (
	// Average is about how many bytes a chunk has where no references are; docs/adr/0021-chunk-size-and-level.md says why.
	Average = 256 << 10

	// MaxSize is the most bytes that a chunk has.
	MaxSize = 1 << 20

	// NeedSize is as many bytes as always tell where the first chunk of them ends:
	// one of the greatest size, and a store path behind it.
	NeedSize = MaxSize + 4<<10

	// maxRun is the most bytes that a run of references has.
	// A text may be one long list of store paths, and memory is bounded.
	maxRun = 256 << 10

	// near is how many bytes, from the end of a reference to the first digit of the next, put them
	// into two runs. Less between them would not be worth a frame.
	near = 256

	// MinFile is how many bytes a file has at least whose contents are cut out.
	// docs/adr/0021-chunk-size-and-level.md has what other sizes would cost.
	MinFile = 16 << 10

	// hashLen is how many digits a path hash has.
	hashLen = 32

	// maxName is the most bytes that the name of a store path has.
	maxName = 211

	// normalisation is how many bits more than the average asks for have to be zero before a chunk has its normal size,
	// and how many fewer after it: level 2 of the paper on FastCDC. It makes sizes more alike.
	normalisation = 2
)

// A Cutter finds the chunks of one NAR, in order, for one goroutine.
type Cutter struct {
	prefix                 []byte // of a store path: the store directory and a slash
	minFile                int64  // bytes of a file whose contents are cut out, at least
	minimum, normal, most  int    // bytes of a chunk between runs
	smallBelow, largeBelow uint64 // fingerprints that end a chunk before and after its normal size are below

	// The current chunk begins at pos in the NAR. No chunk contains any of bounds and the byte
	// before it.
	pos    int64
	bounds []int64 // after pos, ascending

	// What is known of the bytes from the current chunk's beginning on; all positions count from there.

	// scanned: every reference whose prefix begins before is known.
	scanned int
	// reference is the first digit of the first reference at or after run; unknown if there is none known yet.
	reference int
	// referenceEnd is the end of its name.
	referenceEnd int
	// run is the length of the run of references that the chunk is, as far as it is known; 0 if it is not one.
	run int
	// fingerprint is that of the bytes before hashed.
	fingerprint uint64
	hashed      int
}

// unknown stands for the place of a reference.
const unknown = -1

// NewCutter returns a Cutter for a NAR of a store.
func NewCutter(dir nix.StoreDir) *Cutter { return NewCutterSize(dir, Average, MinFile) }

// NewCutterSize is for measurements: it makes chunks of another average size, in bytes, a power of
// two from 1 KiB to 512 KiB, and cuts out the contents of files of minFile bytes and more. What it
// cuts is no promise.
func NewCutterSize(dir nix.StoreDir, average int, minFile int64) *Cutter {
	if average < 1<<10 || average > MaxSize/2 || average&(average-1) != 0 {
		panic(fmt.Sprintf("chunk: no average size: %d bytes", average))
	}
	c := &Cutter{
		prefix:  []byte(dir + "/"),
		minFile: minFile,
		minimum: average / 4,
		// So much below the average that chunks of noise have it: 254 KiB for 256 KiB.
		normal:     average * 13 / 16,
		most:       min(average*4, MaxSize),
		smallBelow: below(bits.Len(uint(average)) - 1 + normalisation),
		largeBelow: below(bits.Len(uint(average)) - 1 - normalisation),
	}
	c.begin(0)
	return c
}

// below returns the least fingerprint that does not have so many zero bits at its top.
func below(zeros int) uint64 { return 1 << (64 - zeros) }

// Contents says where the contents of a regular file lie in the NAR: they have size bytes, from off
// on. It must be called for every file of the NAR, in order, before Next is given any byte at or
// after off.
func (c *Cutter) Contents(off, size int64) {
	if size < c.minFile {
		return
	}
	for _, bound := range [...]int64{off, off + size} {
		if last := len(c.bounds) - 1; bound > c.pos && (last < 0 || bound > c.bounds[last]) {
			c.bounds = append(c.bounds, bound)
		}
	}
}

// Next returns how many bytes the chunk has that buf begins with, and whether it is a run of references.
// The next call is about what follows them.
//
// It returns 0 if buf has too few bytes to tell; the next call is then about the same bytes and more of them.
// NeedSize bytes are never too few, and none are that end the NAR, as atEOF says, unless there are none at all.
// How a NAR comes in buffers makes no difference.
func (c *Cutter) Next(buf []byte, atEOF bool) (n int, references bool) {
	if len(c.bounds) > 0 && c.bounds[0]-c.pos <= int64(len(buf)) {
		// What lies between two bounds is cut as a NAR of its own.
		buf, atEOF = buf[:c.bounds[0]-c.pos], true
	}
	if c.reference == 0 {
		c.run, c.reference = c.referenceEnd, unknown
	}
	references = c.run > 0
	if references {
		n = c.nextRun(buf, atEOF)
	} else {
		n = c.nextPlain(buf, atEOF)
	}
	if n > 0 {
		c.begin(n)
		c.pos += int64(n)
		if len(c.bounds) > 0 && c.bounds[0] == c.pos {
			c.bounds = c.bounds[1:]
		}
	}
	return n, references
}

// begin begins the chunk n bytes after the beginning of the current one.
func (c *Cutter) begin(n int) {
	// No prefix begins within a reference, so nothing of a run has to be scanned.
	c.scanned = max(c.scanned-n, 0)
	if c.reference > 0 {
		c.reference -= n
		c.referenceEnd -= n
	} else {
		c.reference = unknown
	}
	c.run = 0
	c.fingerprint, c.hashed = 0, max(c.minimum-window, 0)
}

// nextRun returns the length of the run of references that buf begins with.
func (c *Cutter) nextRun(buf []byte, atEOF bool) int {
	for {
		// References in the run have their prefix before this.
		until := c.run + near - len(c.prefix)
		c.find(buf, atEOF, until)
		switch {
		case c.reference == unknown:
			if c.scanned < until && !atEOF || c.run > len(buf) {
				return 0
			}
			return c.run
		case c.reference-c.run >= near, c.referenceEnd > maxRun:
			if c.run > len(buf) {
				return 0
			}
			return c.run
		}
		c.run, c.reference = c.referenceEnd, unknown
	}
}

// nextPlain returns the length of the chunk without references that buf begins with.
func (c *Cutter) nextPlain(buf []byte, atEOF bool) int {
	c.find(buf, atEOF, c.most)
	end := c.scanned
	if c.reference != unknown {
		end = c.reference
	}
	// The chunk has no bytes of a reference before end, so whatever ends it before is right.
	end = min(end, c.most, len(buf))
	switch n := c.fastCDC(buf[:end]); {
	case n > 0:
		return n
	case end == c.most, end == c.reference, atEOF && end == len(buf):
		return end
	}
	return 0
}

// find finds the first reference whose prefix begins before until, if none is known.
func (c *Cutter) find(buf []byte, atEOF bool, until int) {
	if c.reference != unknown {
		return
	}
	known := len(buf)
	if !atEOF {
		known -= len(c.prefix) + hashLen + 1 + maxName
	}
	known = min(until, known)
	for c.scanned < known {
		i := bytes.Index(buf[c.scanned:min(known+len(c.prefix)-1, len(buf))], c.prefix)
		if i < 0 {
			break
		}
		digits := c.scanned + i + len(c.prefix)
		if name := digits + hashLen + 1; name <= len(buf) && isHash(buf[digits:name]) {
			c.reference = digits
			c.referenceEnd = name + nameLen(buf[name:])
			c.scanned = c.referenceEnd // no name has a slash, and every prefix begins with one
			return
		}
		c.scanned += i + 1
	}
	c.scanned = max(c.scanned, known)
}

// isHash reports whether b is the digits of a path hash and a dash.
func isHash(b []byte) bool {
	if b[hashLen] != '-' {
		return false
	}
	for _, digit := range b[:hashLen] {
		if !isDigit[digit] {
			return false
		}
	}
	return true
}

// nameLen returns how many bytes of a store path's name b begins with.
func nameLen(b []byte) int {
	b = b[:min(len(b), maxName)]
	for i, c := range b {
		if !isName[c] {
			return i
		}
	}
	return len(b)
}

// isDigit tells which bytes are digits in Nix's base 32, and isName which ones names of store paths
// have.
var isDigit, isName = set("0123456789abcdfghijklmnpqrsvwxyz"), set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-._?=")

func set(bytes string) (is [256]bool) {
	for _, b := range []byte(bytes) {
		is[b] = true
	}
	return is
}

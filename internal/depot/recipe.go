package depot

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"

	"firn/internal/catalog"
	"firn/internal/chunk"
)

const (
	// recipeVersion is the first byte of a recipe.
	recipeVersion = 1

	// maxFrame bounds the length in bytes of a frame: zstd adds 3 bytes to 128 KiB that it cannot make smaller, and 18 around all.
	maxFrame = chunk.MaxSize + chunk.MaxSize>>8 + 64
)

// A place is where a frame lies.
type place struct {
	pack   int32 // index in the packs of the NAR
	size   int32 // of its bytes
	length int32 // of the frame
	off    int64 // in the pack
}

// appendRecipe appends the form in which a catalog keeps the frames of a NAR:
//
//	recipe = version run…            version is one byte
//	run    = pack offset count (size length)…
//
// Numbers but the version are unsigned varints (LEB128). A run has the frames that follow each other both in the NAR and in a pack:
// pack is its index in the packs of the NAR, and offset that of its first frame.
func appendRecipe(dst []byte, frames []place) []byte {
	dst = append(dst, recipeVersion)
	for len(frames) > 0 {
		run := 1
		for run < len(frames) && frames[run-1].pack == frames[run].pack && frames[run-1].end() == frames[run].off {
			run++
		}
		dst = binary.AppendUvarint(dst, uint64(frames[0].pack))
		dst = binary.AppendUvarint(dst, uint64(frames[0].off))
		dst = binary.AppendUvarint(dst, uint64(run))
		for _, f := range frames[:run] {
			dst = binary.AppendUvarint(dst, uint64(f.size))
			dst = binary.AppendUvarint(dst, uint64(f.length))
		}
		frames = frames[run:]
	}
	return dst
}

func (p place) end() int64 { return p.off + int64(p.length) }

// A recipe is what a NAR consists of. It does not change.
type recipe struct {
	packs    []string
	extents  []extent
	frames   []frame // of all extents
	size     int64   // of the NAR
	fileSize int64   // of the frames
	tag      string  // of all that decides which bytes the frames have
}

// An extent is a run of frames that lie side by side in a pack.
type extent struct {
	pack  int   // index in packs
	first int   // its first frame
	off   int64 // in the pack
	start int64 // in the compressed NAR
	raw   int64 // in the NAR
}

type frame struct{ size, length uint32 }

// parseRecipe parses what appendRecipe made for a NAR.
func parseRecipe(n *catalog.NAR) (*recipe, error) {
	r := &recipe{packs: n.Packs}
	if err := r.parse(n.Recipe); err != nil {
		return nil, fmt.Errorf("parse recipe of NAR %x: %w", n.Hash, err)
	}
	if r.size != n.Size || r.fileSize != n.FileSize {
		return nil, fmt.Errorf("parse recipe of NAR %x: it is of %d bytes in %d, not of %d in %d", n.Hash, r.size, r.fileSize, n.Size, n.FileSize)
	}
	r.tag = cmp.Or(n.Tag, newTag(n.Recipe, n.Packs))
	return r, nil
}

// newTag returns the tag of a NAR that is kept in a new way.
func newTag(recipe []byte, packs []string) string {
	tag := sha256.New()
	tag.Write(recipe)
	for _, name := range packs {
		tag.Write([]byte{'\n'})
		tag.Write([]byte(name))
	}
	return hex.EncodeToString(tag.Sum(nil)[:8])
}

var (
	errRecipeVersion = errors.New("it is of another version")
	errVarint        = errors.New("it has a number that is cut off, too large, or not in its shortest form")
)

func (r *recipe) parse(text []byte) error {
	if len(text) == 0 || text[0] != recipeVersion {
		return errRecipeVersion
	}
	text = text[1:]
	var bad error
	next := func(most uint64) int64 {
		v, n := binary.Uvarint(text)
		if n <= 0 || v > most || n > 1 && text[n-1] == 0 {
			bad, text = errVarint, nil
			return 0
		}
		text = text[n:]
		return int64(v)
	}
	const most = 1 << 62
	for len(text) > 0 {
		e := extent{first: len(r.frames), start: r.fileSize, raw: r.size}
		e.pack = int(next(1<<31 - 1))
		e.off = next(most)
		count := next(uint64(len(text) / 2))
		end := e.off
		for range count {
			f := frame{uint32(next(chunk.MaxSize)), uint32(next(maxFrame))}
			if bad == nil && (f.size == 0 || f.length == 0) {
				bad = errors.New("it has a frame of nothing")
			}
			r.frames = append(r.frames, f)
			r.size += int64(f.size)
			r.fileSize += int64(f.length)
			end += int64(f.length)
			if bad != nil || end > most || r.size > most || r.fileSize > most {
				break
			}
		}
		switch {
		case bad != nil:
			return bad
		case count == 0:
			return errors.New("it has a run of no frames")
		case e.pack >= len(r.packs):
			return fmt.Errorf("it refers to pack %d of %d", e.pack, len(r.packs))
		case end > most || r.size > most || r.fileSize > most:
			return errVarint
		}
		if k := len(r.extents); k > 0 && r.extents[k-1].pack == e.pack && r.extents[k-1].off+(e.start-r.extents[k-1].start) == e.off {
			return errors.New("it has two runs where one would do")
		}
		r.extents = append(r.extents, e)
	}
	if len(r.frames) == 0 {
		return errors.New("it has no frames")
	}
	return nil
}

// memSize is about how many bytes of memory it takes.
func (r *recipe) memSize() int64 {
	return 256 + 8*int64(cap(r.frames)) + 40*int64(cap(r.extents)) + 64*int64(len(r.packs))
}

// length is how many bytes of the compressed NAR the i-th extent has.
func (r *recipe) length(i int) int64 {
	if i+1 < len(r.extents) {
		return r.extents[i+1].start - r.extents[i].start
	}
	return r.fileSize - r.extents[i].start
}

// at returns the extent that has the byte at off of the compressed NAR.
func (r *recipe) at(off int64) int {
	return sort.Search(len(r.extents), func(i int) bool { return r.extents[i].start > off }) - 1
}

// A cursor stands before a frame of a recipe.
type cursor struct {
	extent int
	frame  int
	off    int64 // of the frame in the pack of the extent
	raw    int64 // of the frame's first byte in the NAR
}

// find returns the place of the frame that has the byte at off of the NAR; behind the last frame if off is the size of the NAR.
func (r *recipe) find(off int64) cursor {
	i := sort.Search(len(r.extents), func(i int) bool { return r.extents[i].raw > off }) - 1
	c := cursor{extent: i, frame: r.extents[i].first, off: r.extents[i].off, raw: r.extents[i].raw}
	for c.frame < len(r.frames) && c.raw+int64(r.frames[c.frame].size) <= off {
		r.advance(&c)
	}
	return c
}

// advance goes on by a frame.
func (r *recipe) advance(c *cursor) {
	f := r.frames[c.frame]
	c.frame++
	c.off += int64(f.length)
	c.raw += int64(f.size)
	if c.extent+1 < len(r.extents) && c.frame == r.extents[c.extent+1].first {
		c.extent++
		c.off = r.extents[c.extent].off
	}
}

// last is the index behind the last frame of the i-th extent.
func (r *recipe) last(i int) int {
	if i+1 < len(r.extents) {
		return r.extents[i+1].first
	}
	return len(r.frames)
}

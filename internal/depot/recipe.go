package depot

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sort"

	"firn/internal/catalog"
	"firn/internal/chunk"
	"firn/internal/depot/index"
)

const (
	// recipeVersion is the first byte of a recipe.
	recipeVersion = 1

	// maxFrame bounds the length in bytes of a frame. To 128 KiB that it cannot make smaller, zstd
	// adds 3 bytes, and 18 to all.
	maxFrame = chunk.MaxSize + chunk.MaxSize>>8 + 64
)

// A place is a frame of a NAR.
type place struct {
	pack   int32       // index in the packs of the NAR
	size   int32       // of its contents
	length int32       // of the frame
	off    int64       // in the pack
	sum    catalog.Sum // of its contents
}

// appendRecipe appends the form in which a catalog keeps the frames of a NAR:
//
//	recipe = version frames extent… hash…     version is one byte
//	extent = pack offset count (size length)…
//
// Numbers but the version are unsigned varints (LEB128). An extent has the frames that follow each
// other both in the NAR and in a pack: pack is its index in the packs of the NAR, and offset that of
// its first frame. frames is how many frames there are in all extents. A hash is the SHA-256 of the
// contents of a frame, in the order of the NAR.
func appendRecipe(dst []byte, frames []place) []byte {
	dst = slices.Grow(dst, 8+(sha256.Size+4)*len(frames))
	dst = append(dst, recipeVersion)
	dst = binary.AppendUvarint(dst, uint64(len(frames)))
	for rest := frames; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n-1].pack == rest[n].pack && rest[n-1].end() == rest[n].off {
			n++
		}
		dst = binary.AppendUvarint(dst, uint64(rest[0].pack))
		dst = binary.AppendUvarint(dst, uint64(rest[0].off))
		dst = binary.AppendUvarint(dst, uint64(n))
		for _, f := range rest[:n] {
			dst = binary.AppendUvarint(dst, uint64(f.size))
			dst = binary.AppendUvarint(dst, uint64(f.length))
		}
		rest = rest[n:]
	}
	for i := range frames {
		dst = append(dst, frames[i].sum[:]...)
	}
	return dst
}

func (p place) end() int64 { return p.off + int64(p.length) }

// A recipe says where the frames of a NAR lie. It does not change. The hashes of the frames are not
// in it, as serving needs none: see places.
type recipe struct {
	packs    []string
	extents  []extent
	frames   []frame // of all extents
	size     int64   // of the NAR
	fileSize int64   // of the frames
	tag      string  // stays the same as long as the bytes of the frames do
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

// parseRecipe parses the recipe of a NAR, as appendRecipe has made it.
func parseRecipe(n *index.NAR) (*recipe, error) {
	r := &recipe{packs: n.Packs}
	if err := r.parse(n.Recipe); err != nil {
		return nil, fmt.Errorf("parse recipe of NAR %x: %w", n.Hash, err)
	}
	if r.size != n.Size || r.fileSize != n.FileSize {
		return nil, fmt.Errorf("parse recipe of NAR %x: it is of %d bytes in %d, not of %d in %d", n.Hash, r.size, r.fileSize, n.Size, n.FileSize)
	}
	r.tag = n.Tag
	return r, nil
}

// newTag returns the tag of the frames of a new NAR. It stays when frames move to another pack.
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
	text, hashes, err := splitRecipe(text)
	if err != nil {
		return err
	}
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
	r.frames = make([]frame, 0, len(hashes)/sha256.Size)
	for len(text) > 0 {
		e := extent{first: len(r.frames), start: r.fileSize, raw: r.size}
		e.pack = int(next(1<<31 - 1))
		e.off = next(most)
		count := next(uint64(cap(r.frames) - len(r.frames)))
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
			return errors.New("it has an extent of no frames")
		case e.pack >= len(r.packs):
			return fmt.Errorf("it refers to pack %d of %d", e.pack, len(r.packs))
		case end > most || r.size > most || r.fileSize > most:
			return errVarint
		}
		if k := len(r.extents); k > 0 && r.extents[k-1].pack == e.pack && r.extents[k-1].off+(e.start-r.extents[k-1].start) == e.off {
			return errors.New("it has two extents where one would do")
		}
		r.extents = append(r.extents, e)
	}
	if len(r.frames) == 0 || len(r.frames) < cap(r.frames) {
		return errors.New("it has fewer frames than it says, or none")
	}
	return nil
}

// splitRecipe returns the extents of a recipe, and the hashes that follow them.
func splitRecipe(text []byte) (extents, hashes []byte, err error) {
	if len(text) == 0 || text[0] != recipeVersion {
		return nil, nil, errRecipeVersion
	}
	text = text[1:]
	count, n := binary.Uvarint(text)
	if n <= 0 || n > 1 && text[n-1] == 0 || count > uint64(len(text)/sha256.Size) {
		return nil, nil, errVarint
	}
	text = text[n:]
	if len(text) < int(count)*sha256.Size {
		return nil, nil, errVarint
	}
	end := len(text) - int(count)*sha256.Size
	return text[:end], text[end:], nil
}

// placesOf returns the frames of a NAR, with their hashes.
func placesOf(n *index.NAR) ([]place, error) {
	r, err := parseRecipe(n)
	if err != nil {
		return nil, err
	}
	return r.places(n.Recipe), nil
}

// places returns the frames of the recipe that text was parsed to.
func (r *recipe) places(text []byte) []place {
	_, hashes, _ := splitRecipe(text)
	places := make([]place, 0, len(r.frames))
	for c := (cursor{off: r.extents[0].off}); c.frame < len(r.frames); r.advance(&c) {
		f := r.frames[c.frame]
		places = append(places, place{
			pack: int32(r.extents[c.extent].pack), off: c.off, size: int32(f.size), length: int32(f.length),
			sum: catalog.Sum(hashes[c.frame*sha256.Size:][:sha256.Size]),
		})
	}
	return places
}

// memSize returns about how many bytes of memory it takes.
func (r *recipe) memSize() int64 {
	return 256 + 8*int64(cap(r.frames)) + 40*int64(cap(r.extents)) + 64*int64(len(r.packs))
}

// length returns how many bytes of the compressed NAR the i-th extent has.
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

// find returns a cursor before the frame that has the byte at off of the NAR, or behind the last
// frame if off is the size of the NAR.
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

// last returns the index behind the last frame of the i-th extent.
func (r *recipe) last(i int) int {
	if i+1 < len(r.extents) {
		return r.extents[i+1].first
	}
	return len(r.frames)
}

package chunk_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/internal/chunk"
	"firn/nix"
)

// piece is a chunk as a test sees it.
type piece struct {
	Begin, End int
	References bool
}

func (p piece) String() string {
	kind := "plain"
	if p.References {
		kind = "references"
	}
	return fmt.Sprintf("%d %d %s", p.Begin, p.End, kind)
}

// A file has its contents from begin to end in a NAR.
type file struct{ begin, end int }

// cut cuts a NAR that is there at once.
func cut(c *chunk.Cutter, nar []byte, files ...file) []piece {
	return cutAsItComes(c, nar, files, func(int) int { return chunk.NeedSize })
}

// cutAsItComes cuts a NAR of which more tells how many bytes come at once, given how many are there and not cut yet.
func cutAsItComes(c *chunk.Cutter, nar []byte, files []file, more func(have int) int) (pieces []piece) {
	begin, end := 0, 0
	for begin < len(nar) {
		for len(files) > 0 && files[0].begin < end {
			c.Contents(int64(files[0].begin), int64(files[0].end-files[0].begin))
			files = files[1:]
		}
		n, references := c.Next(nar[begin:end], end == len(nar))
		switch {
		case n > 0:
			pieces = append(pieces, piece{begin, begin + n, references})
			begin += n
		case end == len(nar) || end-begin >= chunk.NeedSize:
			panic(fmt.Sprintf("Next asks for more than %d bytes of %d", end-begin, len(nar)-begin))
		}
		if n == 0 || more(end-begin)%2 == 1 {
			end = min(end+max(1, more(end-begin)), len(nar))
		}
	}
	return pieces
}

// The rules of docs/format.md, written as plainly as can be, for chunks of an average size.

type span struct{ begin, end int }

// references returns where references lie, from their first digit to the end of their name.
func references(nar []byte, dir string) (all []span) {
	prefix := []byte(dir + "/")
	for i := 0; i+len(prefix)+33 <= len(nar); {
		at := i + len(prefix)
		if bytes.HasPrefix(nar[i:], prefix) && isReference(nar[at:at+33]) {
			end := at + 33
			for end < len(nar) && end < at+33+211 && (nar[end] >= '0' && nar[end] <= '9' || nar[end] >= 'a' && nar[end] <= 'z' ||
				nar[end] >= 'A' && nar[end] <= 'Z' || strings.ContainsRune("+-._?=", rune(nar[end]))) {
				end++
			}
			all = append(all, span{at, end})
			i = end
		} else {
			i++
		}
	}
	return all
}

func isReference(b []byte) bool {
	for _, c := range b[:32] {
		if !strings.ContainsRune("0123456789abcdfghijklmnpqrsvwxyz", rune(c)) {
			return false
		}
	}
	return b[32] == '-'
}

func model(nar []byte, files []file, dir string, average int) (pieces []piece) {
	at := 0
	segment := func(end int) {
		for _, p := range modelSegment(nar[at:end], dir, average) {
			pieces = append(pieces, piece{at + p.Begin, at + p.End, p.References})
		}
		at = end
	}
	for _, f := range files {
		if f.end-f.begin >= 16<<10 {
			segment(f.begin)
			segment(f.end)
		}
	}
	segment(len(nar))
	return pieces
}

func modelSegment(nar []byte, dir string, average int) (pieces []piece) {
	var runs []span
	for _, r := range references(nar, dir) {
		last := len(runs) - 1
		if last >= 0 && r.begin-runs[last].end < 256 && r.end-runs[last].begin <= 256<<10 {
			runs[last].end = r.end
		} else {
			runs = append(runs, r)
		}
	}
	at := 0
	plain := func(end int) {
		for at < end {
			n := modelFastCDC(nar[at:end], average)
			pieces = append(pieces, piece{at, at + n, false})
			at += n
		}
	}
	for _, r := range runs {
		plain(r.begin)
		pieces = append(pieces, piece{r.begin, r.end, true})
		at = r.end
	}
	plain(len(nar))
	return pieces
}

func modelFastCDC(b []byte, average int) int {
	bits := 0
	for 1<<bits < average {
		bits++
	}
	for n := average / 4; n < len(b); n++ {
		if n == min(4*average, chunk.MaxSize) {
			return n
		}
		zeros := bits + 2
		if n >= average*13/16 {
			zeros = bits - 2
		}
		var h uint64
		for _, c := range b[n-64 : n] {
			h = h<<1 + chunk.Gear[c]
		}
		if h>>(64-zeros) == 0 {
			return n
		}
	}
	return len(b)
}

// narOf draws what a NAR may hold, with references at, before and across all places where chunks of 1 KiB may end.
func narOf(t *rapid.T, dir string) []byte {
	var nar []byte
	noise := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	for range rapid.IntRange(0, 30).Draw(t, "parts") {
		switch rapid.IntRange(0, 5).Draw(t, "part") {
		case 0:
			n := rapid.IntRange(0, 5000).Draw(t, "noise")
			for range n {
				nar = append(nar, byte(noise.Uint32()))
			}
		case 1:
			nar = append(nar, make([]byte, rapid.IntRange(0, 9000).Draw(t, "zeros"))...)
		case 2:
			nar = append(nar, dir+"/"...)
			nar = append(nar, digitsOf(noise)...)
			nar = append(nar, '-')
			nar = append(nar, strings.Repeat("nA1+-._?=", 30)[:rapid.SampledFrom([]int{0, 1, 9, 210, 211, 212, 250}).Draw(t, "name")]...)
		case 3: // nearly a reference
			text := dir + "/" + digitsOf(noise) + "-"
			i := rapid.IntRange(0, len(text)-1).Draw(t, "wrong")
			nar = append(append(append(nar, text[:i]...), rapid.SampledFrom([]byte("/ue-\x000")).Draw(t, "byte")), text[i+1:]...)
		case 4: // about as many bytes as make two runs of neighbours
			nar = append(nar, make([]byte, max(0, 256-len(dir)-1+rapid.IntRange(-2, 2).Draw(t, "near")))...)
		case 5: // cut in the middle
			text := dir + "/" + digitsOf(noise) + "-"
			nar = append(nar, text[:rapid.IntRange(0, len(text)).Draw(t, "length")]...)
		}
	}
	return nar
}

func digitsOf(r *rand.Rand) string {
	var text [32]byte
	for i := range text {
		text[i] = "0123456789abcdfghijklmnpqrsvwxyz"[r.IntN(32)]
	}
	return string(text[:])
}

// filesOf draws where files may have their contents in a NAR: side by side, empty, at its ends, and
// of sizes around chunk.MinFile.
func filesOf(t *rapid.T, nar []byte) (files []file) {
	for at := 0; ; {
		begin := at + rapid.SampledFrom([]int{0, 1, 100, 5000}).Draw(t, "before")
		end := begin + rapid.SampledFrom([]int{0, 500, chunk.MinFile - 1, chunk.MinFile, chunk.MinFile + 1, 30_000}).Draw(t, "size")
		if end > len(nar) || len(files) == 20 {
			return files
		}
		files = append(files, file{begin, end})
		at = end
	}
}

// Chunks are those of the rules, however the NAR comes.
func TestRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := rapid.SampledFrom([]string{"/nix/store", "/a", "/a/a", "/" + strings.Repeat("long", 70)}).Draw(t, "dir")
		nar := narOf(t, dir)
		files := filesOf(t, nar)
		c := chunk.NewCutterSize(nix.StoreDir(dir), 1<<10, chunk.MinFile)
		most := rapid.SampledFrom([]int{1, 40, 300, 5000, 1 << 20}).Draw(t, "most")
		got := cutAsItComes(c, nar, files, func(int) int { return rapid.IntRange(0, most).Draw(t, "more") })
		if diff := cmp.Diff(model(nar, files, dir, 1<<10), got); diff != "" {
			t.Errorf("wrong chunks (-want +got):\n%s", diff)
		}
	})
}

// What differs in hashes only is cut at the same places, and all chunks but the references are the same.
func TestRebuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const dir = "/nix/store"
		nar := narOf(t, dir)
		rebuilt := slices.Clone(nar)
		noise := rand.New(rand.NewPCG(7, 7))
		for _, r := range references(nar, dir) {
			copy(rebuilt[r.begin:], digitsOf(noise))
		}
		first := cut(chunk.NewCutterSize(dir, 1<<10, chunk.MinFile), nar)
		if diff := cmp.Diff(first, cut(chunk.NewCutterSize(dir, 1<<10, chunk.MinFile), rebuilt)); diff != "" {
			t.Fatalf("a rebuild is cut elsewhere (-first +second):\n%s", diff)
		}
		for _, p := range first {
			if !p.References && !bytes.Equal(nar[p.Begin:p.End], rebuilt[p.Begin:p.End]) {
				t.Errorf("chunk %v has hashes in it", p)
			}
		}
	})
}

// A rebuild against a dependency with a longer name changes the size of a file, which stands before
// its contents, and the place of all that follows. It changes no chunk but those that have the
// name.
func TestNewVersion(t *testing.T) {
	noise := func(seed byte, n int) []byte {
		b := make([]byte, n)
		rand.NewChaCha8([32]byte{seed}).Read(b)
		return b
	}
	tree := func(name string) (nar []byte, files []file) {
		for i := range byte(8) {
			nar = append(nar, noise(100+i, 200)...) // as the structure of a NAR
			contents := slices.Concat(noise(i, 200_000), []byte("/nix/store/"+strings.Repeat("0", 32)+name+"/lib"), noise(50+i, 100_000))
			nar = binary.LittleEndian.AppendUint64(nar, uint64(len(contents)))
			files = append(files, file{len(nar), len(nar) + len(contents)})
			nar = append(nar, contents...)
		}
		return nar, files
	}
	first, files := tree("-zlib-1.3")
	known := map[string]bool{}
	for _, p := range cut(chunk.NewCutter("/nix/store"), first, files...) {
		known[string(first[p.Begin:p.End])] = true
	}
	second, files := tree("-zlib-1.3.1-lib")
	added := 0
	for _, p := range cut(chunk.NewCutter("/nix/store"), second, files...) {
		if !known[string(second[p.Begin:p.End])] {
			added += p.End - p.Begin
		}
	}
	if added == 0 || added > 300*len(files) {
		t.Errorf("%d bytes of %d are in new chunks, want those around %d names", added, len(second), len(files))
	}
}

// The bounds hold for data that has no place to cut, and for lists of references without end.
func TestBounds(t *testing.T) {
	const dir = "/nix/store"
	noise := rand.New(rand.NewPCG(1, 1))
	list := make([]byte, 0, 6<<20)
	for len(list) < 5<<20 {
		list = append(list, dir+"/"+digitsOf(noise)+"-name\n"...)
	}
	for name, nar := range map[string][]byte{
		"zeros": make([]byte, 5<<20),
		"list":  list,
		"digit": bytes.Repeat([]byte(dir+"/0"), 5<<16),
	} {
		t.Run(name, func(t *testing.T) {
			got := cut(chunk.NewCutter(dir), nar)
			for _, p := range got {
				if n := p.End - p.Begin; n > chunk.MaxSize || p.References && n > 256<<10 {
					t.Errorf("chunk %v is too long", p)
				}
			}
			if most := len(nar)>>17 + 4; len(got) > most {
				t.Errorf("it has %d chunks, more than %d", len(got), most)
			}
		})
	}
}

// No byte repeated has a fingerprint that ends chunks: long stretches of one byte have long chunks.
func TestRepeatedBytes(t *testing.T) {
	for b, number := range chunk.Gear {
		// The sum of number·2^j for j from 0 to 63.
		if fingerprint := -number; fingerprint < 1<<48 {
			t.Errorf("byte %d has the fingerprint %#x", b, fingerprint)
		}
	}
}

// Noise has chunks of about the average size.
func TestAverage(t *testing.T) {
	noise := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{2}).Read(noise)
	pieces := cut(chunk.NewCutter("/nix/store"), noise)
	if average := len(noise) / len(pieces); average < 230<<10 || average > 280<<10 {
		t.Errorf("chunks have %d bytes on average, not about %d", average, chunk.Average)
	}
}

func FuzzNext(f *testing.F) {
	noise := rand.New(rand.NewPCG(1, 2))
	text := "/nix/store/" + digitsOf(noise) + "-a"
	f.Add([]byte(text+strings.Repeat("x", 244)+text+strings.Repeat("x", 243)+text), uint16(7))
	f.Add([]byte(strings.Repeat("/nix/store", 500)), uint16(999))
	f.Fuzz(func(t *testing.T, nar []byte, size uint16) {
		const dir = "/nix/store"
		var files []file
		if at := int(size) % 100; at+chunk.MinFile <= len(nar) {
			files = []file{{at, len(nar) - int(size)%7}}
		}
		got := cutAsItComes(chunk.NewCutterSize(dir, 1<<10, chunk.MinFile), nar, files, func(int) int { return int(size) })
		if diff := cmp.Diff(model(nar, files, dir, 1<<10), got); diff != "" {
			t.Errorf("wrong chunks (-want +got):\n%s", diff)
		}
	})
}

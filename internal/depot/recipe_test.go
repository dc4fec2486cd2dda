package depot

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/internal/catalog"
	"firn/internal/chunk"
	"firn/internal/depot/index"
)

// drawPlaces draws where the frames of a NAR lie, in the given number of packs.
func drawPlaces(t *rapid.T, packs int) []place {
	places := []place{}
	for range rapid.IntRange(1, 20).Draw(t, "frames") {
		p := place{
			pack:   int32(rapid.IntRange(0, packs-1).Draw(t, "pack")),
			size:   int32(rapid.IntRange(1, chunk.MaxSize).Draw(t, "size")),
			length: int32(rapid.IntRange(1, maxFrame).Draw(t, "length")),
			off:    rapid.Int64Range(0, 1<<40).Draw(t, "off"),
			sum:    sha256.Sum256([]byte{byte(len(places))}),
		}
		if len(places) > 0 && rapid.Bool().Draw(t, "follows") {
			last := places[len(places)-1]
			p.pack, p.off = last.pack, last.end()
		}
		places = append(places, p)
	}
	return places
}

func recordOf(places []place, packs int) *index.NAR {
	n := &index.NAR{Recipe: appendRecipe(nil, places), Packs: make([]string, packs)}
	for _, p := range places {
		n.Size += int64(p.size)
		n.FileSize += int64(p.length)
	}
	return n
}

func TestRecipe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const packs = 3
		places := drawPlaces(t, packs)
		n := recordOf(places, packs)
		r, err := parseRecipe(n)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.places(n.Recipe); !slices.Equal(got, places) {
			t.Fatalf("got %v, want %v", got, places)
		}
		off := rapid.Int64Range(0, r.size-1).Draw(t, "at")
		c := r.find(off)
		if f := r.frames[c.frame]; off < c.raw || off >= c.raw+int64(f.size) || c.off != places[c.frame].off || r.extents[c.extent].pack != int(places[c.frame].pack) {
			t.Errorf("byte %d: got %+v", off, c)
		}
		packed := rapid.Int64Range(0, r.fileSize-1).Draw(t, "packed")
		i := r.at(packed)
		if e := r.extents[i]; packed < e.start || packed >= e.start+r.length(i) {
			t.Errorf("byte %d of frames is not in extent %d, %+v", packed, i, e)
		}
	})
}

func TestRecipeGolden(t *testing.T) {
	sum := func(c byte) catalog.Sum { return catalog.Sum(bytes.Repeat([]byte{c}, 32)) }
	places := []place{{0, 1000, 300, 0, sum('a')}, {0, 5, 18, 300, sum('b')}, {1, 1 << 20, 1, 1 << 33, sum('c')}, {0, 7, 20, 318, sum('d')}}
	want := "\x01\x04" +
		"\x00\x00\x02" + "\xe8\x07\xac\x02" + "\x05\x12" +
		"\x01\x80\x80\x80\x80\x20\x01" + "\x80\x80\x40\x01" +
		"\x00\xbe\x02\x01" + "\x07\x14" +
		strings.Repeat("a", 32) + strings.Repeat("b", 32) + strings.Repeat("c", 32) + strings.Repeat("d", 32)
	if diff := cmp.Diff([]byte(want), appendRecipe(nil, places)); diff != "" {
		t.Errorf("recipe (-want +got):\n%s", diff)
	}
}

func TestRecipeMalformed(t *testing.T) {
	hash := strings.Repeat("h", 32)
	for name, text := range map[string]string{
		"empty":             "",
		"version":           "\x02\x01" + "\x00\x00\x01\x01\x01" + hash,
		"only the version":  "\x01",
		"no extents":        "\x01\x00",
		"no frames":         "\x01\x00" + "\x00\x00\x00",
		"cut off":           "\x01\x01" + "\x00\x00\x01\x01" + hash,
		"no hash":           "\x01\x01" + "\x00\x00\x01\x01\x01",
		"half a hash":       "\x01\x01" + "\x00\x00\x01\x01\x01" + hash[:16],
		"a hash too many":   "\x01\x01" + "\x00\x00\x01\x01\x01" + hash + hash,
		"fewer frames":      "\x01\x02" + "\x00\x00\x01\x01\x01" + hash + hash,
		"more frames":       "\x01\x01" + "\x00\x00\x02\x01\x01\x01\x01" + hash,
		"pack":              "\x01\x01" + "\x02\x00\x01\x01\x01" + hash,
		"size zero":         "\x01\x01" + "\x00\x00\x01\x00\x01" + hash,
		"length zero":       "\x01\x01" + "\x00\x00\x01\x01\x00" + hash,
		"size":              "\x01\x01" + "\x00\x00\x01\x81\x80\x40\x01" + hash,
		"longer than it is": "\x01\x01" + "\x80\x00\x00\x01\x01\x01" + hash,
		"longer count":      "\x01\x81\x00" + "\x00\x00\x01\x01\x01" + hash,
		"count":             "\x01\xff\xff\xff\x7f" + "\x00\x00\xff\xff\xff\x7f\x01\x01" + hash,
		"no frames in it":   "\x01\x01" + "\x00\x00\x00" + "\x00\x00\x01\x01\x01" + hash,
		"two for one":       "\x01\x02" + "\x00\x00\x01\x01\x01\x00\x01\x01\x01\x01" + hash + hash,
		"overflow":          "\x01\x01" + "\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01\x01\x01" + hash,
	} {
		r := &recipe{packs: make([]string, 2)}
		if err := r.parse([]byte(text)); err == nil {
			t.Errorf("%s: parsed to %+v", name, r)
		}
	}
	n := recordOf([]place{{size: 10, length: 20}}, 1)
	for _, change := range []func(*index.NAR){func(n *index.NAR) { n.Size++ }, func(n *index.NAR) { n.FileSize-- }} {
		other := *n
		change(&other)
		if _, err := parseRecipe(&other); err == nil {
			t.Errorf("parsed a recipe that is not of %+v", other)
		}
	}
}

// FuzzRecipe: whatever parses is the only form of what it says.
func FuzzRecipe(f *testing.F) {
	f.Add(appendRecipe(nil, []place{{0, 1000, 300, 0, catalog.Sum{1}}, {0, 5, 18, 300, catalog.Sum{2}}, {1, 1 << 20, 1, 1 << 33, catalog.Sum{3}}, {0, 7, 20, 318, catalog.Sum{4}}}))
	f.Add([]byte("\x01\x01\x00\x00\x01\x01\x01" + strings.Repeat("h", 32)))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := &recipe{packs: make([]string, 3)}
		if r.parse(text) != nil {
			return
		}
		if len(r.frames)*34 > len(text) || len(r.extents)*5 > len(text) {
			t.Errorf("%d bytes became %d frames in %d extents", len(text), len(r.frames), len(r.extents))
		}
		if got := appendRecipe(nil, r.places(text)); !slices.Equal(got, text) {
			t.Errorf("%x became %x", text, got)
		}
	})
}

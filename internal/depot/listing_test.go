package depot

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/nix/nar"
)

func (c *coders) list(tb testing.TB, kept []byte) ([]nar.Header, error) {
	var all []nar.Header
	for h, err := range c.entries(kept) {
		if err != nil {
			return nil, err
		}
		all = append(all, *h)
	}
	return all, nil
}

func TestListing(t *testing.T) {
	c := newCoders(3)
	want := []nar.Header{{Type: nar.TypeDirectory}}
	off := int64(100)
	for i := range 20_000 { // more than one part
		h := nar.Header{Path: fmt.Sprintf("dir/%05d-\xff%s", i, strings.Repeat("x", i%100))}
		switch i % 4 {
		case 0:
			h.Type = nar.TypeDirectory
		case 1:
			h.Type, h.Target = nar.TypeSymlink, strings.Repeat("../", i%1000+1)
		default:
			h.Type, h.Executable, h.Size, h.Offset = nar.TypeRegular, i%4 == 2, int64(i)<<(i%20), off
			off += h.Size + 100
		}
		want = append(want, h)
	}
	l := lister{coders: c}
	for i := range want {
		if err := l.add(&want[i]); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := l.end()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f bytes an entry", float64(len(kept))/float64(len(want)))
	got, err := c.list(t, kept)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("listing (-want +got):\n%s", diff)
	}
	for _, text := range [][]byte{nil, {2}, kept[:len(kept)-1], {1, 2, 3}} {
		if _, err := c.list(t, text); err == nil {
			t.Errorf("%.10x… parsed", text)
		}
	}
}

func TestListingTooLarge(t *testing.T) {
	l := lister{coders: newCoders(3)}
	h := nar.Header{Type: nar.TypeDirectory}
	for range maxEntries {
		if err := l.add(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.add(&h); !errors.Is(err, cache.ErrTooLarge) {
		t.Errorf("got %v, want %v", err, cache.ErrTooLarge)
	}
	l = lister{coders: newCoders(3)}
	h.Path = strings.Repeat("x", 16<<10)
	var err error
	for range maxEntries {
		if err = l.add(&h); err != nil {
			break
		}
	}
	if !errors.Is(err, cache.ErrTooLarge) {
		t.Errorf("got %v, want %v", err, cache.ErrTooLarge)
	}
}

// FuzzListing: whatever parses can be kept.
func FuzzListing(f *testing.F) {
	c := newCoders(3)
	l := lister{coders: c}
	for _, h := range []nar.Header{
		{Type: nar.TypeDirectory}, {Path: "a", Type: nar.TypeRegular, Size: 6, Offset: 300},
		{Path: "ab", Type: nar.TypeSymlink, Target: "a"}, {Path: "b", Type: nar.TypeRegular, Executable: true, Size: 1000, Offset: 900},
	} {
		if err := l.add(&h); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(bytes.Clone(l.raw))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 4<<10 {
			return // thousands of long paths take long
		}
		got, err := c.list(t, c.encode([]byte{listingVersion}, raw))
		if err != nil {
			return
		}
		l := lister{coders: c}
		for i := range got {
			if err := l.add(&got[i]); err != nil {
				t.Fatal(err)
			}
		}
		kept, err := l.end()
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.list(t, kept)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, again); diff != "" {
			t.Errorf("listing (-want +got):\n%s", diff)
		}
	})
}

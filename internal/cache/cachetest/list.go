package cachetest

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"firn/nix/nar"
)

// list returns the listing of a NAR.
func list(archive []byte) (*nar.Listing, error) {
	listing := new(nar.Listing)
	r := nar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return listing, nil
		}
		if err != nil {
			return nil, err
		}
		listing.Entries = append(listing.Entries, *h)
	}
}

// tree returns the headers of a directory with the given files, in the order of a NAR.
func tree(files map[string]string) []nar.Header {
	all := map[string]nar.Header{"": {Type: nar.TypeDirectory}}
	for name, contents := range files {
		all[name] = nar.Header{Path: name, Type: nar.TypeRegular, Size: int64(len(contents))}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			all[dir] = nar.Header{Path: dir, Type: nar.TypeDirectory}
		}
	}
	key := func(h nar.Header) string { return strings.ReplaceAll(h.Path, "/", "\x00") }
	return slices.SortedFunc(maps.Values(all), func(a, b nar.Header) int { return cmp.Compare(key(a), key(b)) })
}

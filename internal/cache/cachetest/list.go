package cachetest

import (
	"bytes"
	"errors"
	"io"

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

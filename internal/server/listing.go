package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"firn/internal/cache"
	"firn/nix"
)

const (
	// smallListing is how many bytes a listing may have that is made before it is sent. With 100 bytes
	// a file that is some 2,500 files. A larger one is made again while it is sent.
	smallListing = 256 << 10

	// listingMakers bounds how many listings are made in memory at once.
	listingMakers = 4

	// largeListings bounds how many large listings are sent at once, half of them to one address. While
	// one is sent, what a source needs for it is in memory: 16 MiB for the largest in the depot.
	largeListings = 8
	// listingLimit is how long a client waits for a slot to get a large one.
	listingLimit = 10 * time.Second
)

// serveListing answers with the listing of a NAR.
func (s *Server) serveListing(x *exchange) error {
	hash, err := nix.ParsePathHash(x.target.name)
	if err != nil {
		return x.noPath(x.target.name)
	}
	text, err := s.smallListing(x, hash)
	switch {
	case errors.Is(err, cache.ErrNotFound):
		return x.noPath(x.target.name)
	case !errors.Is(err, errLarge):
		if err == nil {
			x.w.Header()["Content-Security-Policy"] = sandbox
			err = x.bytes(typeJSON, cacheShort, append(text, '\n'))
		}
		return err
	}
	done, err := s.slot(x, s.listings, 1, listingLimit)
	if err != nil {
		return fmt.Errorf("send listing of %s: %w: too many are being sent: %w", hash, cache.ErrUnavailable, err)
	}
	defer done()
	h := x.w.Header()
	h["Content-Type"] = typeJSON
	x.setCaching(h, cacheShort)
	h["X-Content-Type-Options"] = noSniff
	h["Content-Security-Policy"] = sandbox
	if x.isHead() {
		x.begin(http.StatusOK)
		return nil
	}
	w := &body{x: x, status: http.StatusOK}
	err = x.cache.WriteListing(x.r.Context(), hash, w)
	if err == nil {
		_, err = io.WriteString(w, "\n")
	}
	return err
}

// errLarge is for a listing that is not small.
var errLarge = errors.New("it is large")

// smallListing returns a listing, or errLarge.
func (s *Server) smallListing(x *exchange, hash nix.PathHash) ([]byte, error) {
	if err := s.listing.Acquire(x.r.Context(), 1); err != nil {
		return nil, err
	}
	defer s.listing.Release(1)
	var text small
	err := x.cache.WriteListing(x.r.Context(), hash, &text)
	return text, err
}

// small is a writer into memory for smallListing bytes.
type small []byte

func (s *small) Write(p []byte) (int, error) {
	if len(*s)+len(p) > smallListing {
		return 0, errLarge
	}
	*s = append(*s, p...)
	return len(p), nil
}

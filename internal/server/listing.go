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
	// smallListing is how many bytes a listing has at most that is made before it is sent; 100 bytes a file make that some 2,500 files.
	// A larger one is made again while it is sent.
	smallListing = 256 << 10

	// listingMakers bounds how many listings are made before they are sent at once.
	listingMakers = 4

	// largeListings bounds how many large listings are being sent, half of them to one address. What a source needs for one is in memory
	// meanwhile: of the largest that the depot keeps, 16 MiB.
	largeListings = 8
	// listingLimit is how long a client waits for a large one while others take theirs.
	listingLimit = 10 * time.Second
)

// serveListing answers with what is in a NAR.
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

// errLarge says that a listing is not small.
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

// small is memory for smallListing bytes.
type small []byte

func (s *small) Write(p []byte) (int, error) {
	if len(*s)+len(p) > smallListing {
		return 0, errLarge
	}
	*s = append(*s, p...)
	return len(p), nil
}

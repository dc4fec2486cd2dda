package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"firn/internal/cache"
	"firn/internal/memo"
)

const (
	// maxRefused is how many refused uploads are remembered, at some 300 bytes each, and up to maxTold
	// more for the text that the client got.
	maxRefused, maxTold = 1 << 12, 300
	// refusedTime is how long a refused upload is remembered, and refusedTimes how often the answer
	// comes from that: Nix tries four times more, within ten seconds.
	refusedTime  = 30 * time.Second
	refusedTimes = 4

	// A disk is nearly full with less than a fullPart of it free, or less than fullMost bytes of a
	// large one.
	fullPart, fullMost = 100, 64 << 20
)

// space counts the disk space that uploads have still to fill, so that an upload for which there is too
// little is refused by its header alone. A client that has sent a body for nothing may not be able to
// send it again: Nix before 2.29 goes on where it was, and sends nothing.
type space struct {
	mu      sync.Mutex
	coming  map[string]int64 // bytes that uploads have still to bring, by owner
	refused *memo.Memo[putKey, *refusedPut]
}

// A putKey is the SHA-256 of the sender, the cache and the URL of an upload.
type putKey [sha256.Size]byte

type refusedPut struct {
	err   error // of remembered, with the text that the client got
	until time.Time
	times int
}

// remembered are the errors after which a client tries again.
var remembered = []error{cache.ErrFull, errSlow, cache.ErrUnavailable}

func newSpace() *space {
	return &space{coming: make(map[string]int64), refused: memo.New[putKey, *refusedPut](maxRefused)}
}

// A share is the space that an upload has reserved.
type share struct {
	of    *space
	owner string
	left  int64 // bytes that have still to come
}

// take reserves space for so many bytes that an owner sends, of the free ones. What others have still to
// send does not count: an owner that promises much and sends nothing would keep them out.
func (s *space) take(owner string, bytes, free int64) (*share, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes > free-s.coming[owner] {
		return nil, false
	}
	s.coming[owner] += bytes
	return &share{s, owner, bytes}, true
}

// arrived gives back the space of bytes that have come: the disk has less free by now.
func (s *share) arrived(bytes int64) {
	bytes = min(bytes, s.left)
	if bytes == 0 {
		return
	}
	s.left -= bytes
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if s.of.coming[s.owner] -= bytes; s.of.coming[s.owner] == 0 {
		delete(s.of.coming, s.owner)
	}
}

// again returns the error with which an upload was refused a moment ago, or nil.
func (s *space) again(key putKey) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, _, ok := s.refused.Get(key)
	if !ok {
		return nil
	}
	p.times++
	if p.times > refusedTimes || time.Now().After(p.until) {
		s.refused.Remove(key)
		return nil
	}
	return p.err
}

// refuse remembers the error with which an upload was refused.
func (s *space) refuse(key putKey, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused.Put(key, &refusedPut{err: err, until: time.Now().Add(refusedTime)}, memo.Version{}, 1)
}

// reserve returns an error if an upload is to be refused before any of its body is read. Otherwise it
// reserves disk space for the upload until done is called with the upload's error.
func (s *Server) reserve(x *exchange) (done func(error), err error) {
	owner := s.owners(x)[0]
	key := putKey(sha256.Sum256([]byte(owner + "\n" + x.cache.Name() + "\n" + x.r.URL.Path)))
	if err := s.space.again(key); err != nil {
		return nil, fmt.Errorf("refused a moment ago: %w", err)
	}
	free, all, err := x.cache.Room(x.r.Context())
	if err != nil || all == 0 {
		free = math.MaxInt64 // the writer finds out
	}
	length := max(x.r.ContentLength, 0)
	taken, ok := s.space.take(owner, length, free)
	if !ok {
		return nil, fmt.Errorf("%w: %d bytes are sent, and %d are free, uploads of the same client under way not counted", cache.ErrFull, length, free)
	}
	x.share = taken
	return func(err error) {
		taken.arrived(taken.left)
		if x.upload == nil || err == nil || x.isFinal() {
			return
		}
		err = cmp.Or(x.upload.err, err)
		for _, known := range remembered {
			if errors.Is(err, known) && (known == cache.ErrFull || x.sendsRest()) {
				if told, ok := errors.AsType[*cache.Refusal](err); ok && len(told.Text()) <= maxTold {
					known = cache.Refuse(known, "%s", told.Text())
				}
				s.space.refuse(key, known)
				return
			}
		}
	}, nil
}

// sendsRest reports whether the client is a Nix that cannot send a body again: before 2.29, Nix goes on
// where it was.
func (x *exchange) sendsRest() bool {
	minor, ok := nixVersion(x.r.Header["User-Agent"])
	return ok && minor < 29
}

// isFinal reports whether the client, when it tries again, fails before it gets an answer: it sends the
// body at once, without asking whether it may, and cannot send it again.
func (x *exchange) isFinal() bool { return x.sendsRest() && x.r.Header["Expect"] == nil }

// nearlyFull reports whether the disk has hardly any space left for uploads.
func nearlyFull(ctx context.Context, c *cache.Cache) bool {
	free, all, err := c.Room(ctx)
	return err == nil && all > 0 && free < min(all/fullPart, fullMost)
}

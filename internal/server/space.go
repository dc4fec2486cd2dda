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
	// maxRefused is how many uploads are remembered that were refused, at some 300 bytes each, and
	// maxTold more of what the client was told.
	maxRefused, maxTold = 1 << 12, 300
	// refusedTime is how long one is remembered, and refusedTimes how often it is answered from
	// that: Nix tries four times more, within ten seconds.
	refusedTime  = 30 * time.Second
	refusedTimes = 4

	// A disk is nearly full with less than a fullPart of it free, or less than fullMost bytes of a
	// large one.
	fullPart, fullMost = 100, 64 << 20
)

// space is what is known of the room for uploads, so that one for which there is none is refused by
// its header alone. Who has sent a body for nothing may not be able to send it again: Nix before
// 2.29 goes on where it was, and sends nothing.
type space struct {
	mu      sync.Mutex
	coming  map[string]int64 // bytes that uploads have still to bring, by who sends them
	refused *memo.Memo[putKey, *refusedPut]
}

// A putKey is the SHA-256 of what tells an upload from others: who sends it, to which cache, and
// under which name.
type putKey [sha256.Size]byte

type refusedPut struct {
	err   error // of remembered, with what the client was told
	until time.Time
	times int
}

// remembered are the errors after which a client tries again.
var remembered = []error{cache.ErrFull, errSlow, cache.ErrUnavailable}

func newSpace() *space {
	return &space{coming: make(map[string]int64), refused: memo.New[putKey, *refusedPut](maxRefused)}
}

// A share is the room that an upload has taken.
type share struct {
	of    *space
	owner string
	left  int64 // bytes that have still to come
}

// take takes room for so many bytes that a client sends, of what is free. What others have still to
// send does not count: who promises much and sends nothing would keep them out.
func (s *space) take(owner string, bytes, free int64) (*share, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes > free-s.coming[owner] {
		return nil, false
	}
	s.coming[owner] += bytes
	return &share{s, owner, bytes}, true
}

// arrived gives back the room of bytes that have come: what is free has them by now.
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

// again returns what an upload was refused with a moment ago, or nil.
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

// refuse remembers what an upload was refused with.
func (s *space) refuse(key putKey, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused.Put(key, &refusedPut{err: err, until: time.Now().Add(refusedTime)}, memo.Version{}, 1)
}

// hasRoom returns an error if an upload is to be refused before any of its body is read. done is
// told how it has ended otherwise.
func (s *Server) hasRoom(x *exchange) (done func(error), err error) {
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

// sendsRest reports whether the client is a Nix that cannot send a body again: before 2.29 it goes
// on where it was.
func (x *exchange) sendsRest() bool {
	minor, ok := nixVersion(x.r.Header["User-Agent"])
	return ok && minor < 29
}

// isFinal reports whether the client, when it tries again, fails before it has heard anything: it
// sends the body at once, without asking whether it may, and cannot send it again.
func (x *exchange) isFinal() bool { return x.sendsRest() && x.r.Header["Expect"] == nil }

// nearlyFull reports whether there is hardly any room left for what is pushed.
func nearlyFull(ctx context.Context, c *cache.Cache) bool {
	free, all, err := c.Room(ctx)
	return err == nil && all > 0 && free < min(all/fullPart, fullMost)
}

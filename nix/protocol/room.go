package protocol

import (
	"errors"

	"firn/nix"
)

const (
	// roomSize is how many bytes a question may take in memory before it needs more room, and how many it has with each.
	// That is some 8,000 store paths, and few closures have as many.
	roomSize = 1 << 20

	// perString is what a string takes beside its bytes: in a slice that has grown, and in a map.
	perString = 64
)

// errNoRoom is for a question, or an answer, that is too large beside those of others.
var errNoRoom = errors.New("there is no memory for so much at once, beside what others ask for: ask for less, or try again later")

// A room bounds what one question takes in memory, of which a client could say some gigabytes.
type room struct {
	more  func() (done func(), ok bool) // see [Options]; nil: there always is
	left  int                           // bytes
	given []func()                      // what gives back what there was more
}

func newRoom(more func() (done func(), ok bool)) *room { return &room{more: more, left: roomSize} }

// take takes room for a string of n bytes, and reports whether there is. None is a room without bounds.
func (r *room) take(n int) (ok bool) {
	if r == nil || r.more == nil {
		return true
	}
	r.left -= n + perString
	for r.left < 0 {
		done, ok := r.more()
		if !ok {
			return false
		}
		r.given = append(r.given, done)
		r.left += roomSize
	}
	return true
}

// fewReferences is how many take so little memory that it is not counted.
const fewReferences = 500

// hold takes room for what is known of a path, which is in memory for as long as the client takes
// to read it.
func (r *room) hold(info *nix.PathInfo) error {
	if len(info.References) <= fewReferences {
		return nil
	}
	for _, ref := range info.References {
		if !r.take(len(ref.String())) {
			return errNoRoom
		}
	}
	return nil
}

// withoutReferences returns what is known of a path without what may be large: its NAR may take
// hours.
func withoutReferences(info *nix.PathInfo) *nix.PathInfo {
	short := *info
	short.References = nil
	return &short
}

// clear says that the question is answered.
func (r *room) clear() {
	for _, done := range r.given {
		done()
	}
	clear(r.given)
	r.given, r.left = r.given[:0], roomSize
}

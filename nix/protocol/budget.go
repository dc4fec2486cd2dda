package protocol

import (
	"errors"

	"firn/nix"
)

const (
	// memoryStep is how many bytes a question may take in memory before it needs more, and how many it gets each time.
	// That is some 8,000 store paths, and few closures have as many.
	memoryStep = 1 << 20

	// perString is what a string takes beside its bytes: in a slice that has grown, and in a map.
	perString = 64
)

// errNoMemory is for a question, or an answer, that is too large beside those of others.
var errNoMemory = errors.New("there is no memory for so much at once, beside what others ask for: ask for less, or try again later")

// A budget bounds what one question takes in memory, of which a client could say some gigabytes.
type budget struct {
	more  func() (done func(), ok bool) // see [Options]; nil: there always is
	left  int                           // bytes
	given []func()                      // what gives back what there was more
}

func newBudget(more func() (done func(), ok bool)) *budget {
	return &budget{more: more, left: memoryStep}
}

// take takes memory for a string of n bytes, and reports whether there is. Nil is without bounds.
func (r *budget) take(n int) (ok bool) {
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
		r.left += memoryStep
	}
	return true
}

// fewReferences is how many take so little memory that it is not counted.
const fewReferences = 500

// hold takes memory for what is known of a path, which is in memory for as long as the client takes
// to read it.
func (r *budget) hold(info *nix.PathInfo) error {
	if len(info.References) <= fewReferences {
		return nil
	}
	for _, ref := range info.References {
		if !r.take(len(ref.String())) {
			return errNoMemory
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
func (r *budget) clear() {
	for _, done := range r.given {
		done()
	}
	clear(r.given)
	r.given, r.left = r.given[:0], memoryStep
}

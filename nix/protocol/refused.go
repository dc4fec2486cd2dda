package protocol

import (
	"errors"
	"fmt"
	"io"
)

// What a cache has no answer to. It reads the question, so that others can follow, and says why.
var (
	errGarbage = errors.New("this is a cache: it removes what nothing leads to by itself")
	errRoots   = errors.New("this is a cache: it has no roots")
	errUp      = errors.New("this is a cache: it does not know which paths refer to another, or which derivations were built to it")
	errUpkeep  = errors.New("this is a cache: its administrator looks after its store")
)

// A buildError is for who wants to have a derivation built.
type buildError struct{ drv string }

func (e *buildError) Error() string {
	return fmt.Sprintf("cannot build %s: this is a cache, which builds nothing", e.drv)
}

func errBuild(drv string) error { return &buildError{drv} }

// refuse says why there is no answer.
func (s *workerServer) refuse(op uint64) error {
	switch op {
	case opAddToStore:
		if s.has(25) {
			return s.refuseAddToStore()
		}
	case opAddTextToStore:
		name := s.string(maxPath)
		s.skipString(maxText)
		s.paths(s.dir)
		return errAdd(name)
	case opQueryReferrers, opQueryValidDerivers:
		s.path(s.dir)
		return errUp
	case opCollectGarbage:
		s.skip(1)
		s.paths(s.dir)
		s.skip(5)
		return errGarbage
	case opFindRoots:
		return errRoots
	case opAddIndirectRoot:
		s.skipString(maxPath)
		return errRoots
	case opAddPermRoot:
		s.path(s.dir)
		s.skipString(maxPath)
		return errRoots
	case opOptimiseStore:
		return errUpkeep
	case opVerifyStore:
		s.skip(2) // whether to look at contents, and to repair
		return errUpkeep
	}
	// How long the question is cannot be known, so this is the end.
	s.sayError(fmt.Errorf("operation %d of the worker protocol is not for a cache", op))
	return errHungUp
}

// errAdd is for who wants to have something added that has no path yet.
func errAdd(name string) error {
	return fmt.Errorf("cannot add %s: this is a cache; add it to a store, and copy it from there", name)
}

func (s *workerServer) refuseAddToStore() error {
	name := s.string(maxPath)
	s.skipString(maxPath) // how its address follows from the contents
	s.paths(s.dir)
	s.skip(1)
	return s.framed(func(io.Reader) error { return errAdd(name) }, nothing)
}

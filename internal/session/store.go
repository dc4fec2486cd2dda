package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync/atomic"

	"firn/internal/audit"
	"firn/internal/cache"
	"firn/nix"
	"firn/nix/protocol"
)

const (
	// maxClosure bounds how many paths a closure may have.
	maxClosure = 1 << 18
	// closureBatch is how many of these are looked up at once.
	closureBatch = 1 << 10
	// pathsPerStep is of how many of these a closure takes as much as Memory gives at a time: each is some 250 bytes, in two lists and a map.
	pathsPerStep = 4 << 10
)

var errNoMemory = cache.Refuse(cache.ErrUnavailable, "there is not enough memory to compute this closure now; try again later")

// Options say whose conversation with which cache it is.
type Options struct {
	// Cache returns the cache, as it is now. cache.ErrNotFound if there is none of this name.
	Cache func(ctx context.Context) (*cache.Cache, error)
	// Who returns who the client is, as is known now. cache.ErrUnauthenticated: the key has expired or was revoked.
	Who func(ctx context.Context) (cache.Principal, error)
	// Name is that of the cache, as the client has said it.
	Name string
	// Version is told to clients as that of Nix, such as "firn 1.0".
	Version string
	// ToStore adds what is pushed to the first source of the cache that is there, where that takes
	// paths, as the store of this machine does. Else it goes into the sink of the cache.
	ToStore bool
	// Behind is shared by conversations whose larger NARs may be kept while the next ones are read. Nil: each is kept before the next is read.
	Behind *Behind
	// Slot waits until a NAR of some size, or a log, may be read: each takes memory that others wait for, so a client that is slow then is cut off. done ends it.
	// Nil: at once, and as slowly as it likes.
	Slot func(ctx context.Context) (done func(), err error)
	// Memory takes memory for another megabyte of what the client asks, of which the first is free, see [protocol.Options]. Nil: there always is.
	Memory func() (done func(), ok bool)
	// By is who pushes, for the catalog.
	By string
	// Pushes counts what is pushed. Nil does not.
	Pushes *audit.Session
	// Denied is told that the client lacks a right. Nil is not.
	Denied func(need cache.Rights)
	// Operations counts what the client asks for. Nil does not.
	Operations *Operations
	// Logger is told what the client is not. Nil discards.
	Logger *slog.Logger
}

// A store is a cache as one client may use it. Rights are looked at for every question:
// a key that is revoked is good for nothing from then on, also in the middle of a conversation, or of a NAR: they are looked at
// once more when that has come in, which may take hours.
//
// All errors that it returns have texts for the client.
type store struct {
	Options
	dir    nix.StoreDir
	adder  cache.Adder  // nil: paths go into the sink
	busy   atomic.Int32 // questions that are being answered
	push   pushes
	hangUp func()      // ends the connection, of a client that is too slow
	broke  atomic.Bool // the connection has, so that what fails then is no fault of the server
}

// StoreDir returns the store directory of the cache, as it was at the beginning.
func (s *store) StoreDir() nix.StoreDir { return s.dir }

// begin begins to answer a question that needs rights. done ends it.
func (s *store) begin(ctx context.Context, op operation, rights cache.Rights) (c *cache.Cache, done func(), err error) {
	s.Operations.count(op)
	c, err = s.open(ctx, rights)
	if err != nil {
		return nil, nil, s.tell(err)
	}
	s.busy.Add(1)
	return c, func() { s.busy.Add(-1) }, nil
}

func (s *store) open(ctx context.Context, rights cache.Rights) (*cache.Cache, error) {
	who, err := s.Who(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.Cache(ctx)
	if errors.Is(err, cache.ErrNotFound) || err == nil && c.Allow(who, cache.Read) != nil {
		s.denied(cache.Read)
		// The same for both: that there is a private cache is for those who may read it.
		return nil, cache.Refuse(cache.ErrDenied, "there is no cache named %s that this key may use: over SSH the user name is that of the cache, as in ssh-ng://main@HOST", s.Name)
	}
	if err == nil && c.Allow(who, rights) != nil {
		s.denied(rights)
		return nil, cache.Refuse(cache.ErrDenied, "this key may not push to the cache %s: firn sshkey list on the server shows what it may", s.Name)
	}
	if err == nil && c.Info().StoreDir != s.dir && s.dir != "" {
		return nil, cache.Refuse(cache.ErrUnavailable, "the store directory of the cache %s was changed; connect again", s.Name)
	}
	return c, err
}

func (s *store) denied(need cache.Rights) {
	if s.Denied != nil {
		s.Denied(need)
	}
}

// kept counts something that was pushed other than a path, if there is no error.
func (s *store) kept(err error) error {
	if err == nil {
		s.Pushes.Kept()
	}
	return s.tell(err)
}

// ValidPaths returns which of the paths are there. There is nothing to substitute: what a cache can get, it has.
func (s *store) ValidPaths(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	c, done, err := s.begin(ctx, opValidPaths, cache.Read)
	if err != nil {
		return nil, err
	}
	defer done()
	valid, err := c.Valid(ctx, paths)
	if err != nil {
		return nil, s.tell(err)
	}
	return slices.DeleteFunc(slices.Clone(paths), func(p nix.StorePath) bool { return !valid[p] }), nil
}

// PathInfo returns what is known of a path, signed.
func (s *store) PathInfo(ctx context.Context, path nix.StorePath) (*nix.PathInfo, error) {
	info, err := s.PathFromHash(ctx, path.Hash())
	if err == nil && info.Path != path {
		return nil, protocol.ErrNotFound
	}
	return info, err
}

// PathFromHash returns what is known of the path with a path hash, signed.
func (s *store) PathFromHash(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	c, done, err := s.begin(ctx, opPathInfo, cache.Read)
	if err != nil {
		return nil, err
	}
	defer done()
	info, err := c.Lookup(ctx, hash)
	if err != nil {
		return nil, s.tell(err)
	}
	return &info.PathInfo, nil
}

// WriteNAR writes the NAR of a path.
func (s *store) WriteNAR(ctx context.Context, w io.Writer, info *nix.PathInfo) error {
	c, done, err := s.begin(ctx, opSendNAR, cache.Read)
	if err != nil {
		return err
	}
	defer done()
	n, _, err := c.OpenNAR(ctx, cache.Archive{Path: info.Path.Hash(), NARHash: info.NARHash})
	if err != nil {
		return s.tell(err)
	}
	defer n.Close()
	if err := n.WriteRange(ctx, w, 0, n.Size()); err != nil {
		return s.tell(fmt.Errorf("send NAR of %s: %w", info.Path, err))
	}
	return nil
}

// AllPaths iterates over all paths.
func (s *store) AllPaths(ctx context.Context) iter.Seq2[nix.StorePath, error] {
	return func(yield func(nix.StorePath, error) bool) {
		c, done, err := s.begin(ctx, opAllPaths, cache.Read)
		if err != nil {
			yield(nix.StorePath{}, err)
			return
		}
		defer done()
		for info, err := range c.Paths(ctx) {
			if err != nil {
				yield(nix.StorePath{}, s.tell(err))
				return
			}
			if !yield(info.Path, nil) {
				return
			}
		}
	}
}

// Closure returns the paths with all that they refer to, however indirectly, in any order.
// protocol.ErrNotFound if one of the paths is not there.
func (s *store) Closure(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	return s.closure(ctx, paths, false)
}

// ClosureWithOutputs returns what Closure does, and what derivations among these were built to.
func (s *store) ClosureWithOutputs(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	return s.closure(ctx, paths, true)
}

func (s *store) closure(ctx context.Context, paths []nix.StorePath, outputs bool) ([]nix.StorePath, error) {
	c, done, err := s.begin(ctx, opClosure, cache.Read)
	if err != nil {
		return nil, err
	}
	defer done()
	asked := make(map[nix.StorePath]bool, len(paths))
	for _, p := range paths {
		asked[p] = true
	}
	seen := map[nix.StorePath]bool{}
	var found, all []nix.StorePath // what is referred to, and of that what is there
	next := 0                      // of found is to be looked up
	add := func(paths []nix.StorePath) {
		for _, p := range paths {
			if !seen[p] {
				seen[p] = true
				found = append(found, p)
			}
		}
	}
	add(paths)
	room := pathsPerStep // for what is found
	var rooms []func()
	defer func() {
		for _, done := range rooms {
			done()
		}
	}()
	grow := func(n int) error { // before n more are found
		if len(found)+n > maxClosure {
			return cache.Refuse(cache.ErrTooLarge, "the closure has more than %d paths", maxClosure)
		}
		for ; len(found)+n > room && s.Memory != nil; room += pathsPerStep {
			done, ok := s.Memory()
			if !ok {
				return errNoMemory
			}
			rooms = append(rooms, done)
		}
		return nil
	}
	for len(found) > next {
		if err := grow(0); err != nil {
			return nil, s.tell(err)
		}
		batch := found[next:min(next+closureBatch, len(found))]
		next += len(batch)
		hashes := make([]nix.PathHash, len(batch))
		for i, p := range batch {
			hashes[i] = p.Hash()
		}
		there := make(map[nix.StorePath]bool, len(batch))
		err := c.References(ctx, hashes, func(r cache.Referrer) error {
			if !seen[r.Path] {
				return nil // it has the hash of one, and another name
			}
			there[r.Path] = true
			more := 0
			for _, ref := range r.References {
				if !seen[ref] {
					more++
				}
			}
			if err := grow(more); err != nil {
				return err
			}
			add(r.References)
			return nil
		})
		if err != nil {
			return nil, s.tell(err)
		}
		for _, p := range batch {
			switch {
			case there[p]:
				all = append(all, p)
			case asked[p]:
				return nil, protocol.ErrNotFound
			default: // a reference, which may be missing in a cache that allows that, or an output that was not pushed
				continue
			}
			if outputs && p.IsDerivation() {
				d, err := s.derivation(ctx, c, p)
				if err != nil {
					return nil, s.tell(err)
				}
				for _, o := range d.Outputs {
					if !o.Path.IsZero() { // Nix that asks for them knows no others
						add([]nix.StorePath{o.Path})
					}
				}
				d.done()
			}
		}
	}
	return all, nil
}

// AddSignatures adds signatures to a path that is there.
func (s *store) AddSignatures(ctx context.Context, path nix.StorePath, sigs []nix.Signature) error {
	c, done, err := s.begin(ctx, opSignatures, cache.Push)
	if err != nil {
		return err
	}
	defer done()
	if s.adder != nil {
		return s.tell(s.adder.AddSignatures(ctx, path, sigs))
	}
	info, err := c.Lookup(ctx, path.Hash())
	if err != nil {
		return s.tell(err)
	}
	if info.Path != path {
		return protocol.ErrNotFound
	}
	signed := info.PathInfo
	signed.Signatures = sigs
	_, err = c.Publish(ctx, &signed, cache.Received{})
	return s.tell(err)
}

// Realisation returns what a derivation output was built to.
func (s *store) Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	c, done, err := s.begin(ctx, opRealisation, cache.Read)
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := c.Realisation(ctx, id)
	return r, s.tell(err)
}

// PutRealisation keeps what a derivation output was built to.
func (s *store) PutRealisation(ctx context.Context, r *nix.Realisation) error {
	c, done, err := s.begin(ctx, opRealisation, cache.Push)
	if err != nil {
		return err
	}
	defer done()
	return s.kept(c.PutRealisation(ctx, r))
}

// BuildTrace returns what a derivation output was built to, as Nix from 2.35 on names it.
func (s *store) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	c, done, err := s.begin(ctx, opRealisation, cache.Read)
	if err != nil {
		return nil, err
	}
	defer done()
	t, err := c.BuildTrace(ctx, drv, output)
	return t, s.tell(err)
}

// PutBuildTrace keeps it.
func (s *store) PutBuildTrace(ctx context.Context, t *nix.BuildTrace) error {
	c, done, err := s.begin(ctx, opRealisation, cache.Push)
	if err != nil {
		return err
	}
	defer done()
	return s.kept(c.PutBuildTrace(ctx, t))
}

// PutBuildLog keeps the build log of a derivation.
func (s *store) PutBuildLog(ctx context.Context, drv nix.StorePath, r io.Reader) error {
	c, done, err := s.begin(ctx, opLog, cache.Push)
	if err != nil {
		return err
	}
	defer done()
	r, end, err := s.turn(ctx, r)
	if err != nil {
		return s.tell(err)
	}
	defer end()
	return s.kept(c.PutLog(ctx, drv, s.vouched(ctx, r)))
}

// A told is an error whose text is for the client.
type told struct {
	text string
	error
}

func (t *told) Error() string { return t.text }
func (t *told) Unwrap() error { return t.error }

// tell returns what the client hears of an error. What it does not hear is logged.
func (s *store) tell(err error) error {
	text := "internal error"
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*told)) || errors.Is(err, protocol.ErrNotFound):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe):
		text = "the connection broke"
	case errors.Is(err, cache.ErrNotFound):
		if e, ok := errors.AsType[*cache.Refusal](err); ok {
			return &told{e.Text(), protocol.ErrNotFound}
		}
		return protocol.ErrNotFound
	case errors.Is(err, cache.ErrUnauthenticated):
		text = "this key has expired or was revoked"
	case errors.Is(err, cache.ErrDenied):
		text = "this key may not do that"
	case errors.Is(err, cache.ErrTooLarge):
		text = "this is too large"
	case errors.Is(err, cache.ErrConflict):
		text = "this is there already, and is something else"
	case errors.Is(err, cache.ErrInvalid):
		text = "this is not as it should be"
	case errors.Is(err, cache.ErrFull):
		text = "the disk of the server is full: an administrator has to free some space"
		s.Logger.Error("there is no room for what is pushed: make some on the disk of the state directory, or delete paths or caches; firn stats tells what will go by itself", "error", err)
	case errors.Is(err, cache.ErrUnavailable):
		text = "this cannot be answered now; try again later"
		s.Logger.Warn("unavailable", "error", err)
	case s.broke.Load():
		text = "the connection broke"
		s.Logger.Debug("failed", "error", err)
	default:
		s.Logger.Error("failed", "error", err)
	}
	if e, ok := errors.AsType[*cache.Refusal](err); ok {
		text = e.Text()
	}
	return &told{text, err}
}

package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

const (
	// smallDerivation is how many bytes a derivation has at most that takes no room in memory. Nearly all are smaller.
	smallDerivation = 64 << 10
	// roomsDerivation is how many times its size a derivation takes while it is read.
	roomsDerivation = 5
	// maxInputs bounds how many derivations are read to name the realisations of one.
	maxInputs = 1 << 15
	// maxInputBytes bounds the size of these. All that a whole system is built from have some 200 MB.
	maxInputBytes = 1 << 30
	// maxWaiting bounds how many derivations are listed as inputs at once that were not known when the list was read.
	maxWaiting = 1 << 17
)

// Outputs returns what a derivation is built to.
func (s *store) Outputs(ctx context.Context, drv nix.StorePath) (map[string]nix.StorePath, error) {
	c, done, err := s.begin(ctx, opPathInfo, cache.Read)
	if err != nil {
		return nil, err
	}
	defer done()
	outputs, err := s.outputs(ctx, c, drv)
	return outputs, s.tell(err)
}

func (s *store) outputs(ctx context.Context, c *cache.Cache, drv nix.StorePath) (map[string]nix.StorePath, error) {
	d, err := s.derivation(ctx, c, drv)
	if err != nil {
		return nil, err
	}
	defer d.done()
	outputs := make(map[string]nix.StorePath, len(d.Outputs))
	for _, o := range d.Outputs {
		outputs[strings.Clone(o.Name)] = o.Path // for the text not to stay in memory for it
	}
	known := func(o nix.DerivationOutput) bool { return !o.Path.IsZero() }
	if !slices.ContainsFunc(d.Outputs, func(o nix.DerivationOutput) bool { return !known(o) }) {
		return outputs, nil
	}
	hash, err := s.derivationHash(ctx, c, drv)
	if errors.Is(err, cache.ErrNotFound) {
		return outputs, nil // the others cannot be known then
	}
	if err != nil {
		return nil, err
	}
	for _, o := range d.Outputs {
		if known(o) {
			continue
		}
		r, err := c.Realisation(ctx, nix.RealisationID{DrvHash: hash, Output: o.Name})
		switch {
		case err == nil:
			outputs[o.Name] = r.OutPath
		case !errors.Is(err, cache.ErrNotFound):
			return nil, err
		}
	}
	return outputs, nil
}

// DerivationHash returns the hash that names the realisations of a derivation.
func (s *store) DerivationHash(ctx context.Context, drv nix.StorePath) (nix.Hash, error) {
	c, done, err := s.begin(ctx, opRealisation, cache.Read)
	if err != nil {
		return nix.Hash{}, err
	}
	defer done()
	hash, err := s.derivationHash(ctx, c, drv)
	return hash, s.tell(err)
}

// derivationHash reads a derivation and all those whose hashes are in its own: those that need others twice, to find what that is, and, when its hashes are known,
// for their own. So not all of them are in memory at once.
func (s *store) derivationHash(ctx context.Context, c *cache.Cache, drv nix.StorePath) (nix.Hash, error) {
	type open struct {
		path   nix.StorePath
		inputs []nix.StorePath // that were not known when it was read first
		next   int             // of these is to be looked at
	}
	var (
		stack   []open
		waiting int   // inputs of all that are open
		size    int64 // of all that were read
		room    = pathsPerStep
		hashes  = make(map[nix.StorePath]nix.Hash)
		begun   = make(map[nix.StorePath]bool)
	)
	begin := func(path nix.StorePath) error {
		if len(begun) == maxInputs {
			return cache.Refuse(cache.ErrTooLarge, "%v needs more than %d derivations", drv, maxInputs)
		}
		begun[path] = true
		d, err := s.derivation(ctx, c, path)
		if path != drv && errors.Is(err, cache.ErrNotFound) {
			err = cache.Refuse(cache.ErrNotFound, "%v needs %v, which is not there: nix copy --derivation --to pushes a derivation with all that it needs", drv, path)
		}
		if err != nil {
			return err
		}
		defer d.done()
		if size += d.size; size > maxInputBytes {
			return cache.Refuse(cache.ErrTooLarge, "%v needs derivations of more than %d MiB", drv, maxInputBytes>>20)
		}
		var inputs []nix.StorePath
		if d.NeedsInputs() {
			for _, in := range d.Inputs {
				if _, known := hashes[in.Path]; !known {
					inputs = append(inputs, in.Path)
				}
			}
		}
		if len(inputs) == 0 {
			hashes[path], err = d.HashModulo(path == drv, hashes)
			return err
		}
		if waiting += len(inputs); waiting > maxWaiting {
			return cache.Refuse(cache.ErrTooLarge, "%v needs too many derivations that need others", drv)
		}
		stack = append(stack, open{path: path, inputs: inputs})
		return nil
	}
	if err := begin(drv); err != nil {
		return nix.Hash{}, err
	}
	for len(stack) > 0 {
		for ; len(begun)+waiting > room && s.Memory != nil; room += pathsPerStep {
			done, ok := s.Memory()
			if !ok {
				return nix.Hash{}, errNoMemoryFor(drv)
			}
			defer done()
		}
		top := &stack[len(stack)-1]
		if top.next < len(top.inputs) {
			in := top.inputs[top.next]
			top.next++
			if _, known := hashes[in]; known {
				continue
			}
			if begun[in] {
				return nix.Hash{}, cache.Refuse(cache.ErrInvalid, "%v needs itself", in)
			}
			if err := begin(in); err != nil {
				return nix.Hash{}, err
			}
			continue
		}
		path := top.path
		waiting -= len(top.inputs)
		stack[len(stack)-1] = open{}
		stack = stack[:len(stack)-1]
		d, err := s.derivation(ctx, c, path)
		if err != nil {
			return nix.Hash{}, err
		}
		hashes[path], err = d.HashModulo(path == drv, hashes)
		d.done()
		if err != nil {
			return nix.Hash{}, err
		}
	}
	return hashes[drv], nil
}

func errNoMemoryFor(drv nix.StorePath) error {
	return cache.Refuse(cache.ErrUnavailable, "there is no memory to read %v beside what others ask for; try again later", drv)
}

// readDerivation is a derivation that has room in memory until done is called.
type readDerivation struct {
	*nix.Derivation
	size int64
	done func()
}

// derivation reads a derivation. cache.ErrNotFound if it is not there.
func (s *store) derivation(ctx context.Context, c *cache.Cache, drv nix.StorePath) (_ *readDerivation, err error) {
	if !drv.IsDerivation() {
		return nil, cache.Refuse(cache.ErrInvalid, "%v is no derivation", drv)
	}
	var info nix.PathInfo
	err = c.WithOrigin(ctx, drv.Hash(), func(there *nix.PathInfo) error {
		if there.Path != drv {
			return cache.ErrNotFound
		}
		info.NARHash, info.NARSize = there.NARHash, there.NARSize
		return nil
	})
	if err != nil {
		return nil, err
	}
	const around = 256 // bytes of a NAR
	if info.NARSize > nix.MaxDerivationSize+around {
		return nil, cache.Refuse(cache.ErrTooLarge, "%v is too large for a derivation", drv)
	}
	rooms, err := s.roomFor(drv, info.NARSize)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			rooms()
		}
	}()
	n, _, err := c.OpenNAR(ctx, cache.Archive{Path: drv.Hash(), NARHash: info.NARHash})
	if err != nil {
		return nil, err
	}
	defer n.Close()
	var buf bytes.Buffer
	buf.Grow(int(info.NARSize) + bytes.MinRead)
	if err := n.WriteRange(ctx, &buf, 0, n.Size()); err != nil {
		return nil, fmt.Errorf("read %v: %w", drv, err)
	}
	r := nar.NewReader(&buf)
	h, err := r.Next()
	if err != nil || h.Type != nar.TypeRegular || h.Size > info.NARSize {
		return nil, cache.Refuse(cache.ErrInvalid, "%v is no file", drv)
	}
	text := make([]byte, h.Size)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, fmt.Errorf("read %v: %w", drv, err)
	}
	d, err := nix.ParseDerivation(drv.Dir(), text)
	if err != nil {
		return nil, cache.Refuse(cache.ErrInvalid, "%v: %v", drv, err)
	}
	return &readDerivation{d, info.NARSize, rooms}, nil
}

// roomFor takes the room that a derivation of a size needs, until done is called.
func (s *store) roomFor(drv nix.StorePath, size int64) (done func(), err error) {
	var taken []func()
	done = func() {
		for _, done := range taken {
			done()
		}
	}
	if size <= smallDerivation || s.Memory == nil {
		return done, nil
	}
	for range 1 + roomsDerivation*size>>20 {
		one, ok := s.Memory()
		if !ok {
			done()
			return nil, errNoMemoryFor(drv)
		}
		taken = append(taken, one)
	}
	return done, nil
}

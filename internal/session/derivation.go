package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"firn/internal/cache"
	"firn/nix"
	"firn/nix/nar"
)

const (
	// smallDerivation is how many bytes a derivation has at most that takes no room in memory. Nearly all are smaller.
	smallDerivation = 64 << 10
	// roomsDerivation is how many times its size a derivation takes while it is read.
	roomsDerivation = 3
	// maxInputs bounds how many derivations are read to name the realisations of one.
	maxInputs = 1 << 15
	// maxWaiting bounds how many of them are known by their names at once, and not looked at yet: some 100 bytes each.
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
	outputs := make(map[string]nix.StorePath, len(d.Outputs))
	var hash nix.Hash // of what is not known before it is built
	for _, o := range d.Outputs {
		if o.Path.IsZero() {
			if hash.IsZero() {
				if hash, err = s.derivationHash(ctx, c, drv); errors.Is(err, cache.ErrNotFound) {
					err = nil // nobody can know it then
				}
				if err != nil {
					return nil, err
				}
			}
			r, err := c.Realisation(ctx, nix.RealisationID{DrvHash: hash, Output: o.Name})
			switch {
			case err == nil:
				o.Path = r.OutPath
			case !errors.Is(err, cache.ErrNotFound):
				return nil, err
			}
		}
		outputs[o.Name] = o.Path
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

// derivationHash reads a derivation and all those that it needs, each twice: to find what it needs, and, when the hashes of these are known, for its own.
// So not all of them are in memory at once.
func (s *store) derivationHash(ctx context.Context, c *cache.Cache, drv nix.StorePath) (nix.Hash, error) {
	type open struct {
		path   nix.StorePath
		inputs []nix.StorePath // that were not looked at
	}
	waiting := 0 // inputs of all that are open
	hashes := make(map[nix.StorePath]nix.Hash)
	begun := make(map[nix.StorePath]bool)
	begin := func(path nix.StorePath) (open, error) {
		if len(begun) == maxInputs {
			return open{}, cache.Refuse(cache.ErrTooLarge, "%v needs more than %d derivations", drv, maxInputs)
		}
		begun[path] = true
		d, err := s.derivation(ctx, c, path)
		if path != drv && errors.Is(err, cache.ErrNotFound) {
			err = cache.Refuse(cache.ErrNotFound, "%v needs %v, which is not there", drv, path)
		}
		if err != nil {
			return open{}, err
		}
		if waiting += len(d.Inputs); waiting > maxWaiting {
			return open{}, cache.Refuse(cache.ErrTooLarge, "%v needs too many derivations that need others", drv)
		}
		inputs := make([]nix.StorePath, len(d.Inputs))
		for i, in := range d.Inputs {
			inputs[i] = in.Path
		}
		return open{path, inputs}, nil
	}
	first, err := begin(drv)
	if err != nil {
		return nix.Hash{}, err
	}
	for stack := []open{first}; len(stack) > 0; {
		top := &stack[len(stack)-1]
		if len(top.inputs) > 0 {
			in := top.inputs[0]
			top.inputs = top.inputs[1:]
			waiting--
			if _, known := hashes[in]; known {
				continue
			}
			if begun[in] {
				return nix.Hash{}, cache.Refuse(cache.ErrInvalid, "%v needs itself", in)
			}
			next, err := begin(in)
			if err != nil {
				return nix.Hash{}, err
			}
			stack = append(stack, next)
			continue
		}
		path := top.path
		stack = stack[:len(stack)-1]
		d, err := s.derivation(ctx, c, path)
		if err != nil {
			return nix.Hash{}, err
		}
		if hashes[path], err = d.HashModulo(len(stack) == 0, hashes); err != nil {
			return nix.Hash{}, err
		}
	}
	return hashes[drv], nil
}

// derivation reads a derivation. cache.ErrNotFound if it is not there.
func (s *store) derivation(ctx context.Context, c *cache.Cache, drv nix.StorePath) (*nix.Derivation, error) {
	if !drv.IsDerivation() {
		return nil, cache.Refuse(cache.ErrInvalid, "%v is no derivation", drv)
	}
	info, err := c.Origin(ctx, drv.Hash())
	if err == nil && info.Path != drv {
		err = cache.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	const around = 256 // bytes of a NAR
	if info.NARSize > nix.MaxDerivationSize+around {
		return nil, cache.Refuse(cache.ErrTooLarge, "%v is too large for a derivation", drv)
	}
	if info.NARSize > smallDerivation && s.Room != nil {
		for range roomsDerivation * (1 + info.NARSize>>20) {
			done, ok := s.Room()
			if !ok {
				return nil, cache.Refuse(cache.ErrUnavailable, "there is no memory to read %v beside what others ask for; try again later", drv)
			}
			defer done()
		}
	}
	n, _, err := c.OpenNAR(ctx, cache.Archive{Path: drv.Hash(), NARHash: info.NARHash})
	if err != nil {
		return nil, err
	}
	defer n.Close()
	var buf bytes.Buffer
	buf.Grow(int(info.NARSize))
	if err := n.WriteRange(ctx, &buf, 0, n.Size()); err != nil {
		return nil, fmt.Errorf("read %v: %w", drv, err)
	}
	r := nar.NewReader(&buf)
	h, err := r.Next()
	if err != nil || h.Type != nar.TypeRegular {
		return nil, cache.Refuse(cache.ErrInvalid, "%v is no file", drv)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", drv, err)
	}
	d, err := nix.ParseDerivation(drv.Dir(), text)
	if err != nil {
		return nil, cache.Refuse(cache.ErrInvalid, "%v: %v", drv, err)
	}
	return d, nil
}

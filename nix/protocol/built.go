package protocol

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"firn/nix"
)

// built is something that does not have to be built, as it is there: a path, or outputs of a derivation.
type built struct {
	drv     nix.StorePath // zero: it is a path
	outputs map[string]nix.StorePath
}

func (b *built) isDerivation() bool { return !b.drv.IsZero() }

// isBuilt is an error unless something is there.
func isBuilt(ctx context.Context, store Store, text string) error {
	_, err := findBuilt(ctx, store, text)
	return err
}

// findBuilt does what a cache can do to build something, a path or DRV!OUTPUT,OUTPUT or DRV!*: nothing, which is enough for what is there.
func findBuilt(ctx context.Context, store Store, text string) (*built, error) {
	drvText, names, isDerivation := strings.Cut(text, "!")
	p, err := store.StoreDir().ParsePath(drvText)
	if err != nil {
		return nil, err
	}
	if !isDerivation {
		return &built{}, areThere(ctx, store, p)
	}
	outputs, err := store.Outputs(ctx, p)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w, and does not have the derivation; what that was built to can be copied by its path", errBuild(p.String()))
	}
	if err != nil {
		return nil, err
	}
	b := &built{drv: p, outputs: outputs}
	if names != "*" {
		b.outputs = make(map[string]nix.StorePath)
		for name := range strings.SplitSeq(names, ",") {
			path, ok := outputs[name]
			if !ok {
				return nil, fmt.Errorf("%v has no output %q", p, name)
			}
			b.outputs[name] = path
		}
	}
	var paths []nix.StorePath
	for _, path := range b.outputs {
		if path.IsZero() {
			return nil, fmt.Errorf("%w; what it was built to was not pushed", errBuild(p.String()))
		}
		paths = append(paths, path)
	}
	if err := areThere(ctx, store, nix.SortPaths(paths)...); err != nil {
		return nil, fmt.Errorf("%w; its output %w", errBuild(p.String()), err)
	}
	return b, nil
}

// areThere is ErrNotFound for the first path that is not there.
func areThere(ctx context.Context, store Store, paths ...nix.StorePath) error {
	valid, err := store.ValidPaths(ctx, paths)
	if err != nil {
		return err
	}
	valid = nix.SortPaths(valid) // there may be many
	for _, p := range paths {
		if _, ok := slices.BinarySearchFunc(valid, p, nix.StorePath.Compare); !ok {
			return about(p, ErrNotFound)
		}
	}
	return nil
}

// realisations are the outputs as a result of building has them.
func (b *built) realisations(ctx context.Context, store Store) (all []*nix.Realisation, err error) {
	hash, err := store.DerivationHash(ctx, b.drv)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(b.outputs)) {
		all = append(all, &nix.Realisation{ID: nix.RealisationID{DrvHash: hash, Output: name}, OutPath: b.outputs[name]})
	}
	return all, nil
}

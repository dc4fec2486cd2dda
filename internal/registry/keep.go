package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/nix"
)

// Tick has the local store keep what pushed paths refer to, and nothing else, and has each cache
// look for references that are missing.
func (d *Registry) Tick(ctx context.Context) error {
	var errs []error
	if keeper, ok := d.local.(cache.Keeper); ok {
		if err := keeper.KeepOnly(ctx, d.needed); err != nil {
			errs = append(errs, err)
		}
	}
	for _, m := range d.current(ctx, true).all {
		if err := m.cache.CheckReferences(ctx); err != nil {
			errs = append(errs, fmt.Errorf("check references in cache %s: %w", m.record.Name, err))
		}
	}
	return errors.Join(errs...)
}

// needed returns what the local store is to keep: what pushed paths refer to and was not pushed,
// and what was pushed and is damaged.
func (d *Registry) needed(ctx context.Context) ([]nix.StorePath, error) {
	records, err := d.catalog.AllCaches(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[nix.StorePath]bool)
	for _, r := range records {
		if !slices.Contains(r.Sources, catalog.SourceLocal) || d.local.StoreDir() != r.StoreDir {
			continue
		}
		view := d.depot.For(r)
		for ref, err := range view.DanglingReferences(ctx) {
			if err != nil {
				return nil, err
			}
			all[ref.To] = true
		}
		for path, err := range view.WithheldPaths(ctx) {
			if err != nil {
				return nil, err
			}
			all[path] = true
		}
	}
	paths := make([]nix.StorePath, 0, len(all))
	for path := range all {
		paths = append(paths, path)
	}
	return paths, nil
}

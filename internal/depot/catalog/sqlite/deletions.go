package sqlite

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"firn/internal/depot/catalog"
	"firn/nix"
)

// DeletePaths removes paths.
func (c *Catalog) DeletePaths(ctx context.Context, d *catalog.Deletion) (deleted *catalog.Deleted, err error) {
	err = c.write(ctx, func(x *change) error {
		var err error
		deleted, err = c.deletePaths(x, d)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("delete paths: %w", err)
	}
	return deleted, nil
}

func (c *Catalog) deletePaths(x *change, d *catalog.Deletion) (*catalog.Deleted, error) {
	var storeDir string
	var partial bool
	ok, err := x.get("SELECT store_dir, allow_missing FROM caches WHERE id = ? AND name IS NOT NULL", []any{int64(d.Cache)}, &storeDir, &partial)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%w: the cache", catalog.ErrNotFound)
	}
	dir := nix.StoreDir(storeDir)
	more, err := d.Refer(func(each func(nix.StorePath, []nix.StorePath) error) error { return x.references(d.Cache, dir, each) })
	if err != nil {
		return nil, err
	}
	all := slices.Clone(d.Paths)
	for _, path := range more {
		all = append(all, path.Hash())
	}
	slices.SortFunc(all, func(a, b nix.PathHash) int { return bytes.Compare(a[:], b[:]) })
	var gone catalog.Deleted
	leaving := make(map[int64]int) // how many of them have a NAR
	for _, hash := range slices.Compact(all) {
		var name string
		var nar int64
		ok, err := x.get("SELECT name, nar FROM paths WHERE cache = ? AND hash = ?", []any{int64(d.Cache), hash[:]}, &name, &nar)
		if err == nil && !ok {
			err = fmt.Errorf("%w: %s", catalog.ErrNotFound, hash)
		}
		if err != nil {
			return nil, err
		}
		path, err := dir.ParseBase(hash.String() + "-" + name)
		if err != nil {
			return nil, err
		}
		gone.Paths = append(gone.Paths, path)
		leaving[nar]++
		if d.DryRun {
			continue
		}
		if err := c.deletePath(x, d.Cache, hash); err != nil {
			return nil, err
		}
		if d.Referrers == catalog.KeepReferrers || partial {
			continue
		}
		if err := x.exec("UPDATE awaited SET deleted = ? WHERE cache = ? AND hash = ?", c.seconds(), int64(d.Cache), hash[:]); err != nil {
			return nil, err
		}
	}
	for nar, count := range leaving {
		if !d.DryRun {
			count = 0
		}
		var size int64
		if _, err := x.get("SELECT file_size FROM nars WHERE id = ?1 AND (SELECT count(*) FROM paths WHERE nar = ?1) = ?2", []any{nar, count}, &size); err != nil {
			return nil, err
		}
		gone.FileBytes += size
	}
	return &gone, nil
}

// references calls each with every path of a cache and what that refers to, in the order in which they were published.
func (x *change) references(cache catalog.CacheID, dir nix.StoreDir, each func(nix.StorePath, []nix.StorePath) error) error {
	s, err := x.statement("SELECT hash, name, refs FROM paths WHERE +cache = ? ORDER BY rowid" /* not by an index: that has another order */)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), int64(cache))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var hash []byte
		var name, text string
		if err := rows.Scan(&hash, &name, &text); err != nil {
			return err
		}
		if len(hash) != len(nix.PathHash{}) {
			return fmt.Errorf("%w: a hash has not its length", catalog.ErrUnavailable)
		}
		path, err := dir.ParseBase(nix.PathHash(hash).String() + "-" + name)
		if err != nil {
			return err
		}
		var refs []nix.StorePath
		for base := range strings.FieldsSeq(text) {
			ref, err := dir.ParseBase(base)
			if err != nil {
				return err
			}
			refs = append(refs, ref)
		}
		if err := each(path, refs); err != nil {
			return err
		}
	}
	return rows.Err()
}

package sqlite

import (
	"context"
	"fmt"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
)

// leavingColumns are what scanLeaving scans.
const leavingColumns = `store_dir, paths.hash, paths.name, deriver, nar, file_size, (SELECT count(*) FROM paths AS sharing WHERE sharing.nar = paths.nar)`

func scanLeaving(scan func(...any) error) (l index.Leaving, err error) {
	var dir nix.StoreDir
	var hash []byte
	var name, deriver string
	if err := scan(&dir, &hash, &name, &deriver, &l.NAR, &l.FileSize, &l.Paths); err != nil {
		return l, err
	}
	if l.Path, err = pathOf(dir, hash, name); err == nil && deriver != "" {
		l.Deriver, err = dir.ParseBase(deriver)
	}
	return l, err
}

// Leaving returns those of the given paths that are published.
func (c *Catalog) Leaving(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash) (there []index.Leaving, err error) {
	err = atMost(len(hashes))
	var list string
	if err == nil {
		list, err = hashList(hashes)
	}
	if err == nil {
		err = c.rows(ctx, func(scan func(...any) error) error {
			l, err := scanLeaving(scan)
			there = append(there, l)
			return err
		}, "SELECT "+leavingColumns+` FROM json_each(?2) CROSS JOIN paths ON paths.cache = ?1 AND paths.hash = unhex(value)
			CROSS JOIN nars ON nars.id = nar CROSS JOIN caches ON caches.id = ?1`, int64(cache), list)
	}
	if err != nil {
		return nil, fmt.Errorf("look up paths: %w", err)
	}
	return there, nil
}

// DeletePaths removes paths.
func (c *Catalog) DeletePaths(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash, may func(index.Reference) bool) (gone []index.Leaving, err error) {
	if err := atMost(len(hashes)); err != nil {
		return nil, err
	}
	err = c.write(ctx, func(x *change) error {
		gone = nil
		refused := false
		for i := range hashes {
			if err := x.rows(func(scan func(...any) error) error {
				var r index.Reference
				if err := scanReference(scan, &r); err != nil {
					return err
				}
				refused = !may(r) || refused
				return nil
			}, `SELECT store_dir, paths.hash, paths.name, referenced.hash, referenced.name
				FROM referenced CROSS JOIN path_refs ON ref = referenced.id CROSS JOIN paths ON paths.id = path CROSS JOIN caches ON caches.id = ?1
				WHERE referenced.cache = ?1 AND referenced.hash = ?2 AND paths.hash <> referenced.hash`, int64(cache), hashes[i][:]); err != nil {
				return err
			}
		}
		if refused {
			return fmt.Errorf("%w: other paths refer to them", catalog.ErrChanged)
		}
		for _, hash := range hashes {
			l, err := c.deletePath(x, cache, hash)
			if err != nil {
				return err
			}
			if l == nil {
				continue // another deletion was faster
			}
			gone = append(gone, *l)
			if err := x.exec("DELETE FROM files WHERE cache = ? AND path = ?", int64(cache), hash.String()); err != nil {
				return err
			}
		}
		for i := range gone {
			if _, err := x.get("SELECT count(*) FROM paths WHERE nar = ?", []any{int64(gone[i].NAR)}, &gone[i].Paths); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return gone, nil
}

// deletePath removes a path, with all that says something of it, and returns what was removed, if
// there was one.
func (c *Catalog) deletePath(x *change, cache catalog.CacheID, hash nix.PathHash) (*index.Leaving, error) {
	there := false
	gone, err := scanLeaving(func(to ...any) (err error) {
		there, err = x.get("SELECT "+leavingColumns+" FROM paths JOIN nars ON nars.id = nar JOIN caches ON caches.id = paths.cache WHERE paths.cache = ? AND paths.hash = ?",
			[]any{int64(cache), hash[:]}, to...)
		return err
	})
	if !there {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	if err := x.exec("DELETE FROM paths WHERE cache = ? AND hash = ?", int64(cache), hash[:]); err != nil {
		return nil, err
	}
	if err := x.exec("UPDATE caches SET deletions = deletions + 1 WHERE id = ?", int64(cache)); err != nil {
		return nil, err
	}
	return &gone, x.exec("UPDATE uploads SET made = ?1 WHERE nar = ?2 AND +cache = ?3 AND NOT EXISTS (SELECT 1 FROM paths WHERE nar = ?2 AND cache = ?3)",
		c.seconds(), int64(gone.NAR), int64(cache))
}

// DeleteLogs removes logs of derivations that have built nothing that is there.
func (c *Catalog) DeleteLogs(ctx context.Context, cache catalog.CacheID, drvs []nix.StorePath) error {
	if err := atMost(len(drvs)); err != nil {
		return err
	}
	err := c.write(ctx, func(x *change) error {
		for _, drv := range drvs {
			if err := x.exec(`DELETE FROM files WHERE cache = ?1 AND key = ?2
				AND NOT EXISTS (SELECT 1 FROM paths WHERE paths.cache = ?1 AND substr(deriver, 1, 32) = ?3 AND deriver <> '')`,
				int64(cache), index.LogKey(drv), drv.Hash().String()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete logs: %w", err)
	}
	return nil
}

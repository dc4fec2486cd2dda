package sqlite

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
)

// isReferred is whether a path refers to another one.
const isReferred = `EXISTS (SELECT 1 FROM referenced CROSS JOIN path_refs ON ref = referenced.id
	WHERE referenced.cache = ?1 AND referenced.hash = ?2 AND path <> coalesce((SELECT paths.id FROM paths WHERE paths.cache = ?1 AND paths.hash = ?2), 0))`

// Basis returns what Publish will compare.
func (c *Catalog) Basis(ctx context.Context, cache catalog.CacheID, hash nix.PathHash) (b index.Basis, err error) {
	err = c.queryRow(ctx, "SELECT "+nextPath+", deletions, "+isReferred+" FROM caches WHERE caches.id = ?1", int64(cache), hash[:]).
		scanAll(nil, &b.Paths, &b.Deletions, &b.Referred)
	if err != nil {
		return b, fmt.Errorf("look up references to %s: %w", hash, err)
	}
	return b, nil
}

// Referrers iterates over references to paths.
func (c *Catalog) Referrers(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash) iter.Seq2[index.Reference, error] {
	return func(yield func(index.Reference, error) bool) {
		if err := c.referrers(ctx, cache, hashes, func(r index.Reference) bool { return yield(r, nil) }); err != nil {
			yield(index.Reference{}, fmt.Errorf("look up referrers: %w", err))
		}
	}
}

func (c *Catalog) referrers(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash, yield func(index.Reference) bool) error {
	if err := atMost(len(hashes)); err != nil {
		return err
	}
	list, err := hashList(hashes)
	if err != nil {
		return err
	}
	// Which of them are referred to at all, with their IDs: a few bytes each, and most are not.
	var ids []int64
	if err := c.rows(ctx, func(scan func(...any) error) error {
		var id int64
		err := scan(&id)
		ids = append(ids, id)
		return err
	}, "SELECT referenced.id FROM json_each(?2) CROSS JOIN referenced ON cache = ?1 AND hash = unhex(value)", int64(cache), list); err != nil {
		return err
	}
	type row struct {
		path int64
		index.Reference
	}
	for _, id := range ids {
		for r, err := range pages(func(last int64, _ bool) (rows []row, err error) {
			err = c.rows(ctx, func(scan func(...any) error) error {
				var r row
				err := scanReference(scan, &r.Reference, &r.path)
				rows = append(rows, r)
				return err
			}, `SELECT store_dir, paths.hash, paths.name, referenced.hash, referenced.name, path
				FROM referenced CROSS JOIN path_refs ON ref = referenced.id CROSS JOIN paths ON paths.id = path CROSS JOIN caches ON caches.id = paths.cache
				WHERE referenced.id = ?1 AND path > ?2 AND paths.hash <> referenced.hash ORDER BY path LIMIT ?3`, id, last, page)
			return rows, err
		}, func(r row) int64 { return r.path }) {
			if err != nil {
				return err
			}
			if !yield(r.Reference) {
				return nil
			}
		}
	}
	return nil
}

// scanReference scans a store directory, the path and the other end of a reference, and what follows.
func scanReference(scan func(...any) error, r *index.Reference, more ...any) error {
	var dir nix.StoreDir
	var from, to []byte
	var fromName, toName string
	err := scan(append([]any{&dir, &from, &fromName, &to, &toName}, more...)...)
	if err == nil {
		r.From, err = pathOf(dir, from, fromName)
	}
	if err == nil {
		r.To, err = pathOf(dir, to, toName)
	}
	return err
}

func pathOf(dir nix.StoreDir, hash []byte, name string) (nix.StorePath, error) {
	if len(hash) != len(nix.PathHash{}) {
		return nix.StorePath{}, fmt.Errorf("%w: a hash has not its length", catalog.ErrUnavailable)
	}
	return dir.ParseBase(nix.PathHash(hash).String() + "-" + name)
}

// DanglingReferences iterates over references to what is not published.
func (c *Catalog) DanglingReferences(ctx context.Context, cache catalog.CacheID) iter.Seq2[index.Reference, error] {
	type row struct {
		index.Reference
		published bool
	}
	rows := pages(func(last nix.PathHash, first bool) (refs []row, err error) {
		after := last[:]
		if first {
			after = []byte{} // which even a hash of zeros comes after
		}
		err = c.rows(ctx, func(scan func(...any) error) error {
			var r row
			if err := scanReference(scan, &r.Reference, &r.published); err != nil {
				return err
			}
			refs = append(refs, r)
			return nil
		}, `SELECT store_dir, paths.hash, paths.name, dangling.hash, dangling.name, EXISTS (SELECT 1 FROM paths WHERE cache = ?1 AND hash = dangling.hash)
			FROM (SELECT id, hash, name FROM referenced WHERE cache = ?1 AND elsewhere AND hash > ?2 ORDER BY hash LIMIT ?3) AS dangling
				CROSS JOIN paths ON paths.id = (SELECT path FROM path_refs WHERE ref = dangling.id LIMIT 1)
				CROSS JOIN caches ON caches.id = ?1`, int64(cache), after, page)
		return refs, err
	}, func(r row) nix.PathHash { return r.To.Hash() })
	return func(yield func(index.Reference, error) bool) {
		var last nix.StorePath
		for r, err := range rows {
			if err == nil && (r.published || r.To.Hash() == last.Hash()) { // another name
				continue
			}
			last = r.To
			if !yield(r.Reference, err) {
				return
			}
		}
	}
}

// ReferencesOf returns what paths refer to.
func (c *Catalog) ReferencesOf(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash) iter.Seq2[index.Referrer, error] {
	return func(yield func(index.Referrer, error) bool) {
		more := true
		err := c.references(ctx, cache, hashes, func(r index.Referrer) error {
			if more = yield(r, nil); !more {
				return catalog.ErrUnavailable // which is not told
			}
			return nil
		})
		if err != nil && more {
			yield(index.Referrer{}, fmt.Errorf("look up references: %w", err))
		}
	}
}

func (c *Catalog) references(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash, each func(index.Referrer) error) error {
	if err := atMost(len(hashes)); err != nil || len(hashes) == 0 {
		return err
	}
	args := make([]any, 1+padded(len(hashes)))
	args[0] = int64(cache)
	for i := range hashes {
		args[1+i] = hashes[i][:]
	}
	return c.rows(ctx, func(scan func(...any) error) error {
		var hash []byte
		var name, dir string
		var text sql.NullString
		var r index.Referrer
		if err := scan(&hash, &name, &text, &r.Withheld, &dir); err != nil {
			return err
		}
		var err error
		if r.Path, err = pathOf(nix.StoreDir(dir), hash, name); err != nil {
			return err
		}
		if r.References, err = parseReferences(nix.StoreDir(dir), text.String); err != nil {
			return err
		}
		return each(r)
	}, `SELECT paths.hash, paths.name, `+referencesOf+`, damaged <> 0, store_dir FROM paths JOIN nars ON nars.id = nar JOIN caches ON caches.id = paths.cache
		WHERE paths.cache = ?1 AND paths.hash IN (`+marks(len(args)-1)+`)`, args...)
}

// parseReferences returns references in the order that Nix has them in, which is that of their last
// elements: the text has them in any.
func parseReferences(dir nix.StoreDir, text string) (refs []nix.StorePath, err error) {
	for field := range strings.FieldsSeq(text) {
		if len(field) <= 2*len(nix.PathHash{}) {
			return nil, fmt.Errorf("%w: a reference has no name", catalog.ErrUnavailable)
		}
		hash, err := hex.DecodeString(field[:2*len(nix.PathHash{})])
		if err != nil {
			return nil, err
		}
		ref, err := pathOf(dir, hash, field[2*len(hash):])
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, func(a, b nix.StorePath) int { return strings.Compare(a.Base(), b.Base()) })
	return refs, nil
}

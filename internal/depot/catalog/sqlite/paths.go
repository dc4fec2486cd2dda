package sqlite

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"firn/internal/depot/catalog"
	"firn/nix"
)

// maxSignatures bounds the signatures of one path.
const maxSignatures = 64

// pathColumns are what a path is made of, in the order of scanPath.
const pathColumns = `
	SELECT paths.hash, paths.name, nar, refs, deriver, sigs, ca, fields, registered, nars.hash, nars.size, file_size, tag, store_dir
	FROM paths JOIN nars ON nars.id = nar JOIN caches ON caches.id = cache `

func scanPath(scan func(...any) error) (*catalog.Path, error) {
	p := &catalog.Path{}
	var hash, narHash []byte
	var name, refs, deriver, sigs, ca, fields, storeDir string
	var registered int64
	if err := scan(&hash, &name, &p.NAR, &refs, &deriver, &sigs, &ca, &fields, &registered, &narHash, &p.Info.NARSize, &p.FileSize, &p.Tag, &storeDir); err != nil {
		return nil, err
	}
	if len(hash) != len(nix.PathHash{}) || len(narHash) != len(catalog.Sum{}) {
		return nil, fmt.Errorf("%w: a hash has not its length", catalog.ErrUnavailable)
	}
	dir := nix.StoreDir(storeDir)
	var err error
	if p.Info.Path, err = dir.ParseBase(nix.PathHash(hash).String() + "-" + name); err != nil {
		return nil, err
	}
	for ref := range strings.FieldsSeq(refs) {
		path, err := dir.ParseBase(ref)
		if err != nil {
			return nil, err
		}
		p.Info.References = append(p.Info.References, path)
	}
	if deriver != "" {
		if p.Info.Deriver, err = dir.ParseBase(deriver); err != nil {
			return nil, err
		}
	}
	if p.Info.Signatures, err = parseSignatures(sigs); err != nil {
		return nil, err
	}
	if ca != "" {
		if p.Info.CA, err = nix.ParseContentAddress(ca); err != nil {
			return nil, err
		}
	}
	if p.Info.Extra, err = nix.ParseFields(fields); err != nil {
		return nil, err
	}
	p.Info.NARHash = nix.SHA256Sum([32]byte(narHash))
	p.Info.RegistrationTime = time.Unix(registered, 0).UTC()
	return p, nil
}

func parseSignatures(text string) (sigs []nix.Signature, err error) {
	for field := range strings.FieldsSeq(text) {
		sig, err := nix.ParseSignature(field)
		if err != nil {
			return nil, err
		}
		sigs = append(sigs, sig)
	}
	return sigs, nil
}

func joinSignatures(sigs []nix.Signature) string {
	texts := make([]string, len(sigs))
	for i, s := range sigs {
		texts[i] = s.String()
	}
	return strings.Join(texts, " ")
}

// nextPath is the row of a path that is published: after all that there are, and were.
const nextPath = "(SELECT 1 + max(past, " + lastPath + ") FROM past_paths)"

// lastPath is the last row of all caches. Those that are published later come after it.
const lastPath = "coalesce((SELECT max(rowid) FROM paths), 0)"

// Publish makes a path visible.
func (c *Catalog) Publish(ctx context.Context, cache catalog.CacheID, p *catalog.Path, debug []catalog.DebugInfo) (there *catalog.Path, added bool, err error) {
	err = c.write(ctx, func(x *change) error {
		there, added, err = nil, false, nil
		return c.publish(x, cache, p, debug, &there, &added)
	})
	if err != nil {
		return nil, false, fmt.Errorf("publish %s: %w", p.Info.Path, err)
	}
	return there, added, nil
}

func (c *Catalog) publish(x *change, cache catalog.CacheID, p *catalog.Path, debug []catalog.DebugInfo, there **catalog.Path, added *bool) error {
	if err := hasCache(x, cache); err != nil {
		return err
	}
	hash := p.Info.Path.Hash()
	old, err := getPath(x, cache, hash)
	if err != nil {
		return err
	}
	if old != nil && old.NAR != p.NAR {
		withheld, err := x.get("SELECT id FROM nars WHERE id = ? AND damaged", []any{int64(old.NAR)}, new(int64))
		if err != nil {
			return err
		}
		if !withheld {
			*there = old
			return nil
		}
		// Nobody is served the old one, and whoever pushes this one is told that it is there.
		if err := c.deletePath(x, cache, hash); err != nil {
			return err
		}
	} else if old != nil {
		*there = old
		return addSignatures(x, cache, old, p.Info.Signatures)
	}
	if len(p.Info.Signatures) > maxSignatures {
		return errTooManySignatures
	}
	ok, err := x.get("SELECT id FROM nars WHERE id = ? AND NOT damaged", []any{int64(p.NAR)}, new(int64))
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: the NAR", catalog.ErrGone)
	}
	refs := make([]string, len(p.Info.References))
	for i, ref := range p.Info.References {
		refs[i] = ref.Base()
	}
	var deriver, ca string
	if !p.Info.Deriver.IsZero() {
		deriver = p.Info.Deriver.Base()
	}
	if !p.Info.CA.IsZero() {
		ca = p.Info.CA.String()
	}
	registered := p.Info.RegistrationTime
	if registered.IsZero() {
		registered = c.now()
	}
	if err := x.exec("INSERT INTO paths (rowid, cache, hash, name, nar, refs, deriver, sigs, ca, fields, registered) VALUES ("+nextPath+", ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", int64(cache), hash[:], p.Info.Path.Name(), int64(p.NAR),
		strings.Join(refs, " "), deriver, joinSignatures(p.Info.Signatures), ca, string(nix.AppendFields(nil, p.Info.Extra)), registered.Unix()); err != nil {
		return err
	}
	if err := x.exec("UPDATE uploads SET made = NULL WHERE nar = ? AND +cache = ?" /* by the NAR: a cache has a million */, int64(p.NAR), int64(cache)); err != nil {
		return err
	}
	for _, ref := range p.Info.References {
		if ref == p.Info.Path {
			continue
		}
		to := ref.Hash()
		var deleted bool // just now
		if _, err := x.get(`INSERT INTO awaited (cache, hash) SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM paths WHERE cache = ?1 AND hash = ?2)
			ON CONFLICT DO UPDATE SET hash = excluded.hash RETURNING coalesce(deleted, 0) > ?3`,
			[]any{int64(cache), to[:], c.notLongSince()}, &deleted); err != nil {
			return err
		}
		if deleted {
			return fmt.Errorf("%w: %s", catalog.ErrDeleted, ref)
		}
	}
	for _, ref := range p.Elsewhere {
		to := ref.Hash()
		if err := x.exec("INSERT INTO dangling_refs (cache, ref, hash, name) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
			int64(cache), to[:], hash[:], ref.Name()); err != nil {
			return err
		}
	}
	// It stays among those that were awaited: older paths may refer to it.
	if err := x.exec("UPDATE awaited SET deleted = NULL WHERE cache = ? AND hash = ?", int64(cache), hash[:]); err != nil {
		return err
	}
	for _, d := range debug {
		id, err := hex.DecodeString(d.BuildID)
		if err != nil {
			return fmt.Errorf("build ID %q: %w", d.BuildID, err)
		}
		if err := x.exec("INSERT INTO debug_info (build_id, cache, hash, member) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", id, int64(cache), hash[:], d.Member); err != nil {
			return err
		}
	}
	*added = true
	*there, err = getPath(x, cache, hash)
	return err
}

var errTooManySignatures = fmt.Errorf("%w: more than %d signatures", catalog.ErrConflict, maxSignatures)

// getPath returns a path as it is in the transaction, withheld or not; nil if there is none.
func getPath(x *change, cache catalog.CacheID, hash nix.PathHash) (*catalog.Path, error) {
	there := true
	p, err := scanPath(func(to ...any) (err error) {
		there, err = x.get(pathColumns+"WHERE cache = ? AND paths.hash = ?", []any{int64(cache), hash[:]}, to...)
		if err == nil && !there {
			err = catalog.ErrNotFound
		}
		return err
	})
	if !there {
		return nil, nil
	}
	return p, err
}

// addSignatures adds to p, and keeps, the signatures that it does not have.
func addSignatures(x *change, cache catalog.CacheID, p *catalog.Path, sigs []nix.Signature) error {
	all := slices.Clone(p.Info.Signatures)
	for _, s := range sigs {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	if len(all) == len(p.Info.Signatures) {
		return nil
	}
	if len(all) > maxSignatures {
		return errTooManySignatures
	}
	p.Info.Signatures = all
	hash := p.Info.Path.Hash()
	return x.exec("UPDATE paths SET sigs = ? WHERE cache = ? AND hash = ?", joinSignatures(all), int64(cache), hash[:])
}

// Endorse keeps signatures of a path that another source has.
func (c *Catalog) Endorse(ctx context.Context, cache catalog.CacheID, hash nix.PathHash, nar catalog.Sum, sigs []nix.Signature) error {
	err := c.write(ctx, func(x *change) error {
		if err := hasCache(x, cache); err != nil {
			return err
		}
		var text string
		if _, err := x.get("SELECT sigs FROM signatures WHERE cache = ? AND hash = ? AND nar_hash = ?", []any{int64(cache), hash[:], nar[:]}, &text); err != nil {
			return err
		}
		all, err := parseSignatures(text)
		if err != nil {
			return err
		}
		had := len(all)
		for _, s := range sigs {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		switch {
		case len(all) == had:
			return nil
		case len(all) > maxSignatures:
			return errTooManySignatures
		}
		return x.exec("INSERT INTO signatures (cache, hash, nar_hash, sigs) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET nar_hash = excluded.nar_hash, sigs = excluded.sigs",
			int64(cache), hash[:], nar[:], joinSignatures(all))
	})
	if err != nil {
		return fmt.Errorf("sign %s: %w", hash, err)
	}
	return nil
}

// Endorsements returns what was pushed of a path.
func (c *Catalog) Endorsements(ctx context.Context, cache catalog.CacheID, hash nix.PathHash, nar catalog.Sum) ([]nix.Signature, []nix.Field, error) {
	var sigs, fields string
	err := c.queryRow(ctx, `
		SELECT coalesce((SELECT sigs FROM paths JOIN nars ON nars.id = nar WHERE cache = ?1 AND paths.hash = ?2 AND nars.hash = ?3), '') || ' ' ||
			coalesce((SELECT sigs FROM signatures WHERE cache = ?1 AND hash = ?2 AND nar_hash = ?3), ''),
			coalesce((SELECT fields FROM paths JOIN nars ON nars.id = nar WHERE cache = ?1 AND paths.hash = ?2 AND nars.hash = ?3), '')`,
		int64(cache), hash[:], nar[:]).scanAll(catalog.ErrNotFound, &sigs, &fields)
	if err != nil {
		return nil, nil, fmt.Errorf("look up signatures of %s: %w", hash, err)
	}
	all, err := parseSignatures(sigs)
	if err != nil {
		return nil, nil, fmt.Errorf("look up signatures of %s: %w", hash, err)
	}
	extra, err := nix.ParseFields(fields)
	if err != nil {
		return nil, nil, fmt.Errorf("look up fields of %s: %w", hash, err)
	}
	return all, extra, nil
}

// Awaited reports whether a path may be referred to.
func (c *Catalog) Awaited(ctx context.Context, cache catalog.CacheID, hash nix.PathHash) (bool, error) {
	var awaited bool
	err := c.queryRow(ctx, "SELECT EXISTS (SELECT 1 FROM awaited WHERE cache = ?1 AND hash = ?2) OR EXISTS (SELECT 1 FROM paths WHERE cache = ?1 AND hash = ?2)",
		int64(cache), hash[:]).scan(&awaited, nil)
	if err != nil {
		return false, fmt.Errorf("look up references to %s: %w", hash, err)
	}
	return awaited, nil
}

// danglingQuery are a page of dangling references of a cache after one, each once, and whether they
// were published since. From each, the next is found by the primary key; a CROSS JOIN keeps SQLite
// from another order.
const danglingQuery = `
	WITH RECURSIVE next (ref) AS (
		SELECT (SELECT min(ref) FROM dangling_refs WHERE cache = ?1 AND ref > ?2)
		UNION ALL
		SELECT (SELECT min(ref) FROM dangling_refs WHERE cache = ?1 AND ref > next.ref) FROM next WHERE next.ref IS NOT NULL
		LIMIT ?3
	)
	SELECT store_dir, next.ref, d.name, d.hash, paths.name, EXISTS (SELECT 1 FROM paths WHERE cache = ?1 AND hash = next.ref)
	FROM next
		CROSS JOIN dangling_refs AS d ON d.cache = ?1 AND d.ref = next.ref
			AND d.hash = (SELECT min(hash) FROM dangling_refs WHERE cache = ?1 AND ref = next.ref)
		CROSS JOIN paths ON paths.cache = ?1 AND paths.hash = d.hash
		CROSS JOIN caches ON caches.id = ?1`

// DanglingReferences iterates over references to what is not published.
func (c *Catalog) DanglingReferences(ctx context.Context, cache catalog.CacheID) iter.Seq2[*catalog.DanglingReference, error] {
	type row struct {
		catalog.DanglingReference
		published bool
	}
	rows := pages(func(last nix.PathHash, first bool) (refs []row, err error) {
		after := last[:]
		if first {
			after = []byte{}
		}
		err = c.rows(ctx, func(scan func(...any) error) error {
			var r row
			var dir nix.StoreDir
			var name, byName string
			var hash, by []byte
			err := scan(&dir, &hash, &name, &by, &byName, &r.published)
			if err == nil {
				r.Path, err = pathOf(dir, hash, name)
			}
			if err == nil {
				r.By, err = pathOf(dir, by, byName)
			}
			refs = append(refs, r)
			return err
		}, danglingQuery, int64(cache), after, page)
		return refs, err
	}, func(r row) nix.PathHash { return r.Path.Hash() })
	return func(yield func(*catalog.DanglingReference, error) bool) {
		for r, err := range rows {
			if err == nil && r.published {
				continue
			}
			if !yield(&r.DanglingReference, err) {
				return
			}
		}
	}
}

// WithheldPaths iterates over paths that are withheld.
func (c *Catalog) WithheldPaths(ctx context.Context, cache catalog.CacheID) iter.Seq2[nix.StorePath, error] {
	type row struct {
		nar  int64
		path nix.StorePath // zero: no path of the cache has the NAR
	}
	rows := pages(func(last int64, _ bool) (paths []row, err error) {
		err = c.rows(ctx, func(scan func(...any) error) error {
			var r row
			var dir nix.StoreDir
			var name sql.NullString
			var hash []byte
			err := scan(&r.nar, &dir, &hash, &name)
			if err == nil && name.Valid {
				r.path, err = pathOf(dir, hash, name.String)
			}
			paths = append(paths, r)
			return err
		}, `SELECT withheld.id, store_dir, paths.hash, paths.name
			FROM (SELECT id FROM nars WHERE damaged AND id > ?2 ORDER BY id LIMIT ?3) AS withheld JOIN caches ON caches.id = ?1
				LEFT JOIN paths ON paths.nar = withheld.id AND paths.cache = ?1`, int64(cache), last, page)
		return paths, err
	}, func(r row) int64 { return r.nar })
	return func(yield func(nix.StorePath, error) bool) {
		for r, err := range rows {
			if err == nil && r.path.IsZero() {
				continue
			}
			if !yield(r.path, err) {
				return
			}
		}
	}
}

// AddSignatures adds signatures to a path.
func (c *Catalog) AddSignatures(ctx context.Context, cache catalog.CacheID, hash nix.PathHash, sigs []nix.Signature) error {
	err := c.write(ctx, func(x *change) error {
		p, err := getPath(x, cache, hash)
		if err == nil && p == nil {
			err = catalog.ErrNotFound
		}
		if err != nil {
			return err
		}
		return addSignatures(x, cache, p, sigs)
	})
	if err != nil {
		return fmt.Errorf("sign %s: %w", hash, err)
	}
	return nil
}

// Path returns a published path.
func (c *Catalog) Path(ctx context.Context, cache catalog.CacheID, hash nix.PathHash) (*catalog.Path, error) {
	r := c.queryRow(ctx, pathColumns+"WHERE cache = ? AND paths.hash = ? AND NOT damaged", int64(cache), hash[:])
	p, err := scanPath(func(to ...any) error { return r.scanAll(catalog.ErrNotFound, to...) })
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", hash, unavailable(err))
	}
	return p, nil
}

// Withhold marks a NAR as damaged or whole.
func (c *Catalog) Withhold(ctx context.Context, nar catalog.NARID, damaged bool) error {
	err := c.write(ctx, func(x *change) error {
		return found(x.count("UPDATE nars SET damaged = ? WHERE id = ?", damaged, int64(nar)))
	})
	if err != nil {
		return fmt.Errorf("withhold NAR: %w", err)
	}
	return nil
}

// AllPaths iterates over paths.
func (c *Catalog) AllPaths(ctx context.Context, cache catalog.CacheID, after nix.PathHash, damaged bool) iter.Seq2[*catalog.Path, error] {
	return pages(func(last nix.PathHash, first bool) (paths []*catalog.Path, err error) {
		if first {
			last = after
		}
		from := last[:]
		if first && last == (nix.PathHash{}) {
			from = []byte{} // which even a hash of zeros comes after
		}
		many := 0
		err = c.rows(ctx, func(scan func(...any) error) error {
			p, err := scanPath(scan)
			if err != nil {
				return err
			}
			paths = append(paths, p)
			if many += len(p.Info.References); many > pageReferences {
				return errPageFull
			}
			return nil
		}, pathColumns+"WHERE cache = ? AND paths.hash > ? AND damaged = ? ORDER BY paths.hash LIMIT ?", int64(cache), from, damaged, page)
		return paths, err
	}, func(p *catalog.Path) nix.PathHash { return p.Info.Path.Hash() })
}

// DeletePath removes a path.
func (c *Catalog) DeletePath(ctx context.Context, cache catalog.CacheID, hash nix.PathHash) error {
	if err := c.write(ctx, func(x *change) error { return c.deletePath(x, cache, hash) }); err != nil {
		return fmt.Errorf("delete %s: %w", hash, err)
	}
	return nil
}

func (c *Catalog) deletePath(x *change, cache catalog.CacheID, hash nix.PathHash) error {
	var nar int64
	ok, err := x.get("DELETE FROM paths WHERE cache = ? AND hash = ? RETURNING nar", []any{int64(cache), hash[:]}, &nar)
	if err == nil && !ok {
		err = catalog.ErrNotFound
	}
	if err != nil {
		return err
	}
	return x.exec("UPDATE uploads SET made = ?1 WHERE nar = ?2 AND +cache = ?3 AND NOT EXISTS (SELECT 1 FROM paths WHERE nar = ?2 AND cache = ?3)",
		c.seconds(), nar, int64(cache))
}

// DebugInfo returns the debug info of a build ID.
func (c *Catalog) DebugInfo(ctx context.Context, cache catalog.CacheID, buildID string) (*catalog.DebugInfo, error) {
	id, err := hex.DecodeString(buildID)
	if err != nil {
		return nil, fmt.Errorf("look up debug info of %q: %w", buildID, catalog.ErrNotFound)
	}
	d := &catalog.DebugInfo{BuildID: buildID}
	var hash []byte
	err = c.queryRow(ctx, `
		SELECT debug_info.hash, member FROM debug_info JOIN paths USING (cache, hash) JOIN nars ON nars.id = nar
		WHERE cache = ? AND build_id = ? AND NOT damaged LIMIT 1`, int64(cache), id).scanAll(catalog.ErrNotFound, &hash, &d.Member)
	if err != nil {
		return nil, fmt.Errorf("look up debug info: %w", err)
	}
	copy(d.Path[:], hash)
	return d, nil
}

// Count returns what is kept.
func (c *Catalog) Count(ctx context.Context, cache *catalog.CacheID) (catalog.Counts, error) {
	var n catalog.Counts
	var err error
	if cache != nil {
		// By the index of NARs, of all caches: so nars is read from its beginning to its end, and paths not at all.
		err = c.queryRow(ctx, `
			SELECT 1, coalesce(sum(n), 0), count(*), coalesce(sum(n * size), 0), coalesce(sum(n * file_size), 0), coalesce(sum(damaged), 0)
			FROM (SELECT nar, count(*) AS n FROM paths INDEXED BY paths_by_nar WHERE cache = ? GROUP BY nar) JOIN nars ON nars.id = nar`, int64(*cache)).
			scanAll(nil, &n.Caches, &n.Paths, &n.NARs, &n.NARBytes, &n.FileBytes, &n.Damaged)
	} else {
		err = c.queryRow(ctx, `
			SELECT (SELECT count(*) FROM caches WHERE name IS NOT NULL), (SELECT count(*) FROM paths), (SELECT count(*) FROM chunks),
				(SELECT count(*) FROM packs), (SELECT coalesce(sum(size), 0) FROM packs),
				(SELECT coalesce(sum(size), 0) FROM loose_packs JOIN packs ON packs.id = loose_packs.pack) +
				(SELECT coalesce(sum(dead), 0) FROM thin_packs WHERE NOT EXISTS (SELECT 1 FROM loose_packs WHERE loose_packs.pack = thin_packs.pack)),
				count(*), coalesce(sum(size), 0), coalesce(sum(file_size), 0), coalesce(sum(damaged), 0) FROM nars`).
			scanAll(nil, &n.Caches, &n.Paths, &n.Chunks, &n.Packs, &n.PackBytes, &n.Reclaimable, &n.NARs, &n.NARBytes, &n.FileBytes, &n.Damaged)
	}
	if err != nil {
		return catalog.Counts{}, fmt.Errorf("count: %w", err)
	}
	return n, nil
}

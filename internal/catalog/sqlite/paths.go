package sqlite

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"firn/internal/catalog"
	"firn/nix"
)

// maxSignatures bounds the signatures of one path.
const maxSignatures = 64

// pathColumns are what a path is made of, in the order of scanPath.
const pathColumns = `
	SELECT paths.hash, paths.name, nar, refs, deriver, sigs, ca, fields, registered, published, publisher, nars.hash, nars.size, file_size, tag, store_dir
	FROM paths JOIN nars ON nars.id = nar JOIN caches ON caches.id = cache `

func scanPath(scan func(...any) error) (*catalog.Path, error) {
	p := &catalog.Path{}
	var hash, narHash []byte
	var name, refs, deriver, sigs, ca, fields, storeDir string
	var registered, published int64
	if err := scan(&hash, &name, &p.NAR, &refs, &deriver, &sigs, &ca, &fields, &registered, &published, &p.By, &narHash, &p.Info.NARSize, &p.FileSize, &p.Tag, &storeDir); err != nil {
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
	if p.Info.References, err = parseReferences(dir, refs); err != nil {
		return nil, err
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
	p.Published = time.Unix(published, 0).UTC()
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
func (c *Catalog) Publish(ctx context.Context, cache catalog.CacheID, p *catalog.Path, debug []catalog.DebugInfo, b catalog.Basis) (there *catalog.Path, added bool, err error) {
	err = c.write(ctx, func(x *change) error {
		there, added, err = nil, false, nil
		return c.publish(x, cache, p, debug, b, &there, &added)
	})
	if err != nil {
		return nil, false, fmt.Errorf("publish %s: %w", p.Info.Path, err)
	}
	return there, added, nil
}

func (c *Catalog) publish(x *change, cache catalog.CacheID, p *catalog.Path, debug []catalog.DebugInfo, b catalog.Basis, there **catalog.Path, added *bool) error {
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
	if err := unvisited(x, cache, p.Info.Path, b); err != nil {
		return err
	}
	absent, err := missing(x, cache, b, slices.DeleteFunc(slices.Clone(p.Info.References), func(ref nix.StorePath) bool { return ref == p.Info.Path })...)
	if err != nil {
		return err
	}
	if old != nil { // which is withheld, and makes way
		if err := c.deletePath(x, cache, hash); err != nil {
			return err
		}
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
	published := c.now()
	if registered.IsZero() {
		registered = published
	}
	if err := x.exec("INSERT INTO paths (rowid, cache, hash, name, nar, refs, deriver, sigs, ca, fields, registered, published, publisher) VALUES ("+nextPath+", ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", int64(cache), hash[:], p.Info.Path.Name(), int64(p.NAR),
		strings.Join(refs, " "), deriver, joinSignatures(p.Info.Signatures), ca, string(nix.AppendFields(nil, p.Info.Extra)), registered.Unix(), published.Unix(), p.By); err != nil {
		return err
	}
	if err := x.exec("UPDATE uploads SET made = NULL WHERE nar = ? AND +cache = ?" /* by the NAR: a cache has a million */, int64(p.NAR), int64(cache)); err != nil {
		return err
	}
	// They stay when they are published: older paths refer to them.
	if absent != "" {
		if err := x.exec("INSERT INTO awaited (cache, hash) SELECT ?, unhex(value) FROM json_each(?) WHERE true ON CONFLICT DO NOTHING", int64(cache), absent); err != nil {
			return err
		}
	}
	for _, ref := range p.Elsewhere {
		to := ref.Hash()
		if err := x.exec("INSERT INTO dangling_refs (cache, ref, hash, name) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
			int64(cache), to[:], hash[:], ref.Name()); err != nil {
			return err
		}
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

// maxSince bounds how many paths are looked at that were published since a basis.
// That takes some milliseconds, and all that is pushed waits for it.
const maxSince = 4096

// unvisited is ErrChanged if a path may close a cycle that was not seen.
func unvisited(x *change, cache catalog.CacheID, path nix.StorePath, b catalog.Basis) error {
	if b.Visited == nil {
		hash := path.Hash()
		awaited, err := x.get("SELECT 1 WHERE "+isAwaited, []any{int64(cache), hash[:]}, new(int64))
		if err == nil && awaited {
			return fmt.Errorf("%w: others refer to %s", catalog.ErrChanged, path)
		}
		return err
	}
	since := 0
	return x.rows(func(scan func(...any) error) error {
		var hash []byte
		if err := scan(&hash); err != nil {
			return err
		}
		if since++; since == maxSince || len(hash) == len(nix.PathHash{}) && b.Visited[nix.PathHash(hash)] {
			return fmt.Errorf("%w: %s may lead to what was published since", catalog.ErrChanged, path)
		}
		return nil
	}, "SELECT hash FROM paths WHERE rowid > ? AND +cache = ? ORDER BY rowid LIMIT ?", b.Paths, int64(cache), maxSince)
}

// missing returns the path hashes of those of the given references that are not published, as a
// list in JSON, or "" if all are. It is ErrChanged if one may have been deleted since it was looked
// for.
func missing(x *change, cache catalog.CacheID, b catalog.Basis, refs ...nix.StorePath) (absent string, err error) {
	hashes := make([]string, len(refs))
	for i, ref := range refs {
		hash := ref.Hash()
		hashes[i] = hex.EncodeToString(hash[:])
	}
	list, err := json.Marshal(hashes)
	if err != nil {
		return "", err
	}
	var deletions, n int64
	if _, err := x.get(`SELECT deletions, count(value), json_group_array(value) FROM caches
		LEFT JOIN json_each(?2) ON NOT EXISTS (SELECT 1 FROM paths WHERE cache = ?1 AND hash = unhex(value)) WHERE caches.id = ?1`,
		[]any{int64(cache), string(list)}, &deletions, &n, &absent); err != nil || n == 0 {
		return "", err
	}
	if !b.Partial && deletions != b.Deletions {
		return "", fmt.Errorf("%w: paths were deleted", catalog.ErrChanged)
	}
	return absent, nil
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

// isAwaited is whether a path may be referred to. All that is deleted is among those that are
// awaited.
const isAwaited = "(EXISTS (SELECT 1 FROM awaited WHERE cache = ?1 AND hash = ?2) OR EXISTS (SELECT 1 FROM paths WHERE cache = ?1 AND hash = ?2))"

// Basis returns what Publish will compare.
func (c *Catalog) Basis(ctx context.Context, cache catalog.CacheID, hash nix.PathHash) (b catalog.Basis, err error) {
	err = c.queryRow(ctx, "SELECT "+lastPath+", deletions, "+isAwaited+" FROM caches WHERE id = ?1", int64(cache), hash[:]).
		scanAll(nil, &b.Paths, &b.Deletions, &b.Dangling)
	if err != nil {
		return b, fmt.Errorf("look up references to %s: %w", hash, err)
	}
	return b, nil
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

// References returns what paths refer to.
func (c *Catalog) References(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash) iter.Seq2[catalog.Referrer, error] {
	return func(yield func(catalog.Referrer, error) bool) {
		more := true
		err := c.references(ctx, cache, hashes, func(r catalog.Referrer) error {
			if more = yield(r, nil); !more {
				return catalog.ErrUnavailable // which is not told
			}
			return nil
		})
		if err != nil && more {
			yield(catalog.Referrer{}, fmt.Errorf("look up references: %w", err))
		}
	}
}

func (c *Catalog) references(ctx context.Context, cache catalog.CacheID, hashes []nix.PathHash, each func(catalog.Referrer) error) error {
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
		var name, text, dir string
		var r catalog.Referrer
		if err := scan(&hash, &name, &text, &r.Withheld, &dir); err != nil {
			return err
		}
		var err error
		if r.Path, err = pathOf(nix.StoreDir(dir), hash, name); err != nil {
			return err
		}
		if r.References, err = parseReferences(nix.StoreDir(dir), text); err != nil {
			return err
		}
		return each(r)
	}, `SELECT paths.hash, paths.name, refs, damaged <> 0, store_dir FROM paths JOIN nars ON nars.id = nar JOIN caches ON caches.id = cache
		WHERE cache = ?1 AND paths.hash IN (`+marks(len(args)-1)+`)`, args...)
}

func parseReferences(dir nix.StoreDir, text string) (refs []nix.StorePath, err error) {
	for base := range strings.FieldsSeq(text) {
		ref, err := dir.ParseBase(base)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
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

// Withhold changes the faults of NARs.
func (c *Catalog) Withhold(ctx context.Context, nars []catalog.NARID, from, to catalog.Fault) (changed int64, err error) {
	if err := atMost(len(nars)); err != nil {
		return 0, err
	}
	err = c.write(ctx, func(x *change) error {
		changed = 0
		for _, id := range nars {
			n, err := x.count("UPDATE nars SET damaged = ? WHERE id = ? AND damaged = ?", int64(to), int64(id), int64(from))
			if err != nil {
				return err
			}
			changed += n
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("withhold NARs: %w", err)
	}
	return changed, nil
}

// AllPaths iterates over paths.
func (c *Catalog) AllPaths(ctx context.Context, cache catalog.CacheID, after nix.PathHash, withheld bool) iter.Seq2[*catalog.Path, error] {
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
		}, pathColumns+"WHERE cache = ? AND paths.hash > ? AND (damaged <> 0) = ? ORDER BY paths.hash LIMIT ?", int64(cache), from, withheld, page)
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
	if err := x.exec("UPDATE caches SET deletions = deletions + 1 WHERE id = ?", int64(cache)); err != nil {
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
			SELECT 1, coalesce(sum(n), 0), count(*), coalesce(sum(n * size), 0), coalesce(sum(n * file_size), 0), coalesce(sum(damaged <> 0), 0), coalesce(sum(damaged = 2), 0)
			FROM (SELECT nar, count(*) AS n FROM paths INDEXED BY paths_by_nar WHERE cache = ? GROUP BY nar) JOIN nars ON nars.id = nar`, int64(*cache)).
			scanAll(nil, &n.Caches, &n.Paths, &n.NARs, &n.NARBytes, &n.FileBytes, &n.Withheld, &n.Missing)
	} else {
		err = c.queryRow(ctx, `
			SELECT (SELECT count(*) FROM caches WHERE name IS NOT NULL), (SELECT count(*) FROM paths), (SELECT count(*) FROM chunks),
				(SELECT count(*) FROM packs), (SELECT coalesce(sum(size), 0) FROM packs),
				(SELECT coalesce(sum(size), 0) FROM loose_packs JOIN packs ON packs.id = loose_packs.pack) +
				(SELECT coalesce(sum(dead), 0) FROM thin_packs WHERE NOT EXISTS (SELECT 1 FROM loose_packs WHERE loose_packs.pack = thin_packs.pack)),
				(SELECT coalesce(sum(file_size), 0) FROM (SELECT nar FROM uploads INDEXED BY uploads_unpublished WHERE made >= 0 UNION SELECT nar FROM loose_nars) AS few JOIN nars ON nars.id = few.nar
					WHERE NOT EXISTS (SELECT 1 FROM paths WHERE paths.nar = few.nar)),
				count(*), coalesce(sum(size), 0), coalesce(sum(file_size), 0), coalesce(sum(damaged <> 0), 0), coalesce(sum(damaged = 2), 0) FROM nars`).
			scanAll(nil, &n.Caches, &n.Paths, &n.Chunks, &n.Packs, &n.PackBytes, &n.Reclaimable, &n.Unpublished, &n.NARs, &n.NARBytes, &n.FileBytes, &n.Withheld, &n.Missing)
	}
	if err != nil {
		return catalog.Counts{}, fmt.Errorf("count: %w", err)
	}
	return n, nil
}

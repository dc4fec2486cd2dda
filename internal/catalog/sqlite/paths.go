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
	"firn/internal/depot/index"
	"firn/nix"
)

// maxSignatures bounds the signatures of one path.
const maxSignatures = 64

// pathColumns are what a path is made of, in the order of scanPath.
const pathColumns = `
	SELECT paths.hash, paths.name, nar, ` + referencesOf + `, deriver, sigs, ca, fields, registered, published, publisher, nars.hash, nars.size, file_size, tag, store_dir, paths.id
	FROM paths JOIN nars ON nars.id = nar JOIN caches ON caches.id = paths.cache `

// referencesOf is what a path refers to, as parseReferences reads it.
const referencesOf = "(SELECT group_concat(hex(referenced.hash) || referenced.name, ' ') FROM path_refs JOIN referenced ON referenced.id = ref WHERE path = paths.id)"

// scanPath scans a path, and its ID into id.
func scanPath(scan func(...any) error, id *int64) (*index.Path, error) {
	p := &index.Path{}
	var hash, narHash []byte
	var name, deriver, sigs, ca, fields, storeDir string
	var refs sql.NullString
	var registered, published int64
	if err := scan(&hash, &name, &p.NAR, &refs, &deriver, &sigs, &ca, &fields, &registered, &published, &p.By, &narHash, &p.Info.NARSize, &p.FileSize, &p.Tag, &storeDir, id); err != nil {
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
	if p.Info.References, err = parseReferences(dir, refs.String); err != nil {
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

// nextPath is the ID of the path that is published next.
const nextPath = "1 + coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'paths'), 0)"

// Publish makes a path visible.
func (c *Catalog) Publish(ctx context.Context, cache catalog.CacheID, p *index.Path, debug []index.DebugInfo, b index.Basis) (there *index.Path, added bool, err error) {
	err = c.write(ctx, func(x *change) error {
		there, added, err = nil, false, nil
		return c.publish(x, cache, p, debug, b, &there, &added)
	})
	if err != nil {
		return nil, false, fmt.Errorf("publish %s: %w", p.Info.Path, err)
	}
	return there, added, nil
}

func (c *Catalog) publish(x *change, cache catalog.CacheID, p *index.Path, debug []index.DebugInfo, b index.Basis, there **index.Path, added *bool) error {
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
	if err := missing(x, cache, b, slices.DeleteFunc(slices.Clone(p.Info.References), func(ref nix.StorePath) bool { return ref == p.Info.Path })...); err != nil {
		return err
	}
	if old != nil { // which is withheld, and makes way
		if _, err := c.deletePath(x, cache, hash); err != nil {
			return err
		}
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
	var id int64
	if _, err := x.get("INSERT INTO paths (cache, hash, name, nar, deriver, sigs, ca, fields, registered, published, publisher) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
		[]any{int64(cache), hash[:], p.Info.Path.Name(), int64(p.NAR), deriver, joinSignatures(p.Info.Signatures), ca, string(nix.AppendFields(nil, p.Info.Extra)),
			registered.Unix(), published.Unix(), p.By}, &id); err != nil {
		return err
	}
	if err := addReferences(x, cache, id, p); err != nil {
		return err
	}
	if err := x.exec("UPDATE uploads SET made = NULL WHERE nar = ? AND +cache = ?" /* by the NAR: a cache has a million */, int64(p.NAR), int64(cache)); err != nil {
		return err
	}
	for _, d := range debug {
		buildID, err := hex.DecodeString(d.BuildID)
		if err != nil {
			return fmt.Errorf("build ID %q: %w", d.BuildID, err)
		}
		if err := x.exec("INSERT INTO debug_info (build_id, cache, path, member) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", buildID, int64(cache), id, d.Member); err != nil {
			return err
		}
	}
	*added = true
	*there, err = getPath(x, cache, hash)
	return err
}

// addReferences keeps what a new path refers to.
func addReferences(x *change, cache catalog.CacheID, id int64, p *index.Path) error {
	if len(p.Info.References) == 0 {
		return nil
	}
	list, err := referenceList(p.Info.References)
	if err != nil {
		return err
	}
	if err := x.exec(`INSERT INTO referenced (cache, hash, name) SELECT ?1, unhex(substr(value, 1, 40)), substr(value, 41) FROM json_each(?2)
		WHERE NOT EXISTS (SELECT 1 FROM referenced WHERE cache = ?1 AND hash = unhex(substr(value, 1, 40)) AND name = substr(value, 41))`, int64(cache), list); err != nil {
		return err
	}
	if err := x.exec(`INSERT INTO path_refs SELECT ?3, referenced.id FROM json_each(?2) CROSS JOIN referenced ON `+isValue, int64(cache), list, id); err != nil {
		return err
	}
	if len(p.Elsewhere) == 0 {
		return nil
	}
	if list, err = referenceList(p.Elsewhere); err != nil {
		return err
	}
	return x.exec(`UPDATE referenced SET elsewhere = 1 WHERE NOT elsewhere AND id IN (SELECT referenced.id FROM json_each(?2) CROSS JOIN referenced ON `+isValue+`)`, int64(cache), list)
}

// isValue is true of what a value of a referenceList, in a cache, is kept as.
const isValue = "cache = ?1 AND hash = unhex(substr(value, 1, 40)) AND name = substr(value, 41)"

// referenceList is a list of paths, each once, in JSON: the path hash in hexadecimal, and the name.
func referenceList(paths []nix.StorePath) (string, error) {
	seen := make(map[nix.StorePath]bool, len(paths))
	texts := make([]string, 0, len(paths))
	for _, path := range paths {
		if !seen[path] {
			seen[path] = true
			hash := path.Hash()
			texts = append(texts, hex.EncodeToString(hash[:])+path.Name())
		}
	}
	list, err := json.Marshal(texts)
	return string(list), err
}

// maxSince bounds how many paths are looked at that were published since a basis.
// That takes some milliseconds, and all that is pushed waits for it.
const maxSince = 4096

// unvisited is ErrChanged if a path may close a cycle that was not seen.
func unvisited(x *change, cache catalog.CacheID, path nix.StorePath, b index.Basis) error {
	if b.Paths == 0 {
		return fmt.Errorf("%w: %s was deleted", catalog.ErrChanged, path)
	}
	if b.Visited == nil {
		hash := path.Hash()
		referred, err := x.get("SELECT 1 WHERE "+isReferred, []any{int64(cache), hash[:]}, new(int64))
		if err == nil && referred {
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
	}, "SELECT hash FROM paths WHERE id >= ? AND +cache = ? ORDER BY id LIMIT ?", b.Paths, int64(cache), maxSince)
}

// missing is ErrChanged if one of the given references is not published, and may have been deleted
// since it was looked for.
func missing(x *change, cache catalog.CacheID, b index.Basis, refs ...nix.StorePath) error {
	if b.Partial {
		return nil
	}
	changed, err := x.get("SELECT 1 FROM caches WHERE id = ? AND deletions <> ?", []any{int64(cache), b.Deletions}, new(int64))
	if err != nil || !changed {
		return err
	}
	list, err := referenceList(refs)
	if err != nil {
		return err
	}
	absent, err := x.get("SELECT 1 FROM json_each(?2) WHERE NOT EXISTS (SELECT 1 FROM paths WHERE cache = ?1 AND hash = unhex(substr(value, 1, 40))) LIMIT 1",
		[]any{int64(cache), list}, new(int64))
	if err == nil && absent {
		return fmt.Errorf("%w: paths were deleted", catalog.ErrChanged)
	}
	return err
}

var errTooManySignatures = fmt.Errorf("%w: more than %d signatures", catalog.ErrConflict, maxSignatures)

// getPath returns a path as it is in the transaction, withheld or not; nil if there is none.
func getPath(x *change, cache catalog.CacheID, hash nix.PathHash) (*index.Path, error) {
	there := true
	p, err := scanPath(func(to ...any) (err error) {
		there, err = x.get(pathColumns+"WHERE paths.cache = ? AND paths.hash = ?", []any{int64(cache), hash[:]}, to...)
		if err == nil && !there {
			err = catalog.ErrNotFound
		}
		return err
	}, new(int64))
	if !there {
		return nil, nil
	}
	return p, err
}

// addSignatures adds to p, and keeps, the signatures that it does not have.
func addSignatures(x *change, cache catalog.CacheID, p *index.Path, sigs []nix.Signature) error {
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

// EndorsementsOf returns what was pushed of a path.
func (c *Catalog) EndorsementsOf(ctx context.Context, cache catalog.CacheID, hash nix.PathHash, nar catalog.Sum) ([]nix.Signature, []nix.Field, error) {
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

// WithheldPaths iterates over paths that are withheld.
func (c *Catalog) WithheldPaths(ctx context.Context, cache catalog.CacheID) iter.Seq2[*index.Path, error] {
	type row struct {
		id   int64
		path *index.Path
	}
	return func(yield func(*index.Path, error) bool) {
		for n, err := range c.WithheldNARs(ctx) {
			if err != nil {
				yield(nil, err)
				return
			}
			for r, err := range pages(func(last int64, _ bool) (paths []row, err error) {
				err = c.rows(ctx, func(scan func(...any) error) error {
					var r row
					r.path, err = scanPath(scan, &r.id)
					paths = append(paths, r)
					return err
				}, pathColumns+"WHERE nar = ? AND paths.cache = ? AND damaged AND paths.id > ? ORDER BY paths.id LIMIT ?", int64(n.ID), int64(cache), last, page)
				return paths, err
			}, func(r row) int64 { return r.id }) {
				if !yield(r.path, err) || err != nil {
					return
				}
			}
		}
	}
}

// hashList is a list of path hashes in JSON, in hexadecimal.
func hashList(hashes []nix.PathHash) (string, error) {
	texts := make([]string, len(hashes))
	for i := range hashes {
		texts[i] = hex.EncodeToString(hashes[i][:])
	}
	list, err := json.Marshal(texts)
	return string(list), err
}

// Path returns a published path.
func (c *Catalog) Path(ctx context.Context, cache catalog.CacheID, hash nix.PathHash) (*index.Path, error) {
	r := c.queryRow(ctx, pathColumns+"WHERE paths.cache = ? AND paths.hash = ? AND NOT damaged", int64(cache), hash[:])
	p, err := scanPath(func(to ...any) error { return r.scanAll(catalog.ErrNotFound, to...) }, new(int64))
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", hash, unavailable(err))
	}
	return p, nil
}

// SetFaults changes the faults of NARs.
func (c *Catalog) SetFaults(ctx context.Context, nars []index.NARID, from, to index.Fault) (changed int64, err error) {
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
func (c *Catalog) AllPaths(ctx context.Context, cache catalog.CacheID) iter.Seq2[*index.Path, error] {
	return pages(func(last nix.PathHash, first bool) (paths []*index.Path, err error) {
		from := last[:]
		if first {
			from = []byte{} // which even a hash of zeros comes after
		}
		many := 0
		err = c.rows(ctx, func(scan func(...any) error) error {
			p, err := scanPath(scan, new(int64))
			if err != nil {
				return err
			}
			paths = append(paths, p)
			if many += len(p.Info.References); many > pageReferences {
				return errPageFull
			}
			return nil
		}, pathColumns+"WHERE paths.cache = ? AND paths.hash > ? AND NOT damaged ORDER BY paths.hash LIMIT ?", int64(cache), from, page)
		return paths, err
	}, func(p *index.Path) nix.PathHash { return p.Info.Path.Hash() })
}

// DebugInfo returns the debug info of a build ID.
func (c *Catalog) DebugInfo(ctx context.Context, cache catalog.CacheID, buildID string) (*index.DebugInfo, error) {
	id, err := hex.DecodeString(buildID)
	if err != nil {
		return nil, fmt.Errorf("look up debug info of %q: %w", buildID, catalog.ErrNotFound)
	}
	d := &index.DebugInfo{BuildID: buildID}
	var hash []byte
	err = c.queryRow(ctx, `
		SELECT paths.hash, member FROM debug_info JOIN paths ON paths.id = path JOIN nars ON nars.id = nar
		WHERE debug_info.cache = ? AND build_id = ? AND NOT damaged LIMIT 1`, int64(cache), id).scanAll(catalog.ErrNotFound, &hash, &d.Member)
	if err != nil {
		return nil, fmt.Errorf("look up debug info: %w", err)
	}
	copy(d.Path[:], hash)
	return d, nil
}

// Count returns how much is kept.
func (c *Catalog) Count(ctx context.Context) (n index.Counts, err error) {
	err = c.queryRow(ctx, `
		SELECT (SELECT count(*) FROM caches WHERE name IS NOT NULL), (SELECT count(*) FROM paths), (SELECT count(*) FROM chunks),
			(SELECT count(*) FROM packs), (SELECT coalesce(sum(size), 0) FROM packs),
			(SELECT coalesce(sum(size), 0) FROM loose_packs JOIN packs ON packs.id = loose_packs.pack) +
			(SELECT coalesce(sum(dead), 0) FROM thin_packs WHERE NOT EXISTS (SELECT 1 FROM loose_packs WHERE loose_packs.pack = thin_packs.pack)),
			(SELECT coalesce(sum(file_size), 0) FROM (SELECT nar FROM uploads INDEXED BY uploads_unpublished WHERE made >= 0 UNION SELECT nar FROM loose_nars) AS few JOIN nars ON nars.id = few.nar
				WHERE NOT EXISTS (SELECT 1 FROM paths WHERE paths.nar = few.nar)),
			count(*), coalesce(sum(size), 0), coalesce(sum(file_size), 0), coalesce(sum(damaged <> 0), 0), coalesce(sum(damaged = 2), 0) FROM nars`).
		scanAll(nil, &n.Caches, &n.Paths, &n.Chunks, &n.Packs, &n.PackBytes, &n.Reclaimable, &n.Unpublished, &n.NARs, &n.NARBytes, &n.FileBytes, &n.Withheld, &n.Missing)
	if err != nil {
		return index.Counts{}, fmt.Errorf("count: %w", err)
	}
	return n, nil
}

// CountIn returns how much is published in a cache.
func (c *Catalog) CountIn(ctx context.Context, cache catalog.CacheID) (n index.Counts, err error) {
	// By the index of NARs, of all caches: so nars is read from its beginning to its end, and paths not at all.
	err = c.queryRow(ctx, `
		SELECT 1, coalesce(sum(n), 0), count(*), coalesce(sum(n * size), 0), coalesce(sum(n * file_size), 0), coalesce(sum(damaged <> 0), 0), coalesce(sum(damaged = 2), 0)
		FROM (SELECT nar, count(*) AS n FROM paths INDEXED BY paths_by_nar WHERE cache = ? GROUP BY nar) JOIN nars ON nars.id = nar`, int64(cache)).
		scanAll(nil, &n.Caches, &n.Paths, &n.NARs, &n.NARBytes, &n.FileBytes, &n.Withheld, &n.Missing)
	if err != nil {
		return index.Counts{}, fmt.Errorf("count: %w", err)
	}
	return n, nil
}

package sqlite

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index"
)

// FindChunks returns those of the given chunks that there are.
func (c *Catalog) FindChunks(ctx context.Context, cache catalog.CacheID, hashes []catalog.Sum) ([]index.Chunk, error) {
	if err := atMost(len(hashes)); err != nil {
		return nil, err
	}
	if len(hashes) == 0 {
		return nil, nil
	}
	args := make([]any, 1+padded(len(hashes)))
	args[0] = int64(cache)
	for i := range hashes {
		args[1+i] = hashes[i][:]
	}
	var there []index.Chunk
	err := c.rows(ctx, func(scan func(...any) error) error {
		var k index.Chunk
		var hash []byte
		if err := scan(&k.Led, &hash, &k.Pack, &k.Offset, &k.Length, &k.Size); err != nil {
			return err
		}
		copy(k.Hash[:], hash)
		there = append(there, k)
		return nil
	}, `SELECT EXISTS (SELECT 1 FROM chunk_uses AS used WHERE used.hash = chunks.hash AND used.cache = ?1
			AND (EXISTS (SELECT 1 FROM uploads WHERE uploads.nar = used.nar AND uploads.cache = ?1) OR
				EXISTS (SELECT 1 FROM paths WHERE paths.nar = used.nar AND paths.cache = ?1))),
			chunks.hash, packs.name, "offset", length, chunks.size FROM chunks JOIN packs ON packs.id = pack
		WHERE NOT retired AND chunks.hash IN (`+marks(len(args)-1)+`)`, args...)
	if err != nil {
		return nil, fmt.Errorf("look up chunks: %w", err)
	}
	return there, nil
}

// AddNAR adds a NAR with all that belongs to it.
func (c *Catalog) AddNAR(ctx context.Context, n *index.NewNAR) (id index.NARID, added bool, err error) {
	err = c.write(ctx, func(x *change) error {
		var err error
		id, added, err = c.addNAR(x, n)
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("add NAR: %w", err)
	}
	return id, added, nil
}

func (c *Catalog) addNAR(x *change, n *index.NewNAR) (id index.NARID, added bool, err error) {
	if n.Upload != nil {
		if err := hasCache(x, n.Upload.Cache); err != nil {
			return 0, false, err
		}
	}
	var fault index.Fault
	there, err := x.get("SELECT id, damaged FROM nars WHERE hash = ?", []any{n.Hash[:]}, &id, &fault)
	if err != nil {
		return 0, false, err
	}
	if !there || fault != index.Whole {
		added = true
		if id, err = c.keepNAR(x, n, id); err != nil {
			return 0, false, err
		}
	}
	if n.Upload != nil {
		err = c.addUpload(x, n.Upload, id)
	}
	return id, added, err
}

// keepNAR adds a NAR, or replaces all but the ID of one that is withheld.
func (c *Catalog) keepNAR(x *change, n *index.NewNAR, id index.NARID) (index.NARID, error) {
	if n.Pack != nil {
		if _, err := addPack(x, *n.Pack); err != nil {
			return 0, err
		}
	}
	listing, err := addListing(x, notNil(n.Listing))
	if err != nil {
		return 0, err
	}
	if id == 0 {
		if _, err := x.get("INSERT INTO nars (hash, size, file_size, tag, added, listing) VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
			[]any{n.Hash[:], n.Size, n.FileSize, n.Tag, c.seconds(), listing}, &id); err != nil {
			return 0, err
		}
	} else {
		if err := x.exec("UPDATE nars SET size = ?, file_size = ?, tag = ?, damaged = 0, added = ?, listing = ? WHERE id = ?",
			n.Size, n.FileSize, n.Tag, c.seconds(), listing, int64(id)); err != nil {
			return 0, err
		}
		if err := x.exec("DELETE FROM nar_packs WHERE nar = ?", int64(id)); err != nil {
			return 0, err
		}
	}
	if err := x.exec("INSERT INTO recipes VALUES (?, ?) ON CONFLICT DO UPDATE SET recipe = excluded.recipe", int64(id), notNil(n.Recipe)); err != nil {
		return 0, err
	}
	for i, name := range n.Packs {
		added, err := x.count("INSERT INTO nar_packs SELECT ?, ?, id FROM packs WHERE name = ?", int64(id), i, name)
		if err != nil {
			return 0, err
		}
		if added == 0 {
			return 0, fmt.Errorf("%w: pack %s", catalog.ErrGone, name)
		}
	}
	for _, k := range n.Built {
		ok, err := x.get(`SELECT 1 FROM chunks JOIN packs ON packs.id = pack WHERE hash = ? AND name = ? AND "offset" = ?`,
			[]any{k.Hash[:], k.Pack, k.Offset}, new(int64))
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, fmt.Errorf("%w: a chunk in pack %s", catalog.ErrGone, k.Pack)
		}
	}
	for _, k := range n.Chunks {
		if err := x.exec(`INSERT INTO chunks SELECT ?, id, ?, ?, ? FROM packs WHERE name = ?
			ON CONFLICT DO UPDATE SET pack = excluded.pack, "offset" = excluded."offset", length = excluded.length, size = excluded.size
			WHERE (SELECT retired FROM packs WHERE id = chunks.pack)`,
			k.Hash[:], k.Offset, k.Length, k.Size, k.Pack); err != nil {
			return 0, err
		}
	}
	// Nothing leads to it yet.
	return id, x.exec("INSERT INTO loose_nars VALUES (?) ON CONFLICT DO NOTHING", int64(id))
}

// addListing returns the ID of a listing, and adds it unless it is there.
func addListing(x *change, listing []byte) (id int64, err error) {
	hash := sha256.Sum256(listing)
	there, err := x.get("SELECT id FROM listings WHERE hash = ?", []any{hash[:]}, &id)
	if err == nil && !there {
		_, err = x.get("INSERT INTO listings (hash, listing) VALUES (?, ?) RETURNING id", []any{hash[:], listing}, &id)
	}
	return id, err
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// ForgetChunks forgets chunks of a pack.
func (c *Catalog) ForgetChunks(ctx context.Context, pack string, offsets []int64) error {
	return c.forget(ctx, func(x *change) error {
		for _, off := range offsets {
			if err := x.exec(`DELETE FROM chunks WHERE pack = (SELECT id FROM packs WHERE name = ?) AND "offset" = ?`, pack, off); err != nil {
				return err
			}
		}
		return nil
	})
}

// ForgetPack forgets all chunks of a pack.
func (c *Catalog) ForgetPack(ctx context.Context, pack string) error {
	return c.forget(ctx, func(x *change) error {
		return x.exec("DELETE FROM chunks WHERE pack = (SELECT id FROM packs WHERE name = ?)", pack)
	})
}

func (c *Catalog) forget(ctx context.Context, do func(*change) error) error {
	if err := c.write(ctx, do); err != nil {
		return fmt.Errorf("forget chunks: %w", err)
	}
	return nil
}

// NAR returns what is kept under a NAR hash.
func (c *Catalog) NAR(ctx context.Context, hash catalog.Sum) (*index.NAR, error) {
	n, err := c.nar(ctx, "hash = ?", hash[:])
	if err == nil && n == nil {
		err = catalog.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("look up NAR: %w", err)
	}
	return n, nil
}

// nar returns the NAR that a condition is true of, nil if there is none.
func (c *Catalog) nar(ctx context.Context, condition string, of any) (*index.NAR, error) {
	n := &index.NAR{}
	// One statement, so that recipe and packs are of one moment.
	first := true
	err := c.rows(ctx, func(scan func(...any) error) error {
		var pack *string
		if first {
			first = false
			var hash []byte
			if err := scan(&n.ID, &hash, &n.Size, &n.FileSize, &n.Tag, &n.Recipe, &n.Fault, &pack); err != nil {
				return err
			}
			copy(n.Hash[:], hash)
		} else if err := scan(new(int64), new([]byte), new(int64), new(int64), new(string), new([]byte), new(index.Fault), &pack); err != nil {
			return err
		}
		if pack != nil {
			n.Packs = append(n.Packs, *pack)
		}
		return nil
	}, `SELECT nars.id, hash, nars.size, file_size, tag, CASE WHEN coalesce(idx, 0) = 0 THEN recipe END, damaged, packs.name
		FROM nars JOIN recipes ON recipes.nar = nars.id LEFT JOIN nar_packs ON nar_packs.nar = nars.id LEFT JOIN packs ON packs.id = pack
		WHERE `+condition+` ORDER BY idx`, of)
	if err != nil || first {
		return nil, err
	}
	return n, nil
}

// Reaches reports whether something of a cache leads to a NAR.
func (c *Catalog) Reaches(ctx context.Context, cache catalog.CacheID, nar index.NARID) (bool, error) {
	var leads bool
	err := c.queryRow(ctx, `SELECT EXISTS (SELECT 1 FROM uploads WHERE nar = ?1 AND cache = ?2) OR EXISTS (SELECT 1 FROM paths WHERE nar = ?1 AND cache = ?2)`,
		int64(nar), int64(cache)).scan(&leads, nil)
	if err != nil {
		return false, fmt.Errorf("look up NAR of a cache: %w", err)
	}
	return leads, nil
}

// Listing returns the listing of a NAR.
func (c *Catalog) Listing(ctx context.Context, hash catalog.Sum) ([]byte, error) {
	var listing []byte
	err := c.queryRow(ctx, "SELECT listings.listing FROM nars JOIN listings ON listings.id = nars.listing WHERE nars.hash = ?", hash[:]).scan(&listing, catalog.ErrNotFound)
	if err != nil {
		return nil, fmt.Errorf("look up listing: %w", err)
	}
	return listing, nil
}

// AddUpload adds a name for a NAR.
func (c *Catalog) AddUpload(ctx context.Context, u *index.Upload) error {
	err := c.write(ctx, func(x *change) error {
		if err := hasCache(x, u.Cache); err != nil {
			return err
		}
		ok, err := x.get("SELECT id FROM nars WHERE id = ?", []any{int64(u.NAR)}, new(int64))
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%w: the NAR", catalog.ErrGone)
		}
		return c.addUpload(x, u, u.NAR)
	})
	if err != nil {
		return fmt.Errorf("add upload %s: %w", u.Name, err)
	}
	return nil
}

func (c *Catalog) addUpload(x *change, u *index.Upload, nar index.NARID) error {
	for _, hash := range u.Uses {
		if err := x.exec(`INSERT INTO chunk_uses SELECT hash, ?, ? FROM chunks WHERE hash = ? ON CONFLICT DO UPDATE SET nar = excluded.nar`,
			int64(u.Cache), int64(nar), hash[:]); err != nil {
			return err
		}
	}
	return x.exec(`
		INSERT INTO uploads VALUES (?1, ?2, ?3, ?4, ?5, CASE WHEN EXISTS (SELECT 1 FROM paths WHERE nar = ?3 AND cache = ?1) THEN NULL ELSE ?6 END, ?7)
		ON CONFLICT DO UPDATE SET nar = excluded.nar, file_hash = excluded.file_hash, file_size = excluded.file_size, made = excluded.made, compression = excluded.compression`,
		int64(u.Cache), u.Name, int64(nar), u.FileHash[:], u.FileSize, c.seconds(), u.Compression)
}

// Upload returns what a client sent under a name.
func (c *Catalog) Upload(ctx context.Context, cache catalog.CacheID, name string) (*index.Upload, error) {
	u := &index.Upload{Cache: cache, Name: name}
	var narHash, fileHash []byte
	err := c.queryRow(ctx, "SELECT nar, hash, size, file_hash, uploads.file_size, made IS NULL, compression FROM uploads JOIN nars ON nars.id = nar WHERE cache = ? AND name = ?", int64(cache), name).
		scanAll(catalog.ErrNotFound, &u.NAR, &narHash, &u.NARSize, &fileHash, &u.FileSize, &u.Published, &u.Compression)
	if err != nil {
		return nil, fmt.Errorf("look up upload %s: %w", name, err)
	}
	copy(u.NARHash[:], narHash)
	copy(u.FileHash[:], fileHash)
	return u, nil
}

// AllNARs iterates over all NARs.
func (c *Catalog) AllNARs(ctx context.Context) iter.Seq2[*index.NAR, error] {
	return c.listNARs(ctx, "SELECT id, hash, size, file_size, damaged FROM nars WHERE id > ? ORDER BY id LIMIT ?")
}

// WithheldNARs iterates over those that are withheld.
func (c *Catalog) WithheldNARs(ctx context.Context) iter.Seq2[*index.NAR, error] {
	return c.listNARs(ctx, "SELECT id, hash, size, file_size, damaged FROM nars WHERE damaged AND id > ? ORDER BY id LIMIT ?")
}

// listNARs iterates over what a query finds after an ID.
func (c *Catalog) listNARs(ctx context.Context, query string) iter.Seq2[*index.NAR, error] {
	return pages(func(last index.NARID, _ bool) (nars []*index.NAR, err error) {
		err = c.rows(ctx, func(scan func(...any) error) error {
			n := &index.NAR{}
			var hash []byte
			if err := scan(&n.ID, &hash, &n.Size, &n.FileSize, &n.Fault); err != nil {
				return err
			}
			copy(n.Hash[:], hash)
			nars = append(nars, n)
			return nil
		}, query, int64(last), page)
		return nars, err
	}, func(n *index.NAR) index.NARID { return n.ID })
}

// Sweep forgets what nothing leads to.
func (c *Catalog) Sweep(ctx context.Context, before time.Time, limit int) (packs []string, more bool, err error) {
	err = c.write(ctx, func(x *change) error {
		packs, more = nil, false
		for _, step := range []func(*change, int64, int) (bool, []string, error){c.sweepCaches, c.sweepUploads, c.sweepNARs, c.sweepPacks} {
			again, gone, err := step(x, before.Unix(), limit)
			if err != nil {
				return err
			}
			more, packs = more || again, append(packs, gone...)
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("sweep catalog: %w", err)
	}
	return packs, more, nil
}

// sweepCaches goes on with what DeleteCache did not finish.
func (c *Catalog) sweepCaches(x *change, _ int64, limit int) (more bool, _ []string, err error) {
	caches, err := x.ids("SELECT id FROM caches WHERE name IS NULL LIMIT 1")
	for _, id := range caches {
		if more, err = removeFrom(x, id, limit); err != nil {
			break
		}
		more = true // perhaps another cache
	}
	return more, nil, err
}

func (c *Catalog) sweepUploads(x *change, before int64, limit int) (more bool, _ []string, err error) {
	n, err := x.count(`
		DELETE FROM uploads WHERE (cache, name) IN (SELECT cache, name FROM uploads WHERE made IS NOT NULL AND made < ? LIMIT ?)`, before, limit)
	return n == int64(limit), nil, err
}

func (c *Catalog) sweepNARs(x *change, before int64, limit int) (more bool, _ []string, err error) {
	const led = "(EXISTS (SELECT 1 FROM uploads WHERE nar = loose_nars.nar) OR EXISTS (SELECT 1 FROM paths WHERE nar = loose_nars.nar))"
	kept, err := x.count("DELETE FROM loose_nars WHERE nar IN (SELECT nar FROM loose_nars WHERE "+led+" LIMIT ?)", limit)
	if err != nil {
		return false, nil, err
	}
	nars, err := x.ids("SELECT nar FROM loose_nars JOIN nars ON nars.id = nar WHERE added < ? AND NOT "+led+" LIMIT ?", before, limit)
	if err != nil {
		return false, nil, err
	}
	for _, id := range nars {
		if err := x.exec("DELETE FROM nars WHERE id = ?", id); err != nil {
			return false, nil, err
		}
		if err := x.exec("DELETE FROM loose_nars WHERE nar = ?", id); err != nil {
			return false, nil, err
		}
	}
	return kept == int64(limit) || len(nars) == limit, nil, nil
}

func (c *Catalog) sweepPacks(x *change, before int64, limit int) (more bool, gone []string, err error) {
	if err := x.exec("UPDATE loose_packs SET since = ? WHERE since IS NULL", c.seconds()); err != nil {
		return false, nil, err
	}
	// Who finds a chunk in one of them has half of the grace, at least, to need it.
	half := before + (c.seconds()-before)/2
	if err := x.exec("UPDATE packs SET retired = 1 WHERE NOT retired AND id IN (SELECT pack FROM loose_packs WHERE since < ? AND since >= ?)", half, before); err != nil {
		return false, nil, err
	}
	packs, err := x.ids("SELECT pack FROM loose_packs WHERE since < ? LIMIT ?", before, limit)
	if err != nil {
		return false, nil, err
	}
	for _, id := range packs {
		var name string
		ok, err := x.get("SELECT name FROM packs WHERE id = ?", []any{id}, &name)
		if err == nil && ok {
			gone = append(gone, name)
		}
		err = errors.Join(err,
			x.exec("DELETE FROM chunks WHERE pack = ?", id),
			x.exec("DELETE FROM loose_packs WHERE pack = ?", id),
			x.exec("DELETE FROM thin_packs WHERE pack = ?", id),
			x.exec("DELETE FROM packs WHERE id = ?", id))
		if err != nil {
			return false, nil, err
		}
	}
	return len(packs) == limit, gone, nil
}

// KnownPacks returns those of the given names that are packs.
func (c *Catalog) KnownPacks(ctx context.Context, names []string) ([]string, error) {
	if err := atMost(len(names)); err != nil {
		return nil, err
	}
	args := make([]any, padded(len(names)))
	for i, name := range names {
		args[i] = name
	}
	var known []string
	err := c.rows(ctx, func(scan func(...any) error) error {
		var name string
		err := scan(&name)
		known = append(known, name)
		return err
	}, "SELECT name FROM packs WHERE name IN ("+marks(len(args))+")", args...)
	if err != nil {
		return nil, fmt.Errorf("look up packs: %w", err)
	}
	return known, nil
}

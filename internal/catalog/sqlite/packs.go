package sqlite

import (
	"context"
	"fmt"
	"iter"

	"firn/internal/catalog"
	"firn/internal/depot/index"
)

// ThinPacks returns packs that NARs have left.
func (c *Catalog) ThinPacks(ctx context.Context, limit int) (thin []index.ThinPack, err error) {
	err = c.rows(ctx, func(scan func(...any) error) error {
		var p index.ThinPack
		err := scan(&p.Name, &p.Size, &p.Left)
		thin = append(thin, p)
		return err
	}, `SELECT name, size, gone FROM thin_packs JOIN packs ON packs.id = thin_packs.pack
		WHERE gone > 0 AND NOT EXISTS (SELECT 1 FROM loose_packs WHERE loose_packs.pack = thin_packs.pack)
		ORDER BY thin_packs.pack LIMIT ?`, limit)
	if err != nil {
		return nil, fmt.Errorf("look up thin packs: %w", err)
	}
	return thin, nil
}

// AllPacks iterates over all packs.
func (c *Catalog) AllPacks(ctx context.Context) iter.Seq2[index.Pack, error] {
	type row struct {
		id int64
		index.Pack
	}
	rows := pages(func(last int64, _ bool) (packs []row, err error) {
		err = c.rows(ctx, func(scan func(...any) error) error {
			var p row
			err := scan(&p.id, &p.Name, &p.Size)
			packs = append(packs, p)
			return err
		}, "SELECT id, name, size FROM packs WHERE id > ? ORDER BY id LIMIT ?", last, page)
		return packs, err
	}, func(p row) int64 { return p.id })
	return func(yield func(index.Pack, error) bool) {
		for p, err := range rows {
			if err != nil {
				err = fmt.Errorf("list packs: %w", err)
			}
			if !yield(p.Pack, err) || err != nil {
				return
			}
		}
	}
}

// NARsIn iterates over the NARs that refer to a pack.
func (c *Catalog) NARsIn(ctx context.Context, pack string) iter.Seq2[*index.NAR, error] {
	ids := pages(func(last int64, _ bool) (ids []int64, err error) {
		err = c.rows(ctx, func(scan func(...any) error) error {
			var id int64
			err := scan(&id)
			ids = append(ids, id)
			return err
		}, "SELECT nar FROM nar_packs WHERE pack = (SELECT id FROM packs WHERE name = ?) AND nar > ? ORDER BY nar LIMIT ?", pack, last, page)
		return ids, err
	}, func(id int64) int64 { return id })
	return func(yield func(*index.NAR, error) bool) {
		var last int64
		for id, err := range ids {
			if err == nil && id == last { // it refers to the pack twice
				continue
			}
			last = id
			var n *index.NAR
			if err == nil {
				// Recipes may be long: they are read one by one.
				n, err = c.nar(ctx, "nars.id = ?", id)
			}
			if err == nil && n == nil {
				continue // a sweep has removed it
			}
			if err != nil {
				yield(nil, fmt.Errorf("list NARs in a pack: %w", err))
				return
			}
			if !yield(n, nil) {
				return
			}
		}
	}
}

// Examined notes how many bytes of a pack no NAR needs.
func (c *Catalog) Examined(ctx context.Context, p index.ThinPack, dead int64) error {
	err := c.write(ctx, func(x *change) error {
		noted, err := x.count("UPDATE thin_packs SET gone = 0, dead = ? WHERE pack = (SELECT id FROM packs WHERE name = ?) AND gone = ?", dead, p.Name, p.Left)
		if err != nil || noted == 0 {
			return err
		}
		return x.exec("UPDATE packs SET retired = 0 WHERE name = ? AND retired AND EXISTS (SELECT 1 FROM nar_packs WHERE pack = packs.id)", p.Name)
	})
	if err != nil {
		return fmt.Errorf("note pack: %w", err)
	}
	return nil
}

// Rewritten returns how many bytes of rewritten packs wait for a sweep.
func (c *Catalog) Rewritten(ctx context.Context) (size int64, err error) {
	// A pack that its last NAR left because that was deleted is still to be examined.
	err = c.queryRow(ctx, `SELECT coalesce(sum(size), 0) FROM loose_packs CROSS JOIN thin_packs ON thin_packs.pack = loose_packs.pack
		CROSS JOIN packs ON packs.id = loose_packs.pack WHERE gone = 0`).scan(&size, nil)
	if err != nil {
		return 0, fmt.Errorf("look up rewritten packs: %w", err)
	}
	return size, nil
}

// MoveFrames makes a move.
func (c *Catalog) MoveFrames(ctx context.Context, m *index.Move) (moved []index.NARID, err error) {
	if err := atMost(len(m.NARs)); err != nil {
		return nil, err
	}
	err = c.write(ctx, func(x *change) (err error) {
		moved, err = moveFrames(x, m)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("move frames: %w", err)
	}
	return moved, nil
}

func moveFrames(x *change, m *index.Move) (moved []index.NARID, err error) {
	var from, to int64
	const idOf = "SELECT id FROM packs WHERE name = ?"
	ok, err := x.get(idOf, []any{m.From}, &from)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%w: pack %s", catalog.ErrGone, m.From)
	}
	if ok, err = x.get(idOf, []any{m.To.Name}, &to); err == nil && !ok {
		to, err = addPack(x, m.To)
	}
	if err != nil {
		return nil, err
	}
	for _, n := range m.NARs {
		changed, err := x.count(`UPDATE nar_packs SET pack = ? WHERE nar = ? AND idx = ? AND pack = ?
			AND EXISTS (SELECT 1 FROM recipes WHERE recipes.nar = nar_packs.nar AND recipe = ?)`, to, int64(n.ID), n.Index, from, n.Was)
		if err != nil {
			return nil, err
		}
		if changed == 0 {
			continue
		}
		if err := x.exec("UPDATE recipes SET recipe = ? WHERE nar = ?", n.Recipe, int64(n.ID)); err != nil {
			return nil, err
		}
		if err := x.exec("UPDATE nars SET tag = ? WHERE id = ?", n.Tag, int64(n.ID)); err != nil {
			return nil, err
		}
		moved = append(moved, n.ID)
	}
	if len(moved) == 0 {
		return nil, fmt.Errorf("%w: all NARs of pack %s", catalog.ErrGone, m.From)
	}
	if err := x.exec("INSERT INTO thin_packs VALUES (?, 1, 0) ON CONFLICT DO UPDATE SET gone = gone + 1", to); err != nil {
		return nil, err
	}
	for _, k := range m.Chunks {
		if err := x.exec(`UPDATE chunks SET pack = ?, "offset" = ? WHERE hash = ? AND pack = ? AND "offset" = ?`, to, k.To, k.Hash[:], from, k.From); err != nil {
			return nil, err
		}
		if err := x.exec(`DELETE FROM chunks WHERE pack = ? AND "offset" = ?`, from, k.From); err != nil {
			return nil, err
		}
	}
	return moved, x.exec("UPDATE packs SET retired = 1 WHERE id = ?", from)
}

// addPack adds a new pack, unless another NAR has brought it.
func addPack(x *change, p index.Pack) (id int64, err error) {
	if _, err := x.get("INSERT INTO packs (name, size) VALUES (?, ?) ON CONFLICT DO UPDATE SET size = excluded.size RETURNING id", []any{p.Name, p.Size}, &id); err != nil {
		return 0, err
	}
	return id, x.exec("INSERT INTO loose_packs (pack) VALUES (?) ON CONFLICT DO NOTHING", id)
}

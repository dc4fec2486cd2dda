package localstore

import (
	"context"
	"database/sql"
	"strings"

	"firn/nix"
)

// newestQuery gives signed paths, which some cache has, and then others.
const newestQuery = `
	select path from (select path from ValidPaths where sigs <> '' and path not like '%.drv' order by id desc limit ?1)
	union all
	select path from (select path from ValidPaths where coalesce(sigs, '') = '' and path not like '%.drv' order by id desc limit ?1)`

// Newest returns some of the paths that came last, but no derivations: up to n that have signatures, then up to n that have none.
func (s *Store) Newest(ctx context.Context, n int) ([]nix.StorePath, error) {
	return read(ctx, s, func(d *database, _ uint64) ([]nix.StorePath, error) { return s.newest(ctx, d, n) })
}

func (s *Store) newest(ctx context.Context, d *database, n int) ([]nix.StorePath, error) {
	if err := d.takeConn(ctx); err != nil {
		return nil, err
	}
	defer d.returnConn()
	rows, err := d.sql.QueryContext(ctx, newestQuery, n)
	if err != nil {
		return nil, d.fail("query", err)
	}
	defer rows.Close()
	var paths []nix.StorePath
	for rows.Next() {
		var text sql.NullString
		if err := rows.Scan(&text); err != nil {
			return nil, d.fail("query", err)
		}
		base, _ := strings.CutPrefix(text.String, string(s.storeDir)+"/")
		if path, err := s.storeDir.ParseBase(base); err == nil { // what is no path cannot be asked for
			paths = append(paths, path)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, d.fail("query", err)
	}
	return paths, nil
}

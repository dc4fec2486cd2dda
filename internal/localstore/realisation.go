package localstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"firn/internal/cache"
	"firn/nix"
)

// The tables of Nix's experiment with content-addressed derivations, which are there once its feature
// ca-derivations was on: Realisations up to Nix 2.34, with "sha256:<base 16>" for a derivation
// and the id of a valid path; BuildTraceV3 from 2.35 on, with texts. (ca-specific-schema.sql of either.)
const (
	realisationQuery = `
		select r.id, v.path, r.signatures
		from Realisations as r join ValidPaths as v on v.id = r.outputPath
		where r.drvPath = ? and r.outputName = ?
		limit 1`

	dependenciesQuery = `
		select r.drvPath, r.outputName, v.path
		from RealisationsRefs as f
			join Realisations as r on r.id = f.realisationReference
			join ValidPaths as v on v.id = r.outputPath
		where f.referrer = ?`

	buildTraceQuery = `
		select outputPath, signatures
		from BuildTraceV3
		where drvPath in (?, ?) and outputName = ?
		limit 1`
)

// Realisation returns what the database says a derivation output was built to.
func (s *Store) Realisation(ctx context.Context, id nix.RealisationID) (*nix.Realisation, error) {
	return readTable(ctx, s, "Realisations", func(d *database) (*nix.Realisation, error) { return s.realisation(ctx, d, id) })
}

func (s *Store) realisation(ctx context.Context, d *database, id nix.RealisationID) (*nix.Realisation, error) {
	fail := func(err error) (*nix.Realisation, error) {
		return nil, fmt.Errorf("look up realisation %v: %w", id, err)
	}
	tx, err := d.sql.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fail(d.fail("query", err))
	}
	defer tx.Rollback()

	var row int64
	var outPath string
	var signatures sql.NullString
	err = tx.QueryRowContext(ctx, realisationQuery, drvHashText(id), id.Output).Scan(&row, &outPath, &signatures)
	if errors.Is(err, sql.ErrNoRows) {
		return fail(cache.ErrNotFound)
	}
	if err != nil {
		return fail(d.fail("query", err))
	}
	r := &nix.Realisation{ID: id, Signatures: parseSignatures(strings.Fields(signatures.String))}
	if r.OutPath, err = s.storeDir.ParsePath(outPath); err != nil {
		return fail(notFoundBecause(err))
	}
	if r.Dependencies, err = s.dependencies(ctx, tx, row); err != nil {
		return fail(err)
	}
	return r, nil
}

// dependencies returns the realisations that the one of the given row was made with; nil if there are none.
func (s *Store) dependencies(ctx context.Context, tx *sql.Tx, row int64) (map[nix.RealisationID]nix.StorePath, error) {
	rows, err := tx.QueryContext(ctx, dependenciesQuery, row)
	if err != nil {
		return nil, fmt.Errorf("query: %w: %w", cache.ErrUnavailable, err)
	}
	defer rows.Close()
	var all map[nix.RealisationID]nix.StorePath
	for rows.Next() {
		var drv, output, path string
		if err := rows.Scan(&drv, &output, &path); err != nil {
			return nil, notFoundBecause(err)
		}
		id, err := nix.ParseRealisationID(drv + "!" + output)
		if err != nil {
			return nil, notFoundBecause(err)
		}
		outPath, err := s.storeDir.ParsePath(path)
		if err != nil {
			return nil, notFoundBecause(err)
		}
		if all == nil {
			all = map[nix.RealisationID]nix.StorePath{}
		}
		all[id] = outPath
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("query: %w: %w", cache.ErrUnavailable, err)
	}
	return all, nil
}

// BuildTrace returns what the database says a derivation output was built to.
func (s *Store) BuildTrace(ctx context.Context, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	return readTable(ctx, s, "BuildTraceV3", func(d *database) (*nix.BuildTrace, error) { return s.buildTrace(ctx, d, drv, output) })
}

func (s *Store) buildTrace(ctx context.Context, d *database, drv nix.StorePath, output string) (*nix.BuildTrace, error) {
	fail := func(err error) (*nix.BuildTrace, error) {
		return nil, fmt.Errorf("look up build trace of %v!%s: %w", drv, output, err)
	}
	var outPath string
	var signatures sql.NullString
	err := d.sql.QueryRowContext(ctx, buildTraceQuery, drv.Base(), drv.String(), output).Scan(&outPath, &signatures)
	if errors.Is(err, sql.ErrNoRows) {
		return fail(cache.ErrNotFound)
	}
	if err != nil {
		return fail(d.fail("query", err))
	}
	t := &nix.BuildTrace{Drv: drv, Output: output, Signatures: parseSignatures(strings.Fields(signatures.String))}
	if t.OutPath, err = s.storeDir.ParseBase(strings.TrimPrefix(outPath, string(s.storeDir)+"/")); err != nil {
		return fail(notFoundBecause(err))
	}
	return t, nil
}

// readTable is read, in a turn, of a table that the database may not have: then it is
// cache.ErrNotFound. Nix makes these tables when its experiment is turned on, so they are looked
// for every time; hardly anybody asks.
func readTable[T any](ctx context.Context, s *Store, name string, ask func(*database) (T, error)) (T, error) {
	answer, err := read(ctx, s, func(d *database, _ uint64) (none T, err error) {
		if err := d.takeConn(ctx); err != nil {
			return none, err
		}
		defer d.returnConn()
		has, err := d.hasTable(ctx, name)
		if err == nil && !has {
			err = cache.ErrNotFound
		}
		if err != nil {
			return none, fmt.Errorf("look up table %s: %w", name, err)
		}
		return ask(d)
	})
	if errors.Is(err, errAskDaemon) {
		err = notFoundBecause(err)
	}
	return answer, err
}

// drvHashText is how a derivation is named in Realisations.
func drvHashText(id nix.RealisationID) string {
	return id.DrvHash.Algorithm().String() + ":" + id.DrvHash.Base16()
}

// notFoundBecause makes what cannot be used look absent.
func notFoundBecause(err error) error { return fmt.Errorf("%w: %w", cache.ErrNotFound, err) }

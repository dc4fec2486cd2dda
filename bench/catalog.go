//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"firn/nix"
)

// A catalog of a million pushed paths answers about as fast as one of ten thousand. Both are filled here, without any bytes of NARs.
// Every narinfo is asked for once after a start: one that was asked for lately is in memory, however many there are.

// catalogPart is what --only calls this.
const catalogPart = "catalog"

const (
	// catalogStarts is how often firn is started over each catalog; catalogStartsQuick in a quick run.
	catalogStarts, catalogStartsQuick = 5, 2
	// catalogSample is the number of narinfos, spread over all paths, that are asked for after each start.
	catalogSample = 10_000
)

// catalogPaths are the sizes of the catalogs.
var catalogPaths = []int{10_000, 1_000_000}

var (
	metricLookups = Metric{Key: "lookups_per_s", Title: "narinfos, each for the first time, 64 connections", Unit: "1/s", Scale: 1, Higher: true}
	metricAbsent  = Metric{Key: "absent_per_s", Title: "narinfo misses, each for the first time, 64 connections", Unit: "1/s", Scale: 1, Higher: true}
	metricCatalog = Metric{Key: "resident_peak_bytes", Title: "resident at most", Unit: "MB", Scale: 1e-6, Digits: 1}
)

func catalogName(paths int) string { return fmt.Sprintf("firn, catalog of %d paths", paths) }

// catalogBars are the bars of catalogs; none when none were measured.
func catalogBars(s Samples) []Bar {
	small, large := catalogName(catalogPaths[0]), catalogName(catalogPaths[1])
	if len(s[large]) == 0 {
		return nil
	}
	var all []Bar
	for _, m := range []Metric{metricLookups, metricAbsent} {
		all = append(all, atLeastRatio(m.Title+": of 1,000,000 pushed paths, to 10,000", medianRatio(s.of(large, m.Key), s.of(small, m.Key)), 0.8).note("catalogs"))
	}
	return all
}

// catalogRows are the table of catalogs, nil where none were measured.
func (r *Report) catalogRows() [][]string {
	var specs []Spec
	for _, n := range catalogPaths {
		specs = append(specs, Spec{Name: catalogName(n)})
	}
	if len(r.Samples[specs[0].Name]) == 0 {
		return nil
	}
	return r.table(specs, []Metric{metricLookups, metricAbsent, metricCatalog})
}

// catalogs measures firn over catalogs of all catalogPaths, in turns.
func (b *shootout) catalogs(ctx context.Context, opts Options, program string) error {
	all := make([]*filled, len(catalogPaths))
	empty, err := emptyCatalog(ctx, program, b.work)
	if err != nil {
		return err
	}
	for i, n := range catalogPaths {
		if all[i], err = fillCatalog(ctx, opts.Cache, empty, n, b.progress); err != nil {
			return fmt.Errorf("fill %s: %w", catalogName(n), err)
		}
	}
	starts := catalogStarts
	if opts.Quick {
		starts = catalogStartsQuick
	}
	for range starts {
		for i, n := range catalogPaths {
			if err := b.catalogOnce(ctx, all[i], depotSpec(catalogName(n), "", program, all[i].state)); err != nil {
				return fmt.Errorf("%s: %w", catalogName(n), err)
			}
		}
	}
	for _, n := range catalogPaths {
		for _, m := range []Metric{metricLookups, metricAbsent} {
			b.progress("%s: %s %s %s", catalogName(n), m.Title, m.format(median(b.samples.of(catalogName(n), m.Key))), m.Unit)
		}
	}
	return nil
}

// catalogOnce starts firn and asks for narinfos that are there, and for some that are not.
func (b *shootout) catalogOnce(ctx context.Context, f *filled, spec Spec) error {
	s, err := start(ctx, b.client, spec, b.work)
	if err != nil {
		return err
	}
	defer s.stop()
	var there, absent []Request
	for _, hash := range f.hashes {
		there = append(there, s.get(narinfoPath(hash), http.StatusOK, -1))
		rand.Read(hash[:])
		absent = append(absent, s.get(narinfoPath(hash), http.StatusNotFound, -1))
	}
	for _, m := range []struct {
		Metric
		requests []Request
	}{{metricLookups, there}, {metricAbsent, absent}} {
		tally, err := b.client.Run(ctx, Load{Addr: s.Addr, Connections: rateConnections, Discard: DiscardCopy, Requests: m.requests})
		if err != nil {
			return fmt.Errorf("%s: %w%s", m.Title, err, s.logTail())
		}
		b.samples.add(spec.Name, m.Key, float64(tally.Requests)/tally.Elapsed.Seconds())
	}
	memory, err := memoryOf(s.PID)
	if err != nil {
		return err
	}
	b.samples.add(spec.Name, metricCatalog.Key, float64(memory.Peak))
	return nil
}

// filled is a state directory with a catalog, and no packs.
type filled struct {
	state  string
	hashes []nix.PathHash // a sample
}

// fillCatalogs makes all catalogs in dir, as far as they are not there.
func fillCatalogs(ctx context.Context, dir, program, work string, progress func(string, ...any)) error {
	empty, err := emptyCatalog(ctx, program, work)
	if err != nil {
		return err
	}
	for _, n := range catalogPaths {
		if _, err := fillCatalog(ctx, dir, empty, n, progress); err != nil {
			return fmt.Errorf("fill %s: %w", catalogName(n), err)
		}
	}
	return nil
}

// emptyCatalog makes the state of a server to which nothing was pushed yet: it has all tables, and the cache main.
func emptyCatalog(ctx context.Context, program, work string) (state string, err error) {
	if state, err = os.MkdirTemp(work, "catalog-"); err != nil {
		return "", err
	}
	client, err := NewClient()
	if err != nil {
		return "", err
	}
	s, err := start(ctx, client, depotSpec("firn", "", program, state), work)
	if err != nil {
		return "", err
	}
	s.stop()
	return state, nil
}

// fillCatalog makes the state of a server to which n paths were pushed, from that of an empty one, in dir, or finds it there.
// It is named after the tables, so that one of another version of firn is never taken.
func fillCatalog(ctx context.Context, dir, empty string, n int, progress func(string, ...any)) (*filled, error) {
	tables, err := tablesOf(ctx, catalogOf(empty))
	if err != nil {
		return nil, err
	}
	version := sha256.Sum256([]byte(tables))
	state := filepath.Join(dir, fmt.Sprintf("shootout-catalog-%d-%x", n, version[:4]))
	if _, err := os.Stat(state); err != nil {
		progress("generating a catalog of %d paths", n)
		begin := time.Now()
		work, err := os.MkdirTemp(dir, ".shootout-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(work)
		if err := output(ctx, "cp", "-a", empty+"/.", work); err != nil {
			return nil, err
		}
		if err := insertPaths(ctx, catalogOf(work), n); err != nil {
			return nil, err
		}
		if err := os.Rename(work, state); err != nil {
			return nil, err
		}
		progress("a catalog of %d paths took %.1f s", n, time.Since(begin).Seconds())
	}
	hashes, err := sampleHashes(ctx, catalogOf(state))
	return &filled{state, hashes}, err
}

// tablesOf are the statements that made a database.
func tablesOf(ctx context.Context, file string) (text string, err error) {
	err = withDatabase(file, "mode=ro", func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT group_concat(sql, ';') FROM (SELECT sql FROM sqlite_schema ORDER BY name)").Scan(&text)
	})
	return text, err
}

func catalogOf(state string) string { return filepath.Join(state, "depot", "catalog.db") }

// insertPaths publishes n paths, of the size that they have in binary caches, with a NAR each. Their hashes are random, as everywhere.
func insertPaths(ctx context.Context, file string, n int) error {
	const (
		numbers   = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?1) "
		reference = "00000000000000000000000000000000-some-package-1.2.3"
	)
	return withDatabase(file, "_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=cache_size(-1000000)", func(db *sql.DB) error {
		for _, text := range []string{
			numbers + "INSERT INTO nars (id, hash, size, file_size, tag, added) SELECT i, randomblob(32), 100000, 30000, '0123456789abcdef', 1700000000 FROM n",
			numbers + `INSERT INTO paths (cache, hash, name, nar, refs, deriver, sigs, ca, registered)
				SELECT (SELECT id FROM caches WHERE name = 'main'), randomblob(20), 'some-package-1.2.3', i, '` + reference + " " + reference + " " + reference + "', '" +
				reference + `.drv', 'cache.example.org-1:' || printf('%.86c', 'A') || '==', '', 1700000000 FROM n`,
			"PRAGMA journal_mode = wal", // as firn leaves it
		} {
			if _, err := db.ExecContext(ctx, text, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// sampleHashes are path hashes from all over a catalog.
func sampleHashes(ctx context.Context, file string) (hashes []nix.PathHash, err error) {
	err = withDatabase(file, "mode=ro", func(db *sql.DB) error {
		rows, err := db.QueryContext(ctx, "SELECT hash FROM paths WHERE nar % (SELECT max(1, max(id) / ?1) FROM nars) = 0 LIMIT ?1", catalogSample)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var hash []byte
			if err := rows.Scan(&hash); err != nil {
				return err
			}
			hashes = append(hashes, nix.PathHash(hash))
		}
		return rows.Err()
	})
	return hashes, err
}

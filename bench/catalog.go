//go:build linux

package main

import (
	"context"
	"crypto/rand"
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
		all = append(all, atLeastRatio(m.Title+": of 1,000,000 pushed paths, to 10,000", medianRatio(s.of(large, m.Key), s.of(small, m.Key)), 0.8))
	}
	return all
}

// catalogRows are the table of catalogs, nil where none were measured.
func (r *Report) catalogRows() [][]string {
	head := []string{""}
	for _, n := range catalogPaths {
		head = append(head, catalogName(n))
	}
	if len(r.Samples[head[1]]) == 0 {
		return nil
	}
	rows := [][]string{head}
	for _, m := range []Metric{metricLookups, metricAbsent, metricCatalog} {
		row := []string{m.Title + ", " + m.Unit}
		for _, name := range head[1:] {
			row = append(row, r.cell(&Server{Spec: Spec{Name: name}}, m))
		}
		rows = append(rows, row)
	}
	return rows
}

// catalogs measures firn over catalogs of all catalogPaths, in turns.
func (b *shootout) catalogs(ctx context.Context, opts Options, program string) error {
	all := make([]*filled, len(catalogPaths))
	for i, n := range catalogPaths {
		var err error
		if all[i], err = b.fillCatalog(ctx, opts.Cache, program, n); err != nil {
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
	defer os.RemoveAll(s.dir)
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

// fillCatalog makes the state of a server to which n paths were pushed in dir, or finds it there.
func (b *shootout) fillCatalog(ctx context.Context, dir, program string, n int) (*filled, error) {
	state := filepath.Join(dir, fmt.Sprintf("shootout-catalog-%d", n))
	if _, err := os.Stat(state); err != nil {
		b.progress("generating a catalog of %d paths", n)
		begin := time.Now()
		work, err := os.MkdirTemp(dir, ".shootout-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(work)
		s, err := start(ctx, b.client, depotSpec("firn", "", program, work), b.work) // which makes the tables, and the cache main
		if err != nil {
			return nil, err
		}
		s.stop()
		os.RemoveAll(s.dir)
		if err := insertPaths(ctx, catalogOf(work), n); err != nil {
			return nil, err
		}
		if err := os.Rename(work, state); err != nil {
			return nil, err
		}
		b.progress("it took %.1f s", time.Since(begin).Seconds())
	}
	hashes, err := sampleHashes(ctx, catalogOf(state))
	return &filled{state, hashes}, err
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

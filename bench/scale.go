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
	"strings"

	"firn/nix"
)

// million is the title of the section about a million paths.
const million = "A million store paths"

// scaleSample is the number of narinfos, spread over all paths, that are asked for after each
// start.
const scaleSample = 10_000

// scale measures firn over a store and over a depot of a million paths. Only their databases are
// made: the NARs are not there.
func (b *bench) scale(ctx context.Context, _ *material) error {
	few, many := 10_000, 1_000_000
	if b.opts.Quick {
		few, many = 1_000, 10_000
	}
	root, hashes, err := b.largeStore(ctx, many)
	if err != nil {
		return err
	}
	states := make(map[Column][2]string)
	samples := make(map[Column][2][]nix.PathHash)
	for _, p := range b.programs {
		var state [2]string
		var sample [2][]nix.PathHash
		for i, n := range []int{few, many} {
			if state[i], sample[i], err = b.largeDepot(ctx, p, n); err != nil {
				return err
			}
		}
		states[p.column], samples[p.column] = state, sample
	}
	for round := range b.opts.Runs {
		b.progress("a million paths: round %d of %d", round+1, b.opts.Runs)
		err := turns(round, b.programs, func(p program) error {
			state, sample := states[p.column], samples[p.column]
			store, err := b.lookups(ctx, p.serve("", "--store", root), hashes)
			if err != nil {
				return err
			}
			small, err := b.lookups(ctx, p.serve(state[0], "--store", "off"), sample[0])
			if err != nil {
				return err
			}
			depot, err := b.lookups(ctx, p.serve(state[1], "--store", "off"), sample[1])
			for _, v := range []struct {
				what  string
				unit  Unit
				bar   Bar
				value float64
			}{
				{"start over a live store", milliseconds, atMost(0.1, ""), store.start},
				{"start over a depot", milliseconds, atMost(0.1, ""), depot.start},
				{"narinfos of a depot, each for the first time, 64 connections", perSecond, Bar{}, depot.hits},
				{"the same, compared with 10,000 paths", times, atLeast(0.8, ""), depot.hits / small.hits},
				{"narinfos that a depot does not have, 64 connections", perSecond, Bar{}, depot.misses},
				{"the same of misses, compared with 10,000 paths", times, atLeast(0.8, ""), depot.misses / small.misses},
				{"resident at most, live store, after 20,000 requests", megabytes, atMost(256e6, ""), store.peak},
				{"resident at most, depot, after 20,000 requests", megabytes, atMost(256e6, ""), depot.peak},
			} {
				b.results.row(million, v.what, v.unit, v.bar).add(p.column, v.value)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// looked is how long firn takes to start, what it keeps resident at most, and the narinfos that it
// finds, and does not find, in a second.
type looked struct{ start, peak, hits, misses float64 }

// lookups starts firn and asks for narinfos that are there, each once, so that none is in firn's
// memory, and for as many that are not.
func (b *bench) lookups(ctx context.Context, of command, hashes []nix.PathHash) (l looked, err error) {
	s, err := b.start(ctx, of, nil)
	if err != nil {
		return l, err
	}
	defer s.stop()
	var hits, misses []request
	for _, hash := range hashes {
		hits = append(hits, get(s.addr, narinfoPath(hash), "", http.StatusOK, -1))
		rand.Read(hash[:])
		misses = append(misses, get(s.addr, narinfoPath(hash), "", http.StatusNotFound, -1))
	}
	l.start = s.took.Seconds()
	n, took, err := run(ctx, s.addr, rateConnections, hits, 0)
	l.hits = float64(n) / took.Seconds()
	if err == nil {
		n, took, err = run(ctx, s.addr, rateConnections, misses, 0)
		l.misses = float64(n) / took.Seconds()
	}
	if err == nil {
		_, l.peak, err = memoryOf(s.pid)
	}
	return l, s.explain(err)
}

// quickly is for filling databases that no reader sees before they are whole.
const quickly = "_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=cache_size(-1000000)"

// largeStore makes a store of many paths whose files do not exist, and returns the path hashes of
// some. Path hashes are random hexadecimal digits without the e, which Nix's base 32 does not have:
// the index is as scattered as a real one. A path refers to two that were registered shortly before
// it.
func (b *bench) largeStore(ctx context.Context, n int) (root string, hashes []nix.PathHash, err error) {
	root, err = b.once(fmt.Sprintf("bench-store-%d", n), func(work string) error {
		if err := runIn(ctx, work, "nix-store", "--store", work, "--init"); err != nil {
			return err
		}
		if err := os.Chmod(work, 0o755); err != nil {
			return err
		}
		return withDatabase(databaseOf(work), quickly, func(db *sql.DB) error {
			_, err := db.ExecContext(ctx, fmt.Sprintf(`
				WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
				INSERT INTO ValidPaths (id, path, hash, registrationTime, narSize)
				SELECT i, '/nix/store/' || replace(lower(hex(randomblob(16))), 'e', 'z') || '-generated-' || i,
					'sha256:' || lower(hex(randomblob(32))), 1700000000, 8 * (14 + abs(random()) %% 1000000) FROM n;
				INSERT INTO Refs (referrer, reference) SELECT id, id - 3*j*j FROM ValidPaths CROSS JOIN (SELECT 1 AS j UNION SELECT 2) WHERE id > 3*j*j;
				PRAGMA journal_mode = wal`, n)) // as Nix leaves it
			return err
		})
	})
	if err != nil {
		return "", nil, err
	}
	err = withDatabase(databaseOf(root), "mode=ro", func(db *sql.DB) error {
		return each(ctx, db, fmt.Sprintf("SELECT path FROM ValidPaths WHERE id %% %d = 0", max(1, n/scaleSample)), func(text string) error {
			path, err := nix.DefaultStoreDir.ParsePath(text)
			hashes = append(hashes, path.Hash())
			return err
		})
	})
	return root, hashes, err
}

// largeDepot makes the state of a server to which n paths were pushed, with a catalog and no packs,
// and returns the path hashes of some. It is named after the tables, so that one of a build of firn
// with other tables is never taken.
func (b *bench) largeDepot(ctx context.Context, p program, n int) (state string, hashes []nix.PathHash, err error) {
	empty, err := os.MkdirTemp(b.work, "empty-")
	if err != nil {
		return "", nil, err
	}
	s, err := b.start(ctx, p.serve(empty, "--store", "off"), nil) // which makes the tables, and the cache main
	if err != nil {
		return "", nil, err
	}
	s.stop()
	catalog := filepath.Join("depot", "catalog.db")
	var tables []string
	err = withDatabase(filepath.Join(empty, catalog), "mode=ro", func(db *sql.DB) error {
		return each(ctx, db, "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name", func(text string) error {
			tables = append(tables, text)
			return nil
		})
	})
	if err != nil {
		return "", nil, err
	}
	version := sha256.Sum256([]byte(strings.Join(tables, ";")))
	state, err = b.once(fmt.Sprintf("bench-depot-%d-%x", n, version[:4]), func(work string) error {
		if err := runIn(ctx, work, "cp", "-a", empty+"/.", work); err != nil {
			return err
		}
		return withDatabase(filepath.Join(work, catalog), quickly, func(db *sql.DB) error { return insertPaths(ctx, db, n) })
	})
	if err != nil {
		return "", nil, err
	}
	err = withDatabase(filepath.Join(state, catalog), "mode=ro", func(db *sql.DB) error {
		return each(ctx, db, fmt.Sprintf("SELECT hash FROM paths WHERE nar %% %d = 0", max(1, n/scaleSample)), func(hash []byte) error {
			hashes = append(hashes, nix.PathHash(hash))
			return nil
		})
	})
	return state, hashes, err
}

// insertPaths publishes n paths, of the size that they have in binary caches, with a NAR each.
// Hashes are random, as everywhere.
func insertPaths(ctx context.Context, db *sql.DB, n int) error {
	const reference = "00000000000000000000000000000000-some-package-1.2.3"
	numbers := fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) ", n)
	for _, table := range []struct {
		name   string
		values map[string]string // of columns that matter
	}{
		{"nars", map[string]string{"id": "i", "hash": "randomblob(32)", "size": "100000", "file_size": "30000", "tag": "'0123456789abcdef'", "added": "1700000000"}},
		{"paths", map[string]string{
			"cache": "(SELECT id FROM caches WHERE name = 'main')", "hash": "randomblob(20)", "name": "'some-package-1.2.3'", "nar": "i",
			"refs":    "'" + reference + " " + reference + " " + reference + "'",
			"deriver": "'" + reference + ".drv'", "sigs": "'cache.example.org-1:' || printf('%.86c', 'A') || '=='", "registered": "1700000000",
		}},
	} {
		// Columns that this does not know get their default, or what is least of their type: builds
		// of firn differ in their tables.
		var columns, values []string
		err := each(ctx, db, fmt.Sprintf(`SELECT name || ' ' || CASE WHEN NOT "notnull" OR dflt_value IS NOT NULL THEN ''
			WHEN type = 'TEXT' THEN '''''' WHEN type = 'BLOB' THEN 'x''''' ELSE '0' END FROM pragma_table_info('%s')`, table.name), func(text string) error {
			name, value, _ := strings.Cut(text, " ")
			if known, ok := table.values[name]; ok {
				value = known
			}
			if value != "" {
				columns, values = append(columns, name), append(values, value)
			}
			return nil
		})
		if err != nil {
			return err
		}
		text := fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM n", table.name, strings.Join(columns, ", "), strings.Join(values, ", "))
		if _, err := db.ExecContext(ctx, numbers+text); err != nil {
			return err
		}
	}
	_, err := db.ExecContext(ctx, "PRAGMA journal_mode = wal") // as firn leaves it
	return err
}

// each calls f with each row of a query, which has one column.
func each[T any](ctx context.Context, db *sql.DB, query string, f func(T) error) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return err
		}
		if err := f(v); err != nil {
			return err
		}
	}
	return rows.Err()
}

//go:build linux

package main

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"firn/nix"
)

// A store is as large as its database: starting to serve one of a million paths may cost no more than one of a tenth.
// Only the databases are made, by Nix, and filled here; the paths that they name do not exist.

const (
	// referencesPerPath is how many references a generated path has.
	referencesPerPath = 2
	// scaleStarts is how often firn is started over each database.
	scaleStarts = 3
	// scaleSample is the number of narinfos that are asked for before memory is looked at.
	scaleSample = 10_000
)

// scalePaths are the sizes of the generated databases: a large machine's, and ten times that.
var scalePaths = []int{100_000, 1_000_000}

// What is measured of firn over a generated database. The server's name is scaleName of its size.
var (
	metricScaleStart = Metric{Key: "start_s", Title: "start to first narinfo", Unit: "ms", Scale: 1e3, Digits: 1}
	metricScalePeak  = Metric{Key: "resident_peak_bytes", Title: "resident at most, after 10,000 narinfos", Unit: "MB", Scale: 1e-6, Digits: 1}
)

func scaleName(paths int) string { return fmt.Sprintf("firn over %d paths", paths) }

// scaleRows are the table of generated databases, nil where none were measured.
func (r *Report) scaleRows() [][]string {
	var specs []Spec
	for _, n := range scalePaths {
		specs = append(specs, Spec{Name: scaleName(n)})
	}
	if len(r.Samples[specs[0].Name]) == 0 {
		return nil
	}
	return r.table(specs, []Metric{metricScaleStart, metricScalePeak})
}

// scale measures firn over databases of all scalePaths, in turns.
func (b *shootout) scale(ctx context.Context, cache, program, key string) error {
	stores := make([]*generated, len(scalePaths))
	for i, n := range scalePaths {
		var err error
		if stores[i], err = generateStore(ctx, cache, n, b.progress); err != nil {
			return err
		}
	}
	for range scaleStarts {
		for i, n := range scalePaths {
			if err := b.scaleOnce(ctx, stores[i], firnSpec(scaleName(n), "", program, stores[i].root, key)); err != nil {
				return fmt.Errorf("%s: %w", scaleName(n), err)
			}
		}
	}
	for _, n := range scalePaths {
		for _, m := range []Metric{metricScaleStart, metricScalePeak} {
			b.progress("%s: %s %s %s", m.Title, scaleName(n), m.format(median(b.samples.of(scaleName(n), m.Key))), m.Unit)
		}
	}
	return nil
}

// scaleOnce starts firn, waits for a narinfo, and asks for many.
func (b *shootout) scaleOnce(ctx context.Context, store *generated, spec Spec) error {
	begin := time.Now()
	s, err := start(ctx, b.client, spec, b.work)
	if err != nil {
		return err
	}
	defer s.stop()
	var requests []Request
	for _, path := range store.paths {
		requests = append(requests, s.get(narinfoPath(path.Hash()), http.StatusOK, -1))
	}
	load := Load{Addr: s.Addr, Connections: 1, Discard: DiscardCopy, Requests: requests[:1]}
	if _, err := b.client.Run(ctx, load); err != nil {
		return fmt.Errorf("%w%s", err, s.logTail())
	}
	b.samples.add(spec.Name, metricScaleStart.Key, time.Since(begin).Seconds())
	load.Connections, load.Requests = 16, requests
	if _, err := b.client.Run(ctx, load); err != nil {
		return fmt.Errorf("%w%s", err, s.logTail())
	}
	m, err := memoryOf(s.PID)
	if err != nil {
		return err
	}
	b.samples.add(spec.Name, metricScalePeak.Key, float64(m.Peak))
	return nil
}

// generated is a store with a database and no files.
type generated struct {
	root  string
	paths []nix.StorePath // a sample
}

// generateStore makes a store of n paths in dir, or finds it there.
func generateStore(ctx context.Context, dir string, n int, progress func(string, ...any)) (*generated, error) {
	root := filepath.Join(dir, fmt.Sprintf("shootout-database-%d-references-%d", n, referencesPerPath))
	if _, err := os.Stat(root); err != nil {
		progress("generating a database of %d paths", n)
		work, err := os.MkdirTemp(dir, ".shootout-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(work)
		if text, err := exec.CommandContext(ctx, "nix-store", "--store", work, "--init").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("make database: nix-store --init: %w\n%s", err, bytes.TrimSpace(text))
		}
		if err := fillDatabase(ctx, databaseOf(work), n); err != nil {
			return nil, fmt.Errorf("make database of %d paths: %w", n, err)
		}
		if err := os.Chmod(work, 0o755); err != nil {
			return nil, err
		}
		if err := os.Rename(work, root); err != nil {
			return nil, err
		}
	}
	paths, err := samplePaths(ctx, databaseOf(root))
	if err != nil {
		return nil, fmt.Errorf("read database of %d paths: %w", n, err)
	}
	return &generated{root: root, paths: paths}, nil
}

func databaseOf(root string) string {
	return filepath.Join(root, "nix", "var", "nix", "db", "db.sqlite")
}

// fillDatabase registers n paths in an empty database of Nix.
// Path hashes are random hexadecimal digits without the e, which Nix's base 32 does not have: the index is as scattered as a real one.
// A path refers to some that were registered shortly before it.
func fillDatabase(ctx context.Context, file string, n int) error {
	return withDatabase(file, "_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=cache_size(-1000000)", func(db *sql.DB) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, `
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?)
			INSERT INTO ValidPaths (id, path, hash, registrationTime, narSize)
			SELECT i, '/nix/store/' || replace(lower(hex(randomblob(16))), 'e', 'z') || '-generated-' || i,
				'sha256:' || lower(hex(randomblob(32))), 1700000000, 8 * (14 + abs(random()) % 1000000)
			FROM n`, n); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `
			WITH RECURSIVE k(j) AS (SELECT 1 UNION ALL SELECT j+1 FROM k WHERE j < ?)
			INSERT INTO Refs (referrer, reference)
			SELECT id, id - 3*j*j FROM ValidPaths CROSS JOIN k WHERE id > 3*j*j`, referencesPerPath); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		_, err = db.ExecContext(ctx, "PRAGMA journal_mode = wal") // as Nix leaves it
		return err
	})
}

// samplePaths are paths from all over a database.
func samplePaths(ctx context.Context, file string) (paths []nix.StorePath, err error) {
	err = withDatabase(file, "mode=ro", func(db *sql.DB) error {
		rows, err := db.QueryContext(ctx, `
			SELECT path FROM ValidPaths
			WHERE id % (SELECT max(1, max(id) / ?) FROM ValidPaths) = 0 LIMIT ?`, scaleSample, scaleSample)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var text string
			if err := rows.Scan(&text); err != nil {
				return err
			}
			path, err := nix.DefaultStoreDir.ParsePath(text)
			if err != nil {
				return err
			}
			paths = append(paths, path)
		}
		return rows.Err()
	})
	return paths, err
}

func withDatabase(file, query string, use func(*sql.DB) error) error {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: file, RawQuery: query}).String())
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	return use(db)
}

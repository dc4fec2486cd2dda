package sqlite

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"firn/internal/catalog/catalogtest"
	"firn/internal/depot/index"
	"firn/internal/depot/index/indextest"
)

// bigTables may have millions of rows.
var bigTables = []string{"packs", "chunks", "nars", "nar_packs", "recipes", "listings", "uploads", "paths", "debug_info", "files", "thin_packs", "referenced", "path_refs", "signatures"}

// exempt has statements that may do what costs more, the more there is, by how they begin, with how the steps for that begin.
var exempt = map[string][]string{
	// Counting everything, and the paths of a cache.
	"SELECT (SELECT count(*) FROM caches": {"SCAN chunks", "SCAN nars", "SCAN packs", "SCAN paths", "SCAN thin_packs", "USE TEMP B-TREE FOR ORDER BY"}, // the last: of what is unpublished
	"SELECT 1, coalesce(sum(n), 0)":       {"SCAN paths USING COVERING INDEX paths_by_nar"},
	// A few of what a deleted cache has, and the record of one that has nothing.
	"DELETE FROM paths WHERE cache = ?1 AND hash IN":   {"SEARCH paths USING COVERING INDEX"},
	"DELETE FROM uploads WHERE cache = ?1 AND name IN": {"SEARCH uploads USING PRIMARY KEY"},
	"DELETE FROM files WHERE cache = ?1 AND key IN":    {"SEARCH files USING COVERING INDEX"},
	"DELETE FROM signatures WHERE cache = ?1 AND hash": {"SEARCH signatures USING PRIMARY KEY"},
	"DELETE FROM caches":                               {"SEARCH paths", "SEARCH uploads", "SEARCH files", "SEARCH signatures"},
	"INSERT INTO caches":                               {"SEARCH paths", "SEARCH uploads", "SEARCH files", "SEARCH signatures"},
	// Those that are to be examined.
	"SELECT name, size, gone FROM thin_packs": {"SCAN thin_packs USING INDEX thin_packs_to_examine"},
	// The hosts of one cache.
	"SELECT id, name, store_dir, sources": {"USE TEMP B-TREE FOR group_concat(ORDER BY)"},
}

// scan matches what reads a whole table, or all that one cache has in it.
var scan = regexp.MustCompile(`^(?:SCAN (\w+)|SEARCH (\w+) .*\(cache=\?\))`)

// expensive reports whether a step of a plan reads a whole table that may be big, or all of a cache, or sorts, or makes an index.
func expensive(step string) bool {
	m := scan.FindStringSubmatch(step)
	return m != nil && slices.Contains(bigTables, m[1]+m[2]) || strings.Contains(step, "TEMP B-TREE") || strings.Contains(step, "AUTOMATIC")
}

// Every statement that the suite runs finds what it looks for by a key, and sorts nothing.
func TestPlans(t *testing.T) {
	texts := make(map[string]bool)
	open := func(t testing.TB, clock *catalogtest.Clock) *Catalog {
		c, err := Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"), Options{Now: clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			for text := range c.prepared {
				texts[text] = true
			}
			for text := range c.writes.prepared {
				texts[text] = true
			}
		})
		return c
	}
	catalogtest.Test(t, func(t testing.TB, clock *catalogtest.Clock) catalogtest.Catalog {
		return catalogtest.Of(open(t, clock))
	})
	indextest.Test(t, func(t testing.TB, clock *catalogtest.Clock) (catalogtest.Catalog, index.Index) {
		c := open(t, clock)
		return catalogtest.Of(c), index.Of(c)
	})
	if len(texts) < 50 {
		t.Errorf("only %d statements", len(texts))
	}
	c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{})
	for _, text := range slices.Sorted(maps.Keys(texts)) {
		if strings.HasPrefix(text, "PRAGMA") {
			continue
		}
		short := strings.Join(strings.Fields(text), " ")
		var allowed []string
		for start, steps := range exempt {
			if strings.HasPrefix(short, start) {
				allowed = steps
			}
		}
		for _, step := range column(t, c, "EXPLAIN QUERY PLAN "+text, 3) {
			if expensive(step) && !slices.ContainsFunc(allowed, func(start string) bool { return strings.HasPrefix(step, start) }) {
				t.Errorf("%s\n\t%s", short, step)
			}
		}
	}
}

// column returns a column of what the writer's connection answers.
func column(t testing.TB, c *Catalog, query string, at int) (values []string) {
	t.Helper()
	rows, err := c.writes.conn.QueryContext(context.Background(), query, make([]any, strings.Count(query, "?"))...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		row := make([]any, len(names))
		for i := range row {
			row[i] = new(any)
		}
		if err := rows.Scan(row...); err != nil {
			t.Fatal(err)
		}
		values = append(values, fmt.Sprint(*row[at].(*any)))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return values
}

// Deleting what others refer to looks for these by an index: plans do not show that.
func TestForeignKeys(t *testing.T) {
	c := openAt(t, filepath.Join(t.TempDir(), "catalog.db"), Options{})
	for _, table := range column(t, c, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE 'goose%'", 0) {
		if kind := column(t, c, "SELECT strict FROM pragma_table_list('"+table+"')", 0); !slices.Equal(kind, []string{"1"}) {
			t.Errorf("%s is not STRICT", table)
		}
		keys := make(map[string][]string) // columns by key
		ids := column(t, c, "SELECT id FROM pragma_foreign_key_list('"+table+"')", 0)
		for i, from := range column(t, c, `SELECT "from" FROM pragma_foreign_key_list('`+table+"')", 0) {
			keys[ids[i]] = append(keys[ids[i]], from)
		}
		indices := [][]string{column(t, c, "SELECT name FROM pragma_table_info('"+table+"') WHERE pk > 0 ORDER BY pk", 0)}
		for _, index := range column(t, c, "SELECT name FROM pragma_index_list('"+table+"') WHERE NOT partial", 0) {
			indices = append(indices, column(t, c, "SELECT name FROM pragma_index_info('"+index+"')", 0))
		}
		for _, key := range keys {
			slices.Sort(key)
			if !slices.ContainsFunc(indices, func(index []string) bool {
				first := slices.Sorted(slices.Values(index[:min(len(key), len(index))]))
				return slices.Equal(first, key)
			}) {
				t.Errorf("no index of %s begins with %v", table, key)
			}
		}
	}
}

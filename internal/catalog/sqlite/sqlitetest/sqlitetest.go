// Package sqlitetest has catalogs for tests of other packages.
package sqlitetest

import (
	"path/filepath"
	"testing"
	"time"

	"firn/internal/catalog/sqlite"
)

// Open opens an empty catalog, which is closed at the end of the test. A nil clock is that of the
// machine.
func Open(tb testing.TB, now func() time.Time) *sqlite.Catalog {
	tb.Helper()
	c, err := sqlite.Open(tb.Context(), filepath.Join(tb.TempDir(), "catalog.db"), sqlite.Options{Now: now})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

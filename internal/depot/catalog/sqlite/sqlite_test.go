package sqlite

import (
	"path/filepath"
	"testing"

	"firn/internal/depot/catalog"
	"firn/internal/depot/catalog/catalogtest"
)

func TestCatalog(t *testing.T) {
	catalogtest.Test(t, func(t testing.TB, clock *catalogtest.Clock) catalog.Catalog {
		c, err := Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"), Options{Now: clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		return c
	})
}

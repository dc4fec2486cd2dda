package catalogtest_test

import (
	"testing"

	"firn/internal/depot/catalog"
	"firn/internal/depot/catalog/catalogtest"
)

func TestMemory(t *testing.T) {
	catalogtest.Test(t, func(_ testing.TB, clock *catalogtest.Clock) catalog.Catalog { return catalogtest.NewMemory(clock.Now) })
}

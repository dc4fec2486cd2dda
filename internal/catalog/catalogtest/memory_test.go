package catalogtest_test

import (
	"testing"

	"firn/internal/catalog"
	"firn/internal/catalog/catalogtest"
)

func TestMemory(t *testing.T) {
	catalogtest.Test(t, func(_ testing.TB, clock *catalogtest.Clock) catalog.Catalog { return catalogtest.NewMemory(clock.Now) })
}

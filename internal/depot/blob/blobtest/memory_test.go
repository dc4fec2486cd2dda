package blobtest_test

import (
	"testing"

	"firn/internal/depot/blob"
	"firn/internal/depot/blob/blobtest"
)

func TestMemory(t *testing.T) {
	blobtest.Test(t, func(testing.TB) blob.Store { return blobtest.NewMemory() })
}

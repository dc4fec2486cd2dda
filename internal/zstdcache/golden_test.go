// What the bytes are does not hang on what else is done, so the race detector has nothing to see here.

//go:build !race

package zstdcache

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// These bytes are a promise: a download goes on with the bytes of a file that was made by another release.
// When a new version of the library changes them, raise format.
func TestGolden(t *testing.T) {
	small, large := randomDump(100_000, 3), randomDump(frameSize+300_000, 4)
	if got, want := large.info.NARHash.Base16(), "2ddc4dabea12ef75"; got[:16] != want {
		t.Fatalf("the input is another one: %s", got)
	}
	for _, test := range []struct {
		level   int
		version string
		sum     string // of both
	}{
		{1, "v1-fastest", "a0cafba9cdc871d2"},
		{3, "v1-default", "2aadc3f3ba008ed2"},
		{7, "v1-better", "e17a06b22c7f09f3"},
		{10, "v1-best", "71d7898c080683a7"},
	} {
		h := newHouse(t, Options{Level: test.level})
		if h.Version() != test.version {
			t.Errorf("level %d: version is %q", test.level, h.Version())
		}
		sum := sha256.Sum256(append(h.encode(small), h.encode(large)...))
		if got := hex.EncodeToString(sum[:8]); got != test.sum {
			t.Errorf("level %d: bytes have changed, to %s", test.level, got)
		}
	}
}

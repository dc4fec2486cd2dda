package cachetest

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"firn/nix"
)

// ReferenceSize is how many bytes of a narinfo each of LongReferences takes.
const ReferenceSize = 32 + 1 + 200 + 1

// LongReferences returns n store paths with long names.
func LongReferences(n int) []nix.StorePath {
	refs := make([]nix.StorePath, n)
	long := strings.Repeat("x", 200)
	for i := range refs {
		var err error
		if refs[i], err = nix.DefaultStoreDir.ParseBase(fmt.Sprintf("%032d-%s", i, long)); err != nil {
			panic(err) // a mistake in this function
		}
	}
	return refs
}

// HeapWhile returns the most bytes that were alive after a collection while f ran.
func HeapWhile(f func()) (most int64) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	for {
		var m runtime.MemStats
		time.Sleep(10 * time.Millisecond)
		runtime.GC()
		runtime.ReadMemStats(&m)
		most = max(most, int64(m.HeapAlloc))
		select {
		case <-done:
			return most
		default:
		}
	}
}

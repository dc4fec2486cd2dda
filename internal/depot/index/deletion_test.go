package index

import (
	"encoding/binary"
	"runtime/debug"
	"testing"

	"firn/nix"
)

// A chain of references takes no stack, however long it is. Each of its paths goes before the one
// that it refers to.
func TestOrderOfChain(t *testing.T) {
	defer debug.SetMaxStack(debug.SetMaxStack(1 << 20))
	const length = 100_000
	paths := make([]nix.PathHash, length)
	x := &deletion{leaving: make(map[nix.PathHash][]nix.PathHash)}
	for i := range paths {
		binary.BigEndian.PutUint32(paths[i][:], uint32(i))
		x.leaving[paths[i]] = nil
		if i > 0 {
			x.leaving[paths[i]] = paths[i-1 : i]
		}
	}
	order := x.order()
	if len(order) != length {
		t.Fatalf("%d of %d paths are in the order", len(order), length)
	}
	for i, hash := range order {
		if want := paths[length-1-i]; hash != want {
			t.Fatalf("path %d in the order is %s, want %s", i, hash, want)
		}
	}
}

package catalog_test

import (
	"encoding/binary"
	"runtime/debug"
	"testing"

	"firn/internal/catalog"
	"firn/nix"
)

// A chain of references takes no stack, however long it is. Each of its paths goes before the one that it refers to.
func TestOrderOfChain(t *testing.T) {
	defer debug.SetMaxStack(debug.SetMaxStack(1 << 20))
	const length = 100_000
	paths := make([]nix.StorePath, length)
	d := &catalog.Deletion{Referrers: catalog.DeleteReferrers}
	for i := range paths {
		var hash nix.PathHash
		binary.BigEndian.PutUint32(hash[:], uint32(i))
		path, err := nix.DefaultStoreDir.ParseBase(hash.String() + "-link")
		if err != nil {
			t.Fatal(err)
		}
		paths[i] = path
		d.Paths = append(d.Paths, hash)
	}
	s := catalog.NewSearch(d)
	for i, path := range paths[1:] {
		if _, err := s.Show(path, paths[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	order := s.Order()
	if len(order) != length {
		t.Fatalf("%d of %d paths are in the order", len(order), length)
	}
	for i, hash := range order {
		if want := paths[length-1-i].Hash(); hash != want {
			t.Fatalf("path %d in the order is %s, want %s", i, hash, want)
		}
	}
}

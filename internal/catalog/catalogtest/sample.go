package catalogtest

import (
	"math"
	"time"

	"firn/internal/catalog"
	"firn/nix"
)

// Sample returns a NAR with a pack, a chunk and an upload of its own, and a path that may be published with it. All hashes are those of the name.
func Sample(name string, cache catalog.CacheID) (*catalog.NewNAR, *catalog.Path) {
	return newNAR(name, cache), path(name, 0, name)
}

// Unchecked is a basis that nothing changes, for tests of something else.
func Unchecked() catalog.Basis {
	return catalog.Basis{Paths: math.MaxInt64, Visited: map[nix.PathHash]bool{}, Partial: true}
}

func newNAR(name string, cache catalog.CacheID, others ...string) *catalog.NewNAR {
	n := &catalog.NewNAR{
		NAR:     catalog.NAR{Hash: sum("NAR " + name), Size: 1000, FileSize: 500, Recipe: []byte("recipe of " + name), Packs: []string{"pack-" + name}, Tag: "tag of " + name},
		Pack:    &catalog.Pack{Name: "pack-" + name, Size: 600},
		Chunks:  []catalog.Chunk{{Hash: sum("chunk " + name), Pack: "pack-" + name, Offset: 1, Length: 2, Size: 3}},
		Listing: []byte("listing of " + name),
	}
	for _, other := range others {
		n.Packs = append(n.Packs, "pack-"+other)
	}
	if cache != 0 {
		n.Upload = upload(name, cache, 0)
	}
	return n
}

func upload(name string, cache catalog.CacheID, nar catalog.NARID) *catalog.Upload {
	return &catalog.Upload{Cache: cache, Name: "nar/" + name + ".nar.xz", NAR: nar, NARHash: sum("NAR " + name), NARSize: 1000, FileHash: sum("file " + name), FileSize: 77, Compression: "xz"}
}

func storePath(name string) nix.StorePath { return pathIn(nix.DefaultStoreDir, name) }

func pathIn(dir nix.StoreDir, name string) nix.StorePath {
	digest := sum(name)
	path, err := dir.ParseBase(nix.PathHash(digest[:20]).String() + "-" + name)
	if err != nil {
		panic(err)
	}
	return path
}

func signature(name string) nix.Signature {
	sig, err := nix.NewSignature(name, make([]byte, 64))
	if err != nil {
		panic(err)
	}
	return sig
}

func path(name string, nar catalog.NARID, narName string) *catalog.Path {
	return &catalog.Path{NAR: nar, By: "ci", FileSize: 500, Tag: "tag of " + narName, Info: nix.PathInfo{
		Path: storePath(name), NARHash: nix.SHA256Sum(sum("NAR " + narName)), NARSize: 1000,
		References: []nix.StorePath{storePath("a-" + name), storePath("b-" + name)},
		Deriver:    storePath(name + ".drv"), Signatures: []nix.Signature{signature("one")},
		RegistrationTime: time.Unix(1_700_000_000, 0).UTC(),
	}}
}

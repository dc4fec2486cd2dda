package indextest

import (
	"math"
	"slices"
	"strings"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/nix"
)

// Sample returns a NAR with a pack, a chunk and an upload of its own, and a path that may be published with it. All hashes are those of the name.
func Sample(name string, cache catalog.CacheID) (*index.NewNAR, *index.Path) {
	return newNAR(name, cache), path(name, 0, name)
}

// Unchecked is a basis that nothing changes, for tests of something else.
func Unchecked() index.Basis {
	return index.Basis{Paths: math.MaxInt64, Visited: map[nix.PathHash]bool{}, Partial: true}
}

func newNAR(name string, cache catalog.CacheID, others ...string) *index.NewNAR {
	n := &index.NewNAR{
		NAR:     index.NAR{Hash: sum("NAR " + name), Size: 1000, FileSize: 500, Recipe: []byte("recipe of " + name), Packs: []string{"pack-" + name}, Tag: "tag of " + name},
		Pack:    &index.Pack{Name: "pack-" + name, Size: 600},
		Chunks:  []index.Chunk{{Hash: sum("chunk " + name), Pack: "pack-" + name, Offset: 1, Length: 2, Size: 3}},
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

func upload(name string, cache catalog.CacheID, nar index.NARID) *index.Upload {
	return &index.Upload{Cache: cache, Name: "nar/" + name + ".nar.xz", NAR: nar, NARHash: sum("NAR " + name), NARSize: 1000, FileHash: sum("file " + name), FileSize: 77, Compression: "xz"}
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

func path(name string, nar index.NARID, narName string) *index.Path {
	return &index.Path{NAR: nar, By: "ci", FileSize: 500, Tag: "tag of " + narName, Info: nix.PathInfo{
		Path: storePath(name), NARHash: nix.SHA256Sum(sum("NAR " + narName)), NARSize: 1000,
		References: inOrder(storePath("a-"+name), storePath("b-"+name)),
		Deriver:    storePath(name + ".drv"), Signatures: []nix.Signature{signature("one")},
		RegistrationTime: time.Unix(1_700_000_000, 0).UTC(),
	}}
}

// inOrder are references as they are returned.
func inOrder(refs ...nix.StorePath) []nix.StorePath {
	slices.SortFunc(refs, func(a, b nix.StorePath) int { return strings.Compare(a.Base(), b.Base()) })
	return refs
}

//go:build linux

package main

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"firn/nix"
)

// madeClosure is n paths of sizes as they are in stores: many small ones, and a few that have most of the bytes.
// Each refers to some before it, and the last to all.
func madeClosure(t *testing.T, n int) []Path {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	closure := make([]Path, n)
	for i := range closure {
		sum := sha256.Sum256(fmt.Append(nil, i))
		path, err := nix.DefaultStoreDir.ParsePath(fmt.Sprintf("/nix/store/%s-%d", nix.PathHash(sum[:]), i))
		if err != nil {
			t.Fatal(err)
		}
		closure[i] = Path{Path: path, NARSize: 1 << (10 + random.IntN(16)), References: []nix.StorePath{path}}
		for range min(i, 3) {
			closure[i].References = append(closure[i].References, closure[random.IntN(i)].Path)
		}
	}
	for _, p := range closure[:n-1] {
		closure[n-1].References = append(closure[n-1].References, p.Path)
	}
	slices.SortFunc(closure, func(p, q Path) int { return p.Path.Compare(q.Path) })
	return closure
}

// A part is closed, has its share of every class of sizes, and is the same each time.
func TestClosedPart(t *testing.T) {
	closure := madeClosure(t, 2000)
	const share = 0.3
	picked := closedPart(closure, int64(share*float64(narBytes(closure))))
	has := make(map[nix.StorePath]bool)
	var got, want [len(partSizes) + 1]float64
	for _, p := range picked {
		if has[p.Path] {
			t.Errorf("%s is there twice", p.Path)
		}
		has[p.Path] = true
		got[class(p)] += float64(p.NARSize)
	}
	for _, p := range closure {
		want[class(p)] += share * float64(p.NARSize)
		for _, ref := range p.References {
			if has[p.Path] && !has[ref] {
				t.Errorf("%s is there, but not %s", p.Path, ref)
			}
		}
	}
	for i := range got {
		if got[i] < 0.9*want[i] || got[i] > 1.03*want[i] {
			t.Errorf("class %d has %.0f bytes, want about %.0f", i, got[i], want[i])
		}
	}
	again := closedPart(closure, int64(share*float64(narBytes(closure))))
	if !slices.EqualFunc(picked, again, func(p, q Path) bool { return p.Path == q.Path }) {
		t.Error("another time it is another part")
	}
	if all := closedPart(closure, narBytes(closure)); len(all) != len(closure) {
		t.Errorf("%d paths of %d although there is room for all", len(all), len(closure))
	}
}

func TestClass(t *testing.T) {
	for size, want := range map[int64]int{0: 0, 64<<10 - 1: 0, 64 << 10: 1, 1 << 20: 2, 16<<20 - 1: 2, 16 << 20: 3, 1 << 40: 3} {
		if got := class(Path{NARSize: size}); got != want {
			t.Errorf("%d bytes: class %d, want %d", size, got, want)
		}
	}
}

// Whoever copies the tops copies all.
func TestTops(t *testing.T) {
	closure := madeClosure(t, 100)
	if got := tops(closure); len(got) != 1 {
		t.Errorf("%d tops of a closure with one root", len(got))
	}
	picked := closedPart(closure, narBytes(closure)/3)
	all, reached := make(map[nix.StorePath]Path), make(map[nix.StorePath]bool)
	for _, p := range picked {
		all[p.Path] = p
	}
	for _, top := range tops(picked) {
		path, err := nix.DefaultStoreDir.ParsePath(top)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range closureOf(all[path], all, nil) {
			reached[p.Path] = true
		}
	}
	if len(reached) != len(picked) {
		t.Errorf("%d of %d paths are below the tops", len(reached), len(picked))
	}
}

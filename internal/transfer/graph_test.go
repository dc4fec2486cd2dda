package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"firn/nix"
)

func hashOf(n int) (h nix.PathHash) {
	binary.BigEndian.PutUint32(h[:], uint32(n))
	return h
}

// Whatever refers to what, every path is moved once, after what it refers to as far as there is no cycle,
// and what refers to a path that failed is told.
func TestGraph(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 30).Draw(t, "paths")
		cycles := rapid.Bool().Draw(t, "cycles")
		failing := rapid.SliceOfN(rapid.IntRange(0, 30), 0, 3).Draw(t, "failing")
		refs := make([][]int, n)
		g := newGraph()
		for _, i := range rapid.Permutation(seq(n)).Draw(t, "order") {
			most := i - 1
			if cycles {
				most = n + 2 // also what is not there
			}
			if most >= 0 {
				refs[i] = rapid.SliceOfN(rapid.IntRange(0, most), 0, 4).Draw(t, "references")
			}
			var hashes []nix.PathHash
			for _, r := range refs[i] {
				hashes = append(hashes, hashOf(r))
			}
			g.add(hashOf(i), hashes)
		}

		var mu sync.Mutex
		state := map[nix.PathHash]error{}
		broken := errors.New("broken")
		told := map[nix.PathHash]int{}
		err := g.run(t.Context(), rapid.IntRange(1, 5).Draw(t, "workers"), func(_ context.Context, hash nix.PathHash, await func() error) error {
			err := await()
			mu.Lock()
			defer mu.Unlock()
			if _, ok := state[hash]; ok {
				t.Errorf("%s is moved twice", hash)
			}
			i := int(binary.BigEndian.Uint32(hash[:]))
			for _, r := range refs[i] {
				before, ok := state[hashOf(r)]
				if !cycles && err == nil && (!ok || before != nil) {
					t.Errorf("%d is moved, and what it refers to, %d, was not: %v", i, r, before)
				}
			}
			for _, f := range failing {
				if f == i {
					err = broken
				}
			}
			state[hash] = err
			return err
		}, func(hash nix.PathHash, err error) error {
			mu.Lock()
			defer mu.Unlock()
			told[hash]++
			if !errors.Is(err, broken) && !errors.Is(err, errReference) {
				t.Errorf("%s: %v", hash, err)
			}
			return nil
		})
		if err != nil || len(state) != n {
			t.Errorf("moved %d of %d paths: %v", len(state), n, err)
		}
		for hash, err := range state {
			if (err != nil) != (told[hash] == 1) {
				t.Errorf("%s: %v, told %d times", hash, err, told[hash])
			}
		}
	})
}

func seq(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// What tell says ends it all.
func TestGraphEnds(t *testing.T) {
	g := newGraph()
	for i := range 100 {
		g.add(hashOf(i), []nix.PathHash{hashOf(i + 1)})
	}
	enough, broken := errors.New("enough"), errors.New("broken")
	moved := 0
	err := g.run(t.Context(), 1, func(context.Context, nix.PathHash, func() error) error {
		moved++
		return broken
	}, func(nix.PathHash, error) error { return enough })
	if !errors.Is(err, enough) || moved > 2 {
		t.Errorf("moved %d: %v", moved, err)
	}
}

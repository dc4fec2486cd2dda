//go:build linux

package main

import (
	"slices"

	"firn/nix"
)

// What takes long is measured with a part of the closure that looks like the whole: it has its share of small and of large paths,
// and with each path all that it refers to.

const (
	// copiedBytes is the size of what is copied to caches and over SSH, as NARs; copiedBytesQuick in a quick run.
	copiedBytes, copiedBytesQuick = 600e6, 100e6
	// memoryBytes is the size of what each of several clients pushes over SSH at once.
	memoryBytes = 150e6
)

// partSizes are the NAR sizes in bytes at which one class of paths ends and the next begins.
var partSizes = [...]int64{64 << 10, 1 << 20, 16 << 20}

// class is the class of a path.
func class(p Path) int {
	n, _ := slices.BinarySearch(partSizes[:], p.NARSize+1)
	return n
}

// closedPart picks paths with a sum of NAR sizes of about target bytes, closed under references. It is the same for the same closure:
// paths are taken in the order of their hashes, which is that of no other property, each with all that it refers to
// where no class of sizes gets more than its share of the bytes.
func closedPart(closure []Path, target int64) []Path {
	all := make(map[nix.StorePath]Path, len(closure))
	var whole int64
	var quota [len(partSizes) + 1]float64
	for _, p := range closure {
		all[p.Path] = p
		whole += p.NARSize
		quota[class(p)] += float64(p.NARSize)
	}
	if whole <= target {
		return closure
	}
	for i := range quota {
		const slack = 1.02
		quota[i] *= slack * float64(target) / float64(whole)
	}
	taken := make(map[nix.StorePath]bool)
	var part []Path
	for _, p := range closure {
		left := quota
		fits := true
		added := closureOf(p, all, taken)
		for _, q := range added {
			left[class(q)] -= float64(q.NARSize)
			fits = fits && left[class(q)] >= 0
		}
		if !fits {
			continue
		}
		quota = left
		for _, q := range added {
			taken[q.Path] = true
		}
		part = append(part, added...)
	}
	return part
}

// closureOf is p and all that it refers to, without what was taken already.
func closureOf(p Path, all map[nix.StorePath]Path, taken map[nix.StorePath]bool) (added []Path) {
	seen := make(map[nix.StorePath]bool)
	for next := []Path{p}; len(next) > 0; {
		q := next[len(next)-1]
		next = next[:len(next)-1]
		if seen[q.Path] || taken[q.Path] {
			continue
		}
		seen[q.Path] = true
		added = append(added, q)
		for _, ref := range q.References {
			if r, ok := all[ref]; ok {
				next = append(next, r)
			}
		}
	}
	return added
}

// tops are the paths that no other of them refers to: whoever copies these copies all.
func tops(paths []Path) []string {
	below := make(map[nix.StorePath]bool)
	for _, p := range paths {
		for _, ref := range p.References {
			if ref != p.Path {
				below[ref] = true
			}
		}
	}
	var names []string
	for _, p := range paths {
		if !below[p.Path] {
			names = append(names, p.Path.String())
		}
	}
	return names
}

func narBytes(paths []Path) (sum int64) {
	for _, p := range paths {
		sum += p.NARSize
	}
	return sum
}

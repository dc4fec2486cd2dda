//go:build programs

package nar_test

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"firn/nix/nar/nartest"
)

// TestNixAgreesOnRefused is the other half of TestReaderRefuses: no NAR in the table is one that the installed Nix
// (an older one may know fewer rules) restores and then dumps as it was.
func TestNixAgreesOnRefused(t *testing.T) {
	fresh := freshDir(t)
	for _, c := range refused {
		if c.name == "depth 64" {
			continue // a bound that Nix did not have before 2.28.7
		}
		path := fresh()
		if _, err := nartest.Nix(t, strings.NewReader(c.nar), "nix-store", "--restore", path); err != nil {
			continue
		}
		if again, err := nartest.Nix(t, nil, "nix-store", "--dump", path); err == nil && string(again) == c.nar {
			t.Errorf("%s: Nix restores it, and dumps it again unchanged", c.name)
		}
	}
}

// TestReaderAgainstNix changes bytes of good NARs: Nix must not refuse what the Reader takes,
// and must make of it what the Reader says it is.
func TestReaderAgainstNix(t *testing.T) {
	fresh := freshDir(t)
	rapid.Check(t, func(r *rapid.T) {
		small := tree{dir(""), program("a", "hello"), dir("b"), link("b/c", "target"), file("d", "")}
		n := small.nar(t)
		for range rapid.IntRange(1, 2).Draw(r, "changes") {
			i := rapid.IntRange(0, len(n)-1).Draw(r, "at")
			n[i] = rapid.OneOf(rapid.SampledFrom([]byte("\x00\x01\x08/.ab()")), rapid.Byte()).Draw(r, "byte")
		}
		if _, _, err := readTree(bytes.NewReader(n)); err != nil {
			return // and Nix is not asked: it allocates whatever length it is told
		}
		path := fresh()
		if _, err := nartest.Nix(t, bytes.NewReader(n), "nix-store", "--restore", path); err != nil {
			r.Fatalf("Nix refuses what the Reader takes: %v", err)
		}
		if !bytes.Equal(nartest.Dump(t, path), n) {
			r.Fatal("Nix restores another tree than the Reader read")
		}
	})
}

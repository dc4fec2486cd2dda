//go:build programs

package nar_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"firn/nix/nar/nartest"
)

// TestNixRestores: what the Writer writes, real Nix restores, and dumps as the same bytes.
func TestNixRestores(t *testing.T) {
	fresh := freshDir(t)
	rapid.Check(t, func(r *rapid.T) {
		tree := trees.Draw(r, "tree")
		written, path := tree.nar(t), fresh()
		if _, err := nartest.Nix(t, bytes.NewReader(written), "nix-store", "--restore", path); err != nil {
			r.Fatal(err)
		}
		if !bytes.Equal(nartest.Dump(t, path), written) {
			r.Fatal("Nix dumps other bytes than it restored")
		}
	})
}

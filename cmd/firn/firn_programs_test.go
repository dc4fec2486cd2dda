//go:build programs

package main

import (
	"os/exec"
	"testing"
)

// needNix fails the test on a machine without Nix.
func needNix(t *testing.T) {
	t.Helper()
	for _, name := range []string{"nix", "nix-store"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%v; `make test` brings Nix", err)
		}
	}
}

//go:build programs

package main

import (
	"os/exec"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
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

// The scripts run the program as a person does, beside a real Nix.
func TestScripts(t *testing.T) {
	needNix(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
	})
}

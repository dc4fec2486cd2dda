//go:build programs

package nix_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"firn/nix"
)

// derivationsOf parses a derivation and all that it needs, and returns their hashes modulo inputs.
func derivationsOf(t testing.TB, dir nix.StoreDir, drv nix.StorePath, all map[nix.StorePath]*nix.Derivation, hashes map[nix.StorePath]nix.Hash) {
	t.Helper()
	if all[drv] != nil {
		return
	}
	d, err := nix.ParseDerivation(dir, must(os.ReadFile(drv.String())))
	if err != nil {
		t.Fatalf("%v: %v", drv, err)
	}
	all[drv] = d
	for _, in := range d.Inputs {
		derivationsOf(t, dir, in.Path, all, hashes)
	}
	hashes[drv] = must(d.HashModulo(false, hashes))
}

// The path of an output is made of the hash of its derivation, so Nix has said what that is.
func TestDerivationsAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	file := o.write(t, "drv.nix", `
		let
		  make = name: more: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh"; } // more);
		  fixed = make "fixed" { outputHash = "`+strings.Repeat("0", 64)+`"; outputHashAlgo = "sha256"; outputHashMode = "recursive"; };
		  flat = make "flat" { outputHash = "`+strings.Repeat("0", 40)+`"; outputHashAlgo = "sha1"; };
		  many = make "many" { outputs = [ "out" "dev" "a" ]; inherit fixed; dev = "replaced"; text = "quote \" backslash \\ line\nreturn\rtab\t dollar \${x} é"; };
		  again = make "again" { args = [ many.dev many.a flat "\n" ]; outputs = [ "only" ]; };
		in make "top" { deps = [ again many fixed ]; src = ./drv.nix; empty = ""; }
	`)
	top := must(o.dir.ParsePath(strings.TrimSpace(o.run(t, "nix-instantiate", file))))
	all, hashes := make(map[nix.StorePath]*nix.Derivation), make(map[nix.StorePath]nix.Hash)
	derivationsOf(t, o.dir, top, all, hashes)
	if len(all) != 5 {
		t.Fatalf("there are %d derivations, want 5", len(all))
	}
	outputs := 0
	for path, d := range all {
		name := strings.TrimSuffix(path.Name(), ".drv")
		if name == "fixed" || name == "flat" {
			continue // whose paths are those of their contents
		}
		hash := must(d.HashModulo(true, hashes))
		for _, out := range d.Outputs {
			outputs++
			full := name
			if out.Name != "out" {
				full += "-" + out.Name
			}
			var h nix.PathHash
			for i, b := range sha256.Sum256(fmt.Appendf(nil, "output:%s:sha256:%s:%s:%s", out.Name, hash.Base16(), o.dir, full)) {
				h[i%len(h)] ^= b
			}
			if want := string(o.dir) + "/" + h.String() + "-" + full; out.Path.String() != want {
				t.Errorf("%v is built to %v, its hash says %s", path, out.Path, want)
			}
		}
	}
	if outputs != 5 {
		t.Errorf("%d outputs were compared, want 5", outputs)
	}
}

// What is content-addressed has no paths before it is built; its realisations have the hash in their names.
func TestDerivationsOfRealisations(t *testing.T) {
	o := newOracle(t)
	file := buildRealisations(t, o)
	o.run(t, "nix", "copy", "-f", file, "--to", "file://"+o.home+"/cache")
	top := must(o.dir.ParsePath(strings.TrimSpace(o.run(t, "nix-instantiate", file))))
	all, hashes := make(map[nix.StorePath]*nix.Derivation), make(map[nix.StorePath]nix.Hash)
	derivationsOf(t, o.dir, top, all, hashes)
	ids := make(map[string]bool)
	for path, d := range all {
		hash := must(d.HashModulo(true, hashes))
		for _, out := range d.Outputs {
			if !out.Path.IsZero() {
				t.Errorf("%v is built to %v before it is built", path, out.Path)
			}
			ids[nix.RealisationID{DrvHash: hash, Output: out.Name}.String()+".doi"] = true
		}
	}
	files := must(filepath.Glob(o.home + "/cache/realisations/*.doi"))
	if len(files) < 2 {
		t.Fatalf("there are %d realisations, want 2 or more", len(files))
	}
	for _, file := range files {
		if !ids[filepath.Base(file)] {
			t.Errorf("Nix has the realisation %s, which is none of %v", filepath.Base(file), ids)
		}
	}
}

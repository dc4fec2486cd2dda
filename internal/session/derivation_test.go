package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
	"firn/nix/protocol"
)

// derivationOf returns a derivation as a path of a store, with one output: at a path, or at "" if only its build tells.
func derivationOf(tb testing.TB, name, out string, inputs ...nix.StorePath) cachetest.Path {
	tb.Helper()
	method := ""
	if out == "" {
		method = "r:sha256"
	}
	var in []string
	for _, p := range nix.SortPaths(inputs) {
		in = append(in, fmt.Sprintf(`("%v",["out"])`, p))
	}
	return cachetest.NewPath(tb, nix.DefaultStoreDir, name+".drv",
		fmt.Sprintf(`Derive([("out","%s","%s","")],[%s],[],"x86_64-linux","/bin/sh",[],[("name","%s"),("out","%s")])`, out, method, strings.Join(in, ","), name, out))
}

func TestOutputs(t *testing.T) {
	missing := numbered(t, 2)
	input := derivationOf(t, "input", missing[0].String())
	known := derivationOf(t, "known", missing[1].String(), input.Info.Path)
	built := derivationOf(t, "built", "", input.Info.Path)
	absent := derivationOf(t, "absent", "")
	alone := derivationOf(t, "alone", "", absent.Info.Path)
	odd := derivationOf(t, "odd", "", missing[0])
	file := cachetest.NewPath(t, nix.DefaultStoreDir, "file", "contents")
	wrong := cachetest.NewPath(t, nix.DefaultStoreDir, "wrong.drv", "contents")
	large := cachetest.NewPath(t, nix.DefaultStoreDir, "large.drv", strings.Repeat("x", nix.MaxDerivationSize+1<<10))
	source := cachetest.NewMemory(input, known, built, alone, odd, file, wrong, large)
	s := readerOfSource(t, source)

	hash, err := s.DerivationHash(t.Context(), built.Info.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, drv := range []cachetest.Path{built, alone} {
		if outputs, err := s.Outputs(t.Context(), drv.Info.Path); err != nil || len(outputs) != 1 || !outputs["out"].IsZero() {
			t.Errorf("before anybody has built it, %v is built to %v, %v", drv.Info.Path, outputs, err)
		}
	}
	source.AddRealisation(&nix.Realisation{ID: nix.RealisationID{DrvHash: hash, Output: "out"}, OutPath: file.Info.Path})
	for drv, want := range map[nix.StorePath]nix.StorePath{known.Info.Path: missing[1], built.Info.Path: file.Info.Path} {
		if outputs, err := s.Outputs(t.Context(), drv); err != nil || len(outputs) != 1 || outputs["out"] != want {
			t.Errorf("%v is built to %v, %v, want %v", drv, outputs, err, want)
		}
	}
	closure, err := s.ClosureWithOutputs(t.Context(), []nix.StorePath{known.Info.Path, built.Info.Path})
	if err != nil || len(closure) != 2 { // what it was built to is not there
		t.Errorf("with what they were built to they are %v, %v", closure, err)
	}
	whole := derivationOf(t, "whole", file.Info.Path.String())
	source.Add(whole)
	if closure, err := s.ClosureWithOutputs(t.Context(), []nix.StorePath{whole.Info.Path}); err != nil || len(closure) != 2 {
		t.Errorf("with what it was built to it is %v, %v", closure, err)
	}

	for drv, want := range map[nix.StorePath]error{
		missing[0]:      cache.ErrInvalid, // no derivation
		wrong.Info.Path: cache.ErrInvalid,
		large.Info.Path: cache.ErrTooLarge,
	} {
		if outputs, err := s.Outputs(t.Context(), drv); !errors.Is(err, want) {
			t.Errorf("%v is built to %v, %v, want %v", drv, outputs, err, want)
		}
	}
	if _, err := s.DerivationHash(t.Context(), odd.Info.Path); !errors.Is(err, cache.ErrInvalid) {
		t.Errorf("a derivation whose input is none: %v", err)
	}
	if _, err := s.Outputs(t.Context(), absent.Info.Path); !errors.Is(err, protocol.ErrNotFound) {
		t.Errorf("a derivation that is not there: %v", err)
	}
	if _, err := s.DerivationHash(t.Context(), alone.Info.Path); !errors.Is(err, protocol.ErrNotFound) || !strings.Contains(err.Error(), "absent.drv, which is not there") {
		t.Errorf("a derivation whose input is not there: %v", err)
	}
}

// A large derivation takes room, and gives it back.
func TestRoomForDerivation(t *testing.T) {
	out := numbered(t, 1)[0].String()
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "large.drv",
		fmt.Sprintf(`Derive([("out","%s","","")],[],[],"","",[],[("large","%s"),("out","%s")])`, out, strings.Repeat("x", smallDerivation), out))
	s := readerOf(t, p)
	for free, want := range []error{cache.ErrUnavailable, nil} {
		left := free
		s.Memory = func() (done func(), ok bool) {
			if left == 0 {
				return nil, false
			}
			left--
			return func() { left++ }, true
		}
		if _, err := s.Outputs(t.Context(), p.Info.Path); !errors.Is(err, want) || left != free {
			t.Errorf("with %d: %v, and there are %d in the end", free, err, left)
		}
	}
}

// What is fixed has the hash of its contents, so that what made it does not have to be there.
func TestHashOfFixed(t *testing.T) {
	paths := numbered(t, 2)
	absent := derivationOf(t, "absent", "")
	fixed := cachetest.NewPath(t, nix.DefaultStoreDir, "fixed.drv",
		fmt.Sprintf(`Derive([("out","%v","sha256","00")],[("%v",["out"])],[],"","",[],[("out","%[1]v")])`, paths[0], absent.Info.Path))
	top := derivationOf(t, "top", paths[1].String(), fixed.Info.Path)
	s := readerOf(t, fixed, top)
	for _, p := range []cachetest.Path{fixed, top} {
		if _, err := s.DerivationHash(t.Context(), p.Info.Path); err != nil {
			t.Error(err)
		}
	}
}

// However many outputs are not known, that the hash cannot be is found out once.
func TestUnknownOutputs(t *testing.T) {
	absent := derivationOf(t, "absent", "")
	var outputs []string
	for i := range 100 {
		outputs = append(outputs, fmt.Sprintf(`("o%02d","","r:sha256","")`, i))
	}
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "many.drv", fmt.Sprintf(`Derive([%s],[("%v",["out"])],[],"","",[],[])`, strings.Join(outputs, ","), absent.Info.Path))
	source := cachetest.NewMemory(p)
	if got, err := readerOfSource(t, source).Outputs(t.Context(), p.Info.Path); err != nil || len(got) != len(outputs) {
		t.Errorf("%d outputs, %v", len(got), err)
	}
	if asked := source.Asked(); asked > 20 {
		t.Errorf("for %d outputs the cache looked %d times for paths", len(outputs), asked)
	}
}

// What a derivation needs takes room by its names, also while it is open and all were looked at.
func TestRoomForInputs(t *testing.T) {
	parse := func(format string, args ...any) nix.StorePath {
		p, err := nix.DefaultStoreDir.ParsePath(fmt.Sprintf(format, args...))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	leaf := derivationOf(t, "leaf", numbered(t, 1)[0].String())
	paths := []cachetest.Path{leaf}
	inputs := []nix.StorePath{leaf.Info.Path}
	const depth, wide = 10, 3000
	for i := range depth {
		// Those beside the leaf are not there, and come after what is.
		p := derivationOf(t, fmt.Sprint("chain", i), leaf.Info.Path.String(), inputs...)
		p.Info.Path = parse("/nix/store/%032d-chain.drv", depth-i)
		p.Info.CA = nix.ContentAddress{}
		paths = append(paths, p)
		inputs = []nix.StorePath{p.Info.Path}
		for j := range wide {
			inputs = append(inputs, parse("/nix/store/z%031d-%d.drv", j, i))
		}
	}
	top := derivationOf(t, "top", "", inputs...)
	s := readerOf(t, append(paths, top)...)
	most, taken := 0, 0
	s.Memory = func() (done func(), ok bool) {
		taken++
		most = max(most, taken)
		return func() { taken-- }, true
	}
	if _, err := s.DerivationHash(t.Context(), top.Info.Path); !errors.Is(err, protocol.ErrNotFound) {
		t.Error(err)
	}
	if names := depth * wide / pathsPerStep; most < names || taken != 0 {
		t.Errorf("%d rooms were taken at most, want %d, and %d were in the end", most, names, taken)
	}
}

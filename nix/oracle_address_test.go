//go:build programs

package nix_test

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"hash"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/nix"
)

var allAlgorithms = []nix.HashAlgorithm{nix.MD5, nix.SHA1, nix.SHA256, nix.SHA512}

func TestHashFormsAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	random := rand.New(rand.NewPCG(1, 2))
	for _, algo := range allAlgorithms {
		var hashes []nix.Hash
		for range 50 {
			sum := make([]byte, algo.Size())
			for i := range sum {
				sum[i] = byte(random.Uint32())
			}
			hashes = append(hashes, must(nix.NewHash(algo, sum)))
		}
		for _, form := range []struct {
			command string
			read    func(nix.Hash) string // what Nix is given
			written func(nix.Hash) string // what it must print
		}{
			{"to-base32", nix.Hash.Base16, nix.Hash.Nix32},
			{"to-base16", nix.Hash.Nix32, nix.Hash.Base16},
			{"to-base64", nix.Hash.SRI, nix.Hash.Base64},
			{"to-sri", nix.Hash.Base64, nix.Hash.SRI},
			{"to-sri", nix.Hash.String, nix.Hash.SRI},
		} {
			args := []string{"nix", "hash", form.command, "--type", algo.String()}
			var want []string
			for _, h := range hashes {
				args = append(args, form.read(h))
				want = append(want, form.written(h))
			}
			if got := o.run(t, args...); got != strings.Join(want, "\n") {
				t.Errorf("%v: nix hash %s prints\n%s\nwant\n%s", algo, form.command, got, strings.Join(want, "\n"))
			}
		}
	}
}

// What Nix refuses to read as a hash, this package refuses; what both accept, they read alike.
func TestHashRefusalsAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	for _, text := range []string{
		"", "sha256", "sha256:", "sha256-", "sha1:" + helloNix32, "sha256:2" + helloNix32[1:], "sha256:z" + helloNix32[1:],
		"sha256:e" + helloNix32[1:], "sha256:" + helloNix32[1:], "sha256:" + helloNix32 + "0", "sha256-" + helloNix32,
		"sha256:" + helloBase64[:43], "sha256:" + helloBase64[:20] + "_" + helloBase64[21:], "sha256:" + strings.ToUpper(helloBase16),
		"sha256:" + "g" + helloBase16[1:], "SHA256:" + helloNix32, "sha256-" + helloBase64, "sha256:" + helloBase64, "sha256:" + helloNix32,
	} {
		nixText, nixErr := o.try("", "nix", "hash", "to-sri", text)
		ours, ourErr := nix.ParseHash(text)
		switch {
		case nixErr != nil && ourErr == nil:
			t.Errorf("%q: Nix refuses it: %v", text, nixErr)
		case nixErr == nil && ourErr != nil:
			t.Errorf("%q: Nix accepts it as %s, here %v", text, nixText, ourErr)
		case nixErr == nil && strings.TrimSuffix(nixText, "\n") != ours.SRI():
			t.Errorf("%q: Nix reads it as %s, here %v", text, nixText, ours.SRI())
		}
	}
}

func TestStorePathNamesAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	names := []string{"", strings.Repeat("a", 211), strings.Repeat("a", 212), "a..", "--", "-", "a\t", "a\n", "a\x01", "a\x7f", "aé"}
	for c := byte(' '); c < 0x7f; c++ {
		names = append(names, "a"+string(c)) // dots at the start are judged differently from version to version
	}
	empty := contentAddress(nix.TextMethod)(nix.SHA256Sum(sha256.Sum256(nil)))
	expr, want := "[", []string{}
	for _, name := range names {
		toFile := "(builtins.toFile " + nixString(name) + ` "")`
		if path, err := empty.StorePath(o.dir, name, nil); err == nil {
			expr += toFile
			want = append(want, path.String())
		} else if out, err := o.try("", "nix", "eval", "--expr", toFile); err == nil {
			t.Errorf("Nix takes the name %q and makes %s of it", name, out)
		}
	}
	var got []string
	if err := json.Unmarshal([]byte(o.run(t, "nix", "eval", "--json", "--expr", expr+"]")), &got); err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

// nixString returns s as an expression of Nix.
func nixString(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`).Replace(s) + `"`
}

// The store paths of files that Nix is given are computed alike, for every way of adding them.
func TestAddedFilesAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	const text = "hello\n"
	file := o.write(t, "hello.txt", text)
	tree := filepath.Dir(o.write(t, "tree/file", text))
	o.write(t, "tree/sub/other", strings.Repeat("x", 100000))

	sums := map[nix.HashAlgorithm]hash.Hash{nix.MD5: md5.New(), nix.SHA1: sha1.New(), nix.SHA256: sha256.New(), nix.SHA512: sha512.New()}
	narHash := func(algo nix.HashAlgorithm, path string) nix.Hash {
		return must(nix.ParseHashOf(algo, o.run(t, "nix-hash", "--type", algo.String(), path)))
	}
	check := func(what, got string, ca nix.ContentAddress, name string) {
		t.Helper()
		if want := must(ca.StorePath(o.dir, name, nil)); got != want.String() {
			t.Errorf("%s: Nix prints %s, want %v", what, got, want)
		}
	}
	for _, path := range []string{file, tree} {
		check("--add "+path, o.run(t, "nix-store", "--add", path), contentAddress(nix.NARMethod)(narHash(nix.SHA256, path)), filepath.Base(path))
		for _, algo := range allAlgorithms {
			got := o.run(t, "nix-store", "--add-fixed", "--recursive", algo.String(), path)
			check("--add-fixed --recursive "+algo.String(), got, contentAddress(nix.NARMethod)(narHash(algo, path)), filepath.Base(path))
		}
	}
	for _, algo := range allAlgorithms {
		sums[algo].Write([]byte(text))
		flat := must(nix.NewHash(algo, sums[algo].Sum(nil)))
		check("--add-fixed "+algo.String(), o.run(t, "nix-store", "--add-fixed", algo.String(), file), contentAddress(nix.FlatMethod)(flat), "hello.txt")
	}
}

// Whatever is content-addressed in a store, with references and without, passes the check.
func TestContentAddressesAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	_, prog := o.addClosure(t)
	o.run(t, "nix", "store", "make-content-addressed", prog)
	o.run(t, "nix", "eval", "--raw", "--expr", `builtins.toFile "a" "uses ${builtins.toFile "b" "text"}"`)
	o.run(t, "nix-store", "--add-fixed", "md5", o.write(t, "x+y=z?", "text"))
	buildRealisations(t, o)

	seen := map[string]int{}
	for _, p := range o.pathInfos(t, "--all") {
		info := p.value(t, o.dir)
		if err := info.CheckContentAddress(); err != nil {
			t.Error(err)
		}
		kind := info.CA.Method().String()
		if len(info.References) > 0 {
			kind += " with references"
		}
		for _, ref := range info.References {
			if ref == info.Path {
				kind += " to itself"
			}
		}
		seen[kind]++

		// Nor is the check blind.
		if !info.CA.IsZero() {
			info.References = append(info.References, must(o.dir.ParseBase("zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-z")))
			if err := info.CheckContentAddress(); err == nil {
				t.Errorf("%v passes with a reference too many", info.Path)
			}
		}
	}
	for _, kind := range []string{"text", "text with references", "flat", "nar", "nar with references", "nar with references to itself"} {
		if seen[kind] == 0 {
			t.Errorf("no path was of the kind %q; there were %v", kind, seen)
		}
	}
}

// buildRealisations builds two content-addressed derivations, the second with the first as its input,
// and returns the file of the expression.
func buildRealisations(t testing.TB, o *oracle) string {
	t.Helper()
	file := o.write(t, "ca.nix", `
		let
		  make = name: outputs: script: derivation {
		    inherit name outputs;
		    system = builtins.currentSystem;
		    builder = "/bin/sh";
		    args = [ "-c" script ];
		    __contentAddressed = true;
		    outputHashMode = "recursive";
		    outputHashAlgo = "sha256";
		  };
		  dep = make "dep" [ "out" ] "echo dep > $out";
		in make "top" [ "out" "dev" ] "echo ${dep} > $out; echo $out > $dev"
	`)
	var built []struct{ Outputs map[string]string }
	if err := json.Unmarshal([]byte(o.run(t, "nix", "build", "-f", file, "--no-link", "--json")), &built); err != nil || len(built) != 1 {
		t.Fatal(built, err)
	}
	return file
}

package nix_test

import (
	"strings"
	"testing"

	"firn/nix"
)

const derivation = `Derive([("dev","/nix/store/00000000000000000000000000000000-x-dev","",""),("out","/nix/store/11111111111111111111111111111111-x","","")],` +
	`[("/nix/store/22222222222222222222222222222222-y.drv",["dev","out"])],["/nix/store/33333333333333333333333333333333-z"],"x86_64-linux","/bin/sh",["-c","a \"b\" \\ \n"],` +
	`[("dev","/nix/store/00000000000000000000000000000000-x-dev"),("name","x"),("out","/nix/store/11111111111111111111111111111111-x")])`

func TestParseDerivation(t *testing.T) {
	d, err := nix.ParseDerivation(nix.DefaultStoreDir, []byte(derivation))
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Outputs) != 2 || d.Outputs[1].Name != "out" || d.Outputs[1].Path.Base() != "11111111111111111111111111111111-x" {
		t.Errorf("the outputs are %v", d.Outputs)
	}
	if len(d.Inputs) != 1 || d.Inputs[0].Path.Name() != "y.drv" || strings.Join(d.Inputs[0].Outputs, " ") != "dev out" {
		t.Errorf("the inputs are %v", d.Inputs)
	}
	if _, err := d.HashModulo(false, nil); err == nil {
		t.Error("it has a hash, though that of its input is not known")
	}
}

func TestParseDerivationRefuses(t *testing.T) {
	for name, change := range map[string][2]string{
		"nothing":                {derivation, ""},
		"an end too early":       {`-x")])`, `-x")]`},
		"more after its end":     {`-x")])`, `-x")])x`},
		"a string without end":   {`-x")])`, `-x`},
		"an escape without end":  {`-x")])`, `-x\`},
		"outputs out of order":   {`("dev","/nix/store/00000000000000000000000000000000-x-dev","",""),("out"`, `("x","/nix/store/00000000000000000000000000000000-x-dev","",""),("out"`},
		"an output twice":        {`[("dev","/nix/store`, `[("out","/nix/store`},
		"variables out of order": {`("name","x")`, `("a","x")`},
		"a field too many":       {`"x86_64-linux"`, `"x86_64-linux","x"`},
		"an input elsewhere":     {`("/nix/store/2222`, `("/gnu/store/2222`},
		"an output elsewhere":    {`("dev","/nix/store/0`, `("dev","/gnu/store/0`},
		"no outputs":             {derivation, `Derive([],[],[],"","",[],[])`},
		"a hash of no kind":      {`-x","","")]`, `-x","","00")]`},
		"fixed without a path":   {derivation, `Derive([("out","","sha256","00")],[],[],"","",[],[])`},
		"two that are fixed":     {`-dev","","")`, `-dev","sha256","00")`},
		"one that is dynamic":    {"Derive(", `DrvWithVersion("xp-dyn-drv",`},
		"too many arguments":     {`["-c",`, `[` + strings.Repeat(`"",`, 1<<16)},
		"a name that is no name": {`[("dev","/nix`, `[("a/b","/nix`},
	} {
		text := strings.Replace(derivation, change[0], change[1], 1)
		if text == derivation {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := nix.ParseDerivation(nix.DefaultStoreDir, []byte(text)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if _, err := nix.ParseDerivation(nix.DefaultStoreDir, make([]byte, nix.MaxDerivationSize+1)); err == nil {
		t.Error("too many bytes were accepted")
	}
}

// A derivation that has only the hash of its own contents, or none, has the same hash whatever its
// inputs are. An input of which it needs no output leaves no trace.
func TestHashWithoutInputs(t *testing.T) {
	hashOf := func(inputs, address string) nix.Hash {
		t.Helper()
		d, err := nix.ParseDerivation(nix.DefaultStoreDir, []byte(`Derive([("out","/nix/store/11111111111111111111111111111111-x",`+address+`)],[`+inputs+`],[],"","",[],[])`))
		if err != nil {
			t.Fatal(err)
		}
		hashes := make(map[nix.StorePath]nix.Hash)
		if d.NeedsInputs() {
			hashes[d.Inputs[0].Path] = nix.SHA256Sum([32]byte{1})
		}
		h, err := d.HashModulo(true, hashes)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	const input = `("/nix/store/22222222222222222222222222222222-y.drv",["out"])`
	for _, address := range []string{`"sha256","00"`, `"sha256","impure"`} {
		if hashOf("", address) != hashOf(input, address) {
			t.Errorf("with the address %s it has another hash when it needs something", address)
		}
	}
	if hashOf("", `"",""`) == hashOf(input, `"",""`) {
		t.Error("it has the same hash when it needs something")
	}
	if hashOf("", `"",""`) != hashOf(strings.Replace(input, `"out"`, "", 1), `"",""`) {
		t.Error("it has another hash when it needs nothing of a derivation")
	}
}

func FuzzParseDerivation(f *testing.F) {
	f.Add(derivation)
	f.Add(`Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",[],[("out","")])`)
	f.Fuzz(func(t *testing.T, text string) {
		d, err := nix.ParseDerivation(nix.DefaultStoreDir, []byte(text))
		if err != nil {
			return
		}
		inputs := make(map[nix.StorePath]nix.Hash)
		for _, in := range d.Inputs {
			inputs[in.Path] = nix.SHA256Sum([32]byte{1})
		}
		if _, err := d.HashModulo(true, inputs); err != nil {
			t.Error(err)
		}
	})
}

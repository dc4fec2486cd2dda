package nix_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/nix"
)

// What Nix 2.8 wrote for a derivation top with the input dep, both content-addressed.
const (
	depID           = "sha256:60e789c1ee6b59c04233af5b19e11224cd901e4d194dccaa6c6660218f00cc32!out"
	topID           = "sha256:ddffc52801e4ad001044b76a9ce85a2ba2b9eaa8e7e8c22e445bc56081a0d90a!out"
	depBase         = "7ng4jdjizp7ppxa1wyi04d0r0rmn1wpd-dep"
	topBase         = "zd7pfh5gvh3gk7271j1vrdhsv7j04bbk-top"
	realisationText = `{"dependentRealisations":{"` + depID + `":"` + depBase + `"},"id":"` + topID + `","outPath":"` + topBase + `","signatures":["` + testSignature + `"]}`
	realisationSign = `{"dependentRealisations":{"` + depID + `":"` + depBase + `"},"id":"` + topID + `","outPath":"` + topBase + `"}`

	traceDrv  = "ib8z64g5wzl2vhszqinr1zmfr4aymban-top.drv"
	traceText = `{"outPath":"` + topBase + `","signatures":[{"keyName":"test-1","sig":"` + "GEOKzKtcQQJDLaxdPZSYOX9BZhkCHZvHNMGx2KTS4/m5mZ8ROkYezx0mTXp01O+i7x0dWcBJBmLqSdnNjSGmCw==" + `"}]}`
	traceSign = `{"key":{"drvPath":"` + traceDrv + `","outputName":"out"},"value":{"outPath":"` + topBase + `"}}`
)

func TestRealisationID(t *testing.T) {
	id, err := nix.ParseRealisationID(topID)
	if err != nil || id.String() != topID || id.Output != "out" || "sha256:"+id.DrvHash.Base16() != strings.TrimSuffix(topID, "!out") {
		t.Errorf("got %v, %v", id, err)
	}
	if other := must(nix.ParseRealisationID("sha256:" + id.DrvHash.Nix32() + "!out")); other != id {
		t.Errorf("base 32 is read as %v", other)
	}
	for _, test := range []struct{ text, want string }{
		{"", "no exclamation mark"},
		{strings.TrimSuffix(topID, "!out"), "no exclamation mark"},
		{strings.TrimSuffix(topID, "out"), "check output name"},
		{topID + "!out", `'!' may not be in its name`},
		{topID + "/../..", `'/' may not be in its name`},
		{topID[7:], "does not say its algorithm"},
		{"sha256:00!out", "its length"},
	} {
		_, err := nix.ParseRealisationID(test.text)
		wantErr(t, err, test.want)
	}
}

func TestRealisation(t *testing.T) {
	r, err := nix.ParseRealisation(nix.DefaultStoreDir, []byte(realisationText))
	if err != nil {
		t.Fatal(err)
	}
	want := &nix.Realisation{
		ID:           must(nix.ParseRealisationID(topID)),
		OutPath:      base(topBase),
		Signatures:   []nix.Signature{must(nix.ParseSignature(testSignature))},
		Dependencies: map[nix.RealisationID]nix.StorePath{must(nix.ParseRealisationID(depID)): base(depBase)},
	}
	if !cmp.Equal(r, want, cmpValues) {
		t.Errorf("got %s", cmp.Diff(want, r, cmpValues))
	}
	if got := string(r.AppendFingerprint([]byte("x"))); got != "x"+realisationSign {
		t.Errorf("fingerprint is %s, want %s", got, realisationSign)
	}
	if got := string(must(json.Marshal(r))); got != realisationText {
		t.Errorf("JSON is %s", got)
	}
	key := must(nix.ParseSecretKey(testSecretKey))
	r.Signatures = []nix.Signature{key.Sign(r.AppendFingerprint(nil))}
	again := must(nix.ParseRealisation(nix.DefaultStoreDir, must(json.Marshal(r))))
	if !key.Public().Verify(again.AppendFingerprint(nil), again.Signatures[0]) {
		t.Error("its signature does not verify after writing and reading")
	}
}

func TestRealisationVariants(t *testing.T) {
	bare := &nix.Realisation{ID: must(nix.ParseRealisationID(topID)), OutPath: base(topBase)}
	signed := &nix.Realisation{ID: bare.ID, OutPath: bare.OutPath, Signatures: []nix.Signature{must(nix.ParseSignature(testSignature))}}
	const start = `{"id":"` + topID + `","outPath":"` + topBase + `"`
	for _, test := range []struct {
		text string
		want *nix.Realisation
	}{
		{start + `}`, bare},
		{" " + start + ` , "dependentRealisations":{},"signatures":[],"future":{"a":[1]}} ` + "\n", bare},
		{start + `,"OUTPATH":"x","Id":"y"}`, bare},
		{start + `,"signatures":["` + testSignature + `","` + testSignature + `"]}`, signed},
		{start + `,"signatures":[{"keyName":"test-1","sig":"` + signatureTail[1:] + `"}]}`, signed},
	} {
		got, err := nix.ParseRealisation(nix.DefaultStoreDir, []byte(test.text))
		if err != nil || !cmp.Equal(got, test.want, cmpValues) {
			t.Errorf("%s: %v %s", test.text, err, cmp.Diff(test.want, got, cmpValues))
		}
	}
	if got := string(must(json.Marshal(bare))); got != `{"dependentRealisations":{},"id":"`+topID+`","outPath":"`+topBase+`","signatures":[]}` {
		t.Errorf("JSON is %s", got)
	}
}

func TestRealisationRefused(t *testing.T) {
	const start = `{"id":"` + topID + `","outPath":"` + topBase + `"`
	for _, test := range []struct{ text, want string }{
		{``, "unexpected end"},
		{`null`, "it is no object"},
		{`[]`, "cannot unmarshal"},
		{start, "unexpected end"},
		{start + `}}`, "invalid character"},
		{`{"outPath":"` + topBase + `"}`, "id is missing"},
		{`{"id":"` + topID + `"}`, "outPath is missing"},
		{`{"id":1,"outPath":"` + topBase + `"}`, "id: "},
		{`{"id":"x","outPath":"` + topBase + `"}`, "no exclamation mark"},
		{`{"id":"` + topID + `","outPath":"/nix/store/` + topBase + `"}`, "32 characters"},
		{`{"id":"` + topID + `","outPath":null}`, "32 characters"},
		{start + `,"signatures":["x"]}`, "no colon"},
		{start + `,"signatures":[{"keyName":"a"}]}`, "sig is missing"},
		{start + `,"signatures":[1]}`, "signatures: "},
		{start + `,"signatures":{}}`, "signatures: "},
		{start + `,"signatures":[` + manySignatures(65) + `]}`, "more than 64 signatures"},
		{start + `,"dependentRealisations":{"x":"y"}}`, "no exclamation mark"},
		{start + `,"dependentRealisations":{"` + depID + `":"y"}}`, "32 characters"},
		{start + `,"dependentRealisations":{"` + depID + `":"` + depBase + `","sha256:` + strings.ToUpper(depID[7:71]) + `!out":"` + topBase + `"}}`, "is there twice"},
		{start + `,"dependentRealisations":[]}`, "dependentRealisations: "},
		{start + `,"x":"` + strings.Repeat("x", nix.MaxRealisationSize) + `"}`, "longer than 1048576 bytes"},
		{strings.Repeat("[", 100000), "exceeded max depth"},
	} {
		_, err := nix.ParseRealisation(nix.DefaultStoreDir, []byte(test.text))
		wantErr(t, err, test.want)
	}
}

// manySignatures returns the members of a list of n signatures.
func manySignatures(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`"k%d%s"`, i, signatureTail)
	}
	return strings.Join(list, ",")
}

func TestBuildTrace(t *testing.T) {
	want := &nix.BuildTrace{Drv: base(traceDrv), Output: "out", OutPath: base(topBase),
		Signatures: []nix.Signature{must(nix.ParseSignature(testSignature))}}
	for _, text := range []string{traceText, `{"signatures":["` + testSignature + `"],"outPath":"` + topBase + `","x":1}`} {
		got, err := nix.ParseBuildTrace(base(traceDrv), "out", []byte(text))
		if err != nil || !cmp.Equal(got, want, cmpValues) {
			t.Errorf("%s: %v %s", text, err, cmp.Diff(want, got, cmpValues))
		}
	}
	if got := string(must(json.Marshal(want))); got != traceText {
		t.Errorf("JSON is %s", got)
	}
	if got := string(want.AppendFingerprint([]byte("x"))); got != "x"+traceSign {
		t.Errorf("fingerprint is %s, want %s", got, traceSign)
	}
	for _, test := range []struct {
		drv          nix.StorePath
		output, text string
		want         string
	}{
		{base(topBase), "out", traceText, "not of a derivation"},
		{nix.StorePath{}, "out", traceText, "not of a derivation"},
		{base(traceDrv), "", traceText, "check output name"},
		{base(traceDrv), "../x", traceText, "check output name"},
		{base(traceDrv), "out", `{}`, "outPath is missing"},
		{base(traceDrv), "out", `null`, "it is no object"},
		{base(traceDrv), "out", `{"outPath":"x"}`, "32 characters"},
		{base(traceDrv), "out", `{"outPath":"` + topBase + `","signatures":[null]}`, "no colon"},
	} {
		_, err := nix.ParseBuildTrace(test.drv, test.output, []byte(test.text))
		wantErr(t, err, test.want)
	}
}

func TestRealisationRoundTrip(t *testing.T) {
	genID := rapid.Custom(func(t *rapid.T) nix.RealisationID {
		return nix.RealisationID{DrvHash: genHash(nix.SHA256).Draw(t, "drv hash"), Output: genName().Draw(t, "output")}
	})
	rapid.Check(t, func(t *rapid.T) {
		dir := genDir().Draw(t, "dir")
		want := &nix.Realisation{
			ID:      genID.Draw(t, "id"),
			OutPath: genPath(dir).Draw(t, "out path"),
			Signatures: rapid.SliceOfNDistinct(genSignature(), 1, 3, nix.Signature.String).
				Draw(t, "signatures"),
			Dependencies: rapid.MapOfN(genID, genPath(dir), 1, 3).Draw(t, "dependencies"),
		}
		got, err := nix.ParseRealisation(dir, must(json.Marshal(want)))
		if err != nil || !cmp.Equal(got, want, cmpValues) {
			t.Fatal(err, cmp.Diff(want, got, cmpValues))
		}
		if !json.Valid(want.AppendFingerprint(nil)) {
			t.Fatalf("fingerprint is no JSON: %s", want.AppendFingerprint(nil))
		}

		trace := &nix.BuildTrace{
			Drv:        must(dir.ParseBase(genPath(dir).Filter(func(p nix.StorePath) bool { return len(p.Name()) < 200 }).Draw(t, "drv").Base() + ".drv")),
			Output:     want.ID.Output,
			OutPath:    want.OutPath,
			Signatures: want.Signatures,
		}
		gotTrace, err := nix.ParseBuildTrace(trace.Drv, trace.Output, must(json.Marshal(trace)))
		if err != nil || !cmp.Equal(gotTrace, trace, cmpValues) {
			t.Fatal(err, cmp.Diff(trace, gotTrace, cmpValues))
		}
	})
}

func FuzzRealisation(f *testing.F) {
	f.Add([]byte(realisationText))
	f.Add([]byte(`{"id":"` + topID + `","outPath":"` + topBase + `"}`))
	f.Add([]byte(traceText))
	f.Add([]byte(`{"id":"` + topID + `","outPath":"` + topBase + `","signatures":["a:` + base64.StdEncoding.EncodeToString(make([]byte, 2420)) + `"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := nix.ParseRealisation(nix.DefaultStoreDir, text)
		if err == nil {
			again, err := nix.ParseRealisation(nix.DefaultStoreDir, must(json.Marshal(r)))
			if err != nil || !cmp.Equal(again, r, cmpValues) {
				t.Errorf("written and read again: %v %s", err, cmp.Diff(r, again, cmpValues))
			}
		}
		b, err := nix.ParseBuildTrace(base(traceDrv), "out", text)
		if err == nil {
			again, err := nix.ParseBuildTrace(base(traceDrv), "out", must(json.Marshal(b)))
			if err != nil || !cmp.Equal(again, b, cmpValues) {
				t.Errorf("written and read again: %v %s", err, cmp.Diff(b, again, cmpValues))
			}
		}
	})
}

func FuzzRealisationID(f *testing.F) {
	f.Add(topID)
	f.Add("md5:4425hx5d1mc9y39llj4k4nm55i!dev")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := nix.ParseRealisationID(text)
		if err != nil {
			return
		}
		if again, err := nix.ParseRealisationID(id.String()); err != nil || again != id {
			t.Errorf("%q is read as %v, and after writing as %v, %v", text, id, again, err)
		}
	})
}

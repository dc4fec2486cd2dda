package nix_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"firn/nix"
)

const (
	glibc = "00000000000000000000000000000000-glibc-2.36"
	bash  = "11111111111111111111111111111111-bash-5.2"
	lib   = "22222222222222222222222222222222-lib+x=1?"
)

// fullText has every field, in Nix's order.
const fullText = "StorePath: /nix/store/" + bash + "\n" +
	"URL: nar/00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq.nar.xz\n" +
	"Compression: xz\n" +
	"FileHash: sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq\n" +
	"FileSize: 1234\n" +
	"NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\n" +
	"NarSize: 5680\n" +
	"References: " + glibc + " " + bash + "\n" +
	"Deriver: " + bash + ".drv\n" +
	"Sig: " + testSignature + "\n" +
	"Sig: other-1" + signatureTail + "\n"

// plainText has what is required, of the path that nix-store --add gives hello.txt.
const plainText = "StorePath: /nix/store/" + helloBase + "\n" +
	"URL: nar/04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw.nar\n" +
	"Compression: none\n" +
	"NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\n" +
	"NarSize: 120\n" +
	"References: \n" +
	"CA: fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\n"

func base(s string) nix.StorePath { return must(nix.DefaultStoreDir.ParseBase(s)) }

func fullInfo() *nix.NARInfo {
	return &nix.NARInfo{
		PathInfo: nix.PathInfo{
			Path:       base(bash),
			NARHash:    must(nix.ParseHash("sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw")),
			NARSize:    5680,
			References: []nix.StorePath{base(glibc), base(bash)},
			Deriver:    base(bash + ".drv"),
			Signatures: []nix.Signature{
				must(nix.ParseSignature(testSignature)),
				must(nix.ParseSignature("other-1" + signatureTail)),
			},
		},
		URL:         "nar/" + helloNix32 + ".nar.xz",
		Compression: nix.XZ,
		FileHash:    must(nix.ParseHash("sha256:" + helloNix32)),
		FileSize:    1234,
	}
}

func TestNARInfo(t *testing.T) {
	for _, parse := range []func(nix.StoreDir, []byte) (*nix.NARInfo, error){nix.ParseNARInfo, nix.ParseNARInfoStrict} {
		for _, text := range []string{fullText, plainText} {
			n, err := parse(nix.DefaultStoreDir, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if got := string(n.AppendText(nil)); got != text {
				t.Errorf("written otherwise than read:\n%s", cmp.Diff(text, got))
			}
		}
		if got := must(parse(nix.DefaultStoreDir, []byte(fullText))); !cmp.Equal(got, fullInfo(), cmpValues) {
			t.Errorf("got %s", cmp.Diff(fullInfo(), got, cmpValues))
		}
	}
}

func TestNARInfoText(t *testing.T) {
	n := &nix.NARInfo{PathInfo: nix.PathInfo{
		Path:    base(helloBase),
		NARHash: must(nix.ParseHash("sha256:" + helloNix32)),
		NARSize: 120,
	}, URL: "nar/x.nar"}
	const want = "x" + "StorePath: /nix/store/" + helloBase + "\nURL: nar/x.nar\nCompression: none\n" +
		"NarHash: sha256:" + helloNix32 + "\nNarSize: 120\nReferences: \n"
	if got := string(n.AppendText([]byte("x"))); got != want {
		t.Errorf("got %s", cmp.Diff(want, got))
	}
}

// The size that is said of a text is no smaller than it is, and by little larger.
func TestTextSize(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := genNARInfo().Draw(t, "narinfo")
		if got, said := len(n.AppendText(nil)), n.TextSize(); said < got || said > got+700 {
			t.Fatalf("%d bytes, which are said to be %d", got, said)
		}
	})
}

func TestAppendTextDoesNotAllocate(t *testing.T) {
	n := benchNARInfo()
	buf := n.AppendText(nil)
	if allocs := testing.AllocsPerRun(10, func() { buf = n.AppendText(buf[:0]) }); allocs > 0 {
		t.Errorf("it allocates %v times although the buffer is large enough", allocs)
	}
}

// What is found in the wild is read like its tidy form.
func TestNARInfoTolerant(t *testing.T) {
	replace := func(old, new string) string {
		if !strings.Contains(fullText, old) {
			t.Fatalf("%q is not in the text", old)
		}
		return strings.ReplaceAll(fullText, old, new)
	}
	without := func(change func(*nix.NARInfo)) *nix.NARInfo {
		n := fullInfo()
		change(n)
		return n
	}
	noReferences := without(func(n *nix.NARInfo) { n.References = nil })
	const references = "References: " + glibc + " " + bash + "\n"
	for _, test := range []struct {
		name, text string
		want       *nix.NARInfo
	}{
		{"no final newline", strings.TrimSuffix(fullText, "\n"), fullInfo()},
		{"empty lines at the end", fullText + "\n\n", fullInfo()},
		{"an empty line between", replace("\nURL", "\n\nURL"), fullInfo()},
		{"a line without a colon", replace("\nURL", "\ngarbage\nURL"), fullInfo()},
		{"unknown fields", "System: x86_64-linux\nProvenance: {\"a\":1}\n" + fullText, without(func(n *nix.NARInfo) {
			n.Extra = []nix.Field{{Name: "System", Value: "x86_64-linux"}, {Name: "Provenance", Value: `{"a":1}`}}
		})},
		{"unknown fields that are not right", "A B: x\nsig: x\nEmpty:\nCut: a\x00b\nÉ: x\n" + fullText, fullInfo()},
		{"an unknown field twice", fullText + "System: a\nsystem: b\nSystem: c\n", without(func(n *nix.NARInfo) { n.Extra = []nix.Field{{Name: "System", Value: "a"}} })},
		{"an unknown field that is too large", fullText + unknownFields(1, 64<<10), fullInfo()},
		{"no spaces after colons", replace(": ", ":"), fullInfo()},
		{"many spaces after colons", replace(": ", ":  \t "), fullInfo()},
		{"trailing spaces", replace("\n", " \t\n"), fullInfo()},
		{"CRLF", replace("\n", "\r\n"), fullInfo()},
		{"references in no order, twice", replace(references, "References:  "+bash+"  "+glibc+" "+bash+" \n"), fullInfo()},
		{"empty references", replace(references, "References: \n"), noReferences},
		{"empty references, no space", replace(references, "References:\n"), noReferences},
		{"no references", replace(references, ""), noReferences},
		{"empty references, then some", replace(references, "References: \n"+references), fullInfo()},
		{"unknown deriver", replace(bash+".drv", "unknown-deriver"), without(func(n *nix.NARInfo) { n.Deriver = nix.StorePath{} })},
		{"empty deriver", replace(bash+".drv", ""), without(func(n *nix.NARInfo) { n.Deriver = nix.StorePath{} })},
		{"a deriver, then unknown", fullText + "Deriver: unknown-deriver\n", without(func(n *nix.NARInfo) { n.Deriver = nix.StorePath{} })},
		{"no compression", replace("Compression: xz\n", ""), without(func(n *nix.NARInfo) { n.Compression = nix.Bzip2 })},
		{"empty compression", replace("Compression: xz\n", "Compression: \n"), without(func(n *nix.NARInfo) { n.Compression = nix.Bzip2 })},
		{"unknown compression", replace("Compression: xz\n", "Compression: zip\n"), without(func(n *nix.NARInfo) { n.Compression = "zip" })},
		{"no file", replace("FileHash: sha256:"+helloNix32+"\nFileSize: 1234\n", ""), without(func(n *nix.NARInfo) { n.FileHash, n.FileSize = nix.Hash{}, 0 })},
		{"empty file", replace("FileHash: sha256:"+helloNix32+"\nFileSize: 1234\n", "FileHash: \nFileSize: \n"), without(func(n *nix.NARInfo) { n.FileHash, n.FileSize = nix.Hash{}, 0 })},
		{"hash in base 16", replace("FileHash: sha256:"+helloNix32, "FileHash: sha256:"+helloBase16), fullInfo()},
		{"hash in base 64", replace("FileHash: sha256:"+helloNix32, "FileHash: sha256:"+helloBase64), fullInfo()},
		{"hash in SRI form", replace("FileHash: sha256:"+helloNix32, "FileHash: sha256-"+helloBase64), fullInfo()},
		{"a signature twice", fullText + "Sig: " + testSignature + "\n", fullInfo()},
		{"signatures of other formats", fullText + "Sig: opaque\nSig: a:AAAA\nSig: post-quantum-1:1:AAAA\nSig: \nSig: :\n", fullInfo()},
		{"empty content address", fullText + "CA: \n", fullInfo()},
		{"URL with a query", replace("URL: nar/"+helloNix32+".nar.xz", "URL: ../nar/x.nar?hash=y z"), without(func(n *nix.NARInfo) { n.URL = "../nar/x.nar?hash=y z" })},
		{"a field twice", replace("NarSize: 5680\n", "NarSize: 1\nNarSize: 5680\n"), fullInfo()},
	} {
		got, err := nix.ParseNARInfo(nix.DefaultStoreDir, []byte(test.text))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		} else if !cmp.Equal(got, test.want, cmpValues) {
			t.Errorf("%s: %s", test.name, cmp.Diff(test.want, got, cmpValues))
		}
	}
}

func TestNARInfoRefused(t *testing.T) {
	drop := func(key string) string {
		at := strings.Index(plainText, key+": ")
		return plainText[:at] + plainText[at+strings.Index(plainText[at:], "\n")+1:]
	}
	for _, test := range []struct{ text, field, want string }{
		{"", "StorePath", "it is missing"},
		{"\x00\xff\n\n", "StorePath", "it is missing"},
		{drop("StorePath"), "StorePath", "it is missing"},
		{drop("URL"), "URL", "it is missing"},
		{drop("NarHash"), "NarHash", "it is missing"},
		{drop("NarSize"), "NarSize", "it is missing"},
		{drop("NarSize") + "NarSize: 0\n", "NarSize", "it is missing"},
		{drop("NarSize") + "NarSize: -8\n", "NarSize", "not a decimal number"},
		{drop("NarSize") + "NarSize: +8\n", "NarSize", "not a decimal number"},
		{drop("NarSize") + "NarSize: 0x80\n", "NarSize", "not a decimal number"},
		{drop("NarSize") + "NarSize: 1e3\n", "NarSize", "not a decimal number"},
		{drop("NarSize") + "NarSize: 9223372036854775808\n", "NarSize", "not a decimal number"},
		{plainText + "FileSize: 1 2\n", "FileSize", "not a decimal number"},
		{plainText + "FileHash: md5\n", "FileHash", "does not say its algorithm"},
		{drop("NarHash") + "NarHash: " + helloNix32 + "\n", "NarHash", "does not say its algorithm"},
		{drop("StorePath") + "StorePath: " + helloBase + "\n", "StorePath", "not in /nix/store"},
		{drop("StorePath") + "StorePath: /nix/store/../../etc/passwd\n", "StorePath", "32 characters"},
		{drop("URL") + "URL: nar/\x01\n", "URL", "control characters"},
		{drop("URL") + "URL: nar/\xff\n", "URL", "not UTF-8"},
		{plainText + "Compression: x\ry\n", "Compression", "control characters"},
		{plainText + "References: /nix/store/" + helloBase + "\n", "References", "32 characters"},
		{plainText + "References: x\n", "References", "32 characters"},
		{plainText + "References: " + glibc + "\nReferences: " + glibc + "\n", "References", "it is there twice"},
		{plainText + "Deriver: x\n", "Deriver", "32 characters"},
		{plainText + "CA: fixed:md5:4425hx5d1mc9y39llj4k4nm55i\n", "CA", "it is there twice"},
		{drop("CA") + "CA: nonsense\n", "CA", `neither "text:" nor "fixed:"`},
		{plainText + "X: " + strings.Repeat("x", nix.MaxNARInfoSize), "", "longer than 16777216 bytes"},
	} {
		n, err := nix.ParseNARInfo(nix.DefaultStoreDir, []byte(test.text))
		wantFieldError(t, n, err, test.field, test.want)
	}
}

// wantFieldError fails unless a narinfo was refused for the field, with the text.
func wantFieldError(t *testing.T, n *nix.NARInfo, err error, field, text string) {
	t.Helper()
	wantErr(t, err, text)
	var fieldErr *nix.FieldError
	if !errors.As(err, &fieldErr) || fieldErr.Field != field || n != nil {
		t.Errorf("got %v, %v, want an error of field %q", n, err, field)
	}
}

func TestNARInfoJSON(t *testing.T) {
	n := fullInfo()
	n.RegistrationTime, n.Ultimate = unixTime, true
	const want = `{"ca":null,"compression":"xz","deriver":"/nix/store/` + bash + `.drv","downloadHash":"sha256-` + helloBase64 + `","downloadSize":1234,` +
		`"narHash":"sha256-HDfQGvQL4ugGkd48w99EN3ppmvuxfGjwgJZLL9Bx/BM=","narSize":5680,"path":"/nix/store/` + bash + `",` +
		`"references":["/nix/store/` + glibc + `","/nix/store/` + bash + `"],"registrationTime":1700000000,` +
		`"signatures":["` + testSignature + `","other-1` + signatureTail + `"],"storeDir":"/nix/store","ultimate":true,` +
		`"url":"nar/` + helloNix32 + `.nar.xz","version":1}`
	if got := string(must(json.Marshal(n))); got != want {
		t.Errorf("got %s", cmp.Diff(want, got))
	}
	const wantBare = `{"ca":"fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw","compression":"none","deriver":null,` +
		`"narHash":"sha256-HDfQGvQL4ugGkd48w99EN3ppmvuxfGjwgJZLL9Bx/BM=","narSize":120,"path":"/nix/store/` + helloBase + `",` +
		`"references":[],"registrationTime":null,"signatures":[],"storeDir":"/nix/store","ultimate":false,` +
		`"url":"nar/04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw.nar","version":1}`
	bare := must(nix.ParseNARInfo(nix.DefaultStoreDir, []byte(plainText)))
	for _, bare.Compression = range []nix.Compression{nix.None, ""} {
		if got := string(must(json.Marshal(bare))); got != wantBare {
			t.Errorf("got %s", cmp.Diff(wantBare, got))
		}
	}
}

func TestNARInfoRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genNARInfo().Draw(t, "narinfo")
		text := want.AppendText(nil)
		for _, parse := range []func(nix.StoreDir, []byte) (*nix.NARInfo, error){nix.ParseNARInfo, nix.ParseNARInfoStrict} {
			got, err := parse(want.Path.Dir(), text)
			if err != nil {
				t.Fatal(err)
			}
			if !cmp.Equal(got, want, cmpValues) {
				t.Fatal(cmp.Diff(want, got, cmpValues))
			}
		}
	})
}

func FuzzNARInfo(f *testing.F) {
	f.Add([]byte(fullText))
	f.Add([]byte(plainText))
	f.Add([]byte(strings.ReplaceAll(fullText, "\n", "\r\n")))
	f.Add([]byte(fullText + otherSignatures() + unknownFields(3, 10)))
	f.Add([]byte("StorePath:/nix/store/" + helloBase + "\nURL:x\nNarHash:sha256-" + helloBase64 + "\nNarSize:1\nReferences:\nSig:x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
		if err != nil {
			if !errors.As(err, new(*nix.FieldError)) || n != nil {
				t.Errorf("got %v, %v", n, err)
			}
			return
		}
		again, err := nix.ParseNARInfo(nix.DefaultStoreDir, n.AppendText(nil))
		if err != nil || !cmp.Equal(again, n, cmpValues) {
			t.Errorf("written and read again: %v %s", err, cmp.Diff(n, again, cmpValues))
		}
		if !json.Valid(must(n.MarshalJSON())) {
			t.Errorf("the JSON form of %q is no JSON", text)
		}
	})
}

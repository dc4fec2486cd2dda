package nix_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/nix"
)

// Every rule of the strict form, broken once.
func TestNARInfoStrictRefused(t *testing.T) {
	replaceIn := func(text, old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in the text", old)
		}
		return strings.Replace(text, old, new, 1)
	}
	full := func(old, new string) string { return replaceIn(fullText, old, new) }
	plain := func(old, new string) string { return replaceIn(plainText, old, new) }
	url := func(url string) string { return full("URL: nar/"+helloNix32+".nar.xz", "URL: "+url) }
	sigs := func(n int) string {
		var b strings.Builder
		b.WriteString(fullText)
		for i := range n - 2 {
			fmt.Fprintf(&b, "Sig: k%d%s\n", i, signatureTail)
		}
		return b.String()
	}
	for _, test := range []struct{ text, field, want string }{
		// Lines.
		{"", "", "does not end in a line feed"},
		{strings.TrimSuffix(fullText, "\n"), "", "does not end in a line feed"},
		{fullText + "\n", "", "line 12: it has no colon"},
		{full("\nURL", "\n\nURL"), "", "line 2: it has no colon"},
		{full("\nURL", "\ngarbage\nURL"), "", "line 2: it has no colon"},
		{full("\nURL", "\n: x\nURL"), "", "line 2: it does not begin with a field name"},
		{full("URL:", "URL :"), "", "line 2: it does not begin with a field name"},
		{full("URL:", " URL:"), "", "line 2: it does not begin with a field name"},
		{full("URL: ", "URL:"), "", `line 2: no space follows the colon of "URL"`},
		{full("URL: ", "URL:\t"), "", `line 2: no space follows the colon of "URL"`},
		{full("URL: ", "URL:  "), "", `line 2: there are too many spaces around the value of "URL"`},
		{full("Compression: xz", "Compression: xz "), "", "line 3: there are too many spaces"},
		{full("References: "+glibc+" "+bash, "References:"), "", `line 8: no space follows the colon of "References"`},
		{full("References: "+glibc+" "+bash, "References:  "), "", "line 8: there are too many spaces"},
		{full("Compression: xz", "Compression: "), "", `line 3: "Compression" has no value`},
		{full(bash+".drv", ""), "", `line 9: "Deriver" has no value`},
		{strings.ReplaceAll(fullText, "\n", "\r\n"), "", "line 1: it has control characters"},
		{full("Compression: xz", "Compression: x\x00z"), "", "line 3: it has control characters"},
		{full("Compression: xz", "Compression: xz\nX: \xff"), "", "line 4: it has control characters or is not UTF-8"},
		{fullText + "X: " + strings.Repeat("x", nix.MaxNARInfoSize), "", "longer than"},
		// Fields.
		{full("StorePath: /nix/store/", "StorePath: /nix/store//"), "StorePath", "32 characters"},
		{full("StorePath: /nix/store/"+bash+"\n", ""), "StorePath", "it is missing"},
		{full("URL: nar/"+helloNix32+".nar.xz\n", ""), "URL", "it is missing"},
		{full("NarHash: ", "NarHas: "), "NarHash", "it is missing"},
		{full("NarSize: ", "NarSiz: "), "NarSize", "it is missing"},
		{full("NarSize: 5680", "NarSize: 0"), "NarSize", "it is missing"},
		{full("NarSize: 5680", "NarSize: 88"), "NarSize", "no NAR has 88 bytes"},
		{full("NarSize: 5680", "NarSize: 5681"), "NarSize", "no NAR has 5681 bytes"},
		{full("NarSize: 5680", "NarSize: 9223372036854775808"), "NarSize", "below 2^63"},
		{full("Compression: xz", "Compression: zip"), "Compression", `"zip" is unknown`},
		{full("Compression: xz", "Compression: XZ"), "Compression", `"XZ" is unknown`},
		{full("NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw", "NarHash: md5:4425hx5d1mc9y39llj4k4nm55i"), "NarHash", "it is of md5, not of sha256"},
		{full("NarHash: sha256:0", "NarHash: sha256:2"), "NarHash", "bits to spare"},
		{full("FileHash: sha256:"+helloNix32, "FileHash: md5:4425hx5d1mc9y39llj4k4nm55i"), "FileHash", "it is of md5, not of sha256"},
		{full("References: "+glibc, "References: "+bash), "References", "a reference is there twice"},
		{full("References: "+glibc+" ", "References: "+glibc+"  "), "References", "two spaces between"},
		{full("References: ", "References: ../x "), "References", "32 characters"},
		{full("References: ", "References: /nix/store/"), "References", "32 characters"},
		{full("Deriver: ", "Deriver: /nix/store/"), "Deriver", "32 characters"},
		{full("Sig: test-1:", "Sig: test-1"), "Sig", "no colon"},
		{full("Sig: test-1:", "Sig: :"), "Sig", "visible ASCII"},
		{full("Cw==", "Cw="), "Sig", "not base 64 of 64 to 8192 bytes"},
		{full("Cw==", "Cx=="), "Sig", "canonical base 64"},
		{sigs(65), "Sig", "more than 64"},
		{fullText + "Sig: a:" + base64.StdEncoding.EncodeToString(make([]byte, 63)) + "\n", "Sig", "64 to 8192 bytes"},
		{fullText + "Sig: a:" + base64.StdEncoding.EncodeToString(make([]byte, 8193)) + "\n", "Sig", "64 to 8192 bytes"},
		{fullText + "Sig: a:ml-dsa-65:" + base64.StdEncoding.EncodeToString(make([]byte, 3309)) + "\n", "Sig", "canonical base 64"},
		{fullText + "Sig: a:" + strings.Repeat("x", 1<<20) + "\n", "Sig", "64 to 8192 bytes"},
		// Unknown fields.
		{fullText + "Provenance: 1\nProvenance: 1\n", "Provenance", "it is there twice"},
		{fullText + "Provenance: 1\nprovenance: 2\n", "provenance", "it is there twice"},
		{fullText + "sig: x\n", "sig", "upper and lower case only"},
		{fullText + "NARHASH: x\n", "NARHASH", "upper and lower case only"},
		{fullText + "A/B: x\n", "A/B", "the name of a field has"},
		{fullText + strings.Repeat("x", 65) + ": x\n", strings.Repeat("x", 65), "the name of a field has"},
		{fullText + unknownFields(17, 1), "F16", "more than 16 unknown fields"},
		{fullText + unknownFields(2, 32<<10), "F1", "more than 65536 bytes"},
		{fullText + "Provenance: a\rSig: b\n", "", "line 12: it has control characters"},
		{fullText + "Provenance: a\x7f\n", "", "line 12: it has control characters"},
		{plain("CA: fixed:r:", "CA: fixed:nar:"), "CA", "unknown hash algorithm"},
		{plain("hello.txt", "hello.tx"), "CA", "is the address of /nix/store/"},
		{plain("NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw", "NarHash: sha256:"+helloNix32), "CA", "is not of the NAR hash"},
		{plain("NarSize: 120", "FileHash: sha256:"+helloNix32+"\nNarSize: 120"), "FileHash", "not that of NarHash"},
		{plain("NarSize: 120", "FileSize: 119\nNarSize: 120"), "FileSize", "not that of NarSize"},
		// URLs that lead elsewhere.
		{url("http://127.0.0.1/nar/x.nar"), "URL", "not a plain relative path"},
		{url("//example.org/nar/x.nar"), "URL", "not a plain relative path"},
		{url("/nar/x.nar"), "URL", "not a plain relative path"},
		{url("nar/../../x.nar"), "URL", "not a plain relative path"},
		{url("../x.nar"), "URL", "not a plain relative path"},
		{url("./x.nar"), "URL", "not a plain relative path"},
		{url("nar//x.nar"), "URL", "not a plain relative path"},
		{url("nar/x.nar/"), "URL", "not a plain relative path"},
		{url("nar/%2e%2e/x.nar"), "URL", "not a plain relative path"},
		{url("nar/x.nar?hash=y"), "URL", "not a plain relative path"},
		{url("nar/x.nar#y"), "URL", "not a plain relative path"},
		{url(`nar\x.nar`), "URL", "not a plain relative path"},
		{url("file:x.nar"), "URL", "not a plain relative path"},
		{url("nar/é.nar"), "URL", "not a plain relative path"},
		{url("nar/a b.nar"), "URL", "not a plain relative path"},
		{url(strings.Repeat("x", 1025)), "URL", "not a plain relative path"},
	} {
		n, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, []byte(test.text))
		wantFieldError(t, n, err, test.field, test.want)
	}
	if _, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, []byte(sigs(64))); err != nil {
		t.Errorf("64 signatures: %v", err)
	}
	// Each known field but Sig, a second time.
	for line := range strings.Lines(fullText + "CA: text:sha256:" + helloNix32 + "\n") {
		if field, _, _ := strings.Cut(line, ":"); field != "Sig" {
			n, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, []byte(line+line))
			wantFieldError(t, n, err, field, "it is there twice")
		}
	}
	n, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, []byte("References: \nReferences: \n"))
	wantFieldError(t, n, err, "References", "it is there twice")
}

// unknownFields are n fields, each with a value of a size.
func unknownFields(n, size int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "F%d: %s\n", i, strings.Repeat("x", size))
	}
	return b.String()
}

// otherSignatures are signatures of other algorithms, as Determinate Nix writes them: ECDSA with
// P-384, and the three sizes of ML-DSA.
func otherSignatures() string {
	var b strings.Builder
	for _, size := range []int{102, 103, 104, 2420, 3309, 4627} {
		fmt.Fprintf(&b, "Sig: other-%d:%s\n", size, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{byte(size)}, size)))
	}
	return b.String()
}

// strictAccepted has narinfos that are unlike Nix's own, but right.
func strictAccepted() []struct{ name, text string } {
	return []struct{ name, text string }{
		{"an unknown field", "System: x86_64-linux\n" + fullText},
		{"fields of Determinate Nix", fullText + "PartialClosure: " + bash + "\nProvenance: {\"type\":\"copied\",\"from\":\"https://example.org/é\"}\n"},
		{"as many unknown fields as there may be", fullText + unknownFields(16, 4<<10-8)},
		{"signatures of other algorithms", fullText + otherSignatures()},
		{"no references", strings.Replace(fullText, "References: "+glibc+" "+bash+"\n", "", 1)},
		{"references in another order", strings.Replace(fullText, glibc+" "+bash, bash+" "+glibc, 1)},
		{"unknown deriver", strings.Replace(fullText, bash+".drv", "unknown-deriver", 1)},
		{"a deriver that is no derivation", strings.Replace(fullText, bash+".drv", bash, 1)},
		{"no compression", strings.Replace(fullText, "Compression: xz\n", "", 1)},
		{"SRI hash", strings.Replace(fullText, "FileHash: sha256:"+helloNix32, "FileHash: sha256-"+helloBase64, 1)},
		{"a signature twice", fullText + "Sig: " + testSignature + "\n"},
		{"the smallest NAR", strings.Replace(fullText, "NarSize: 5680", "NarSize: 96", 1)},
		{"a plain URL", strings.Replace(fullText, "URL: nar/", "URL: a/b-c/~d_e=f+g.h...i/", 1)},
	}
}

func TestNARInfoStrictAccepted(t *testing.T) {
	for _, test := range strictAccepted() {
		if _, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, []byte(test.text)); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func FuzzNARInfoStrict(f *testing.F) {
	f.Add([]byte(fullText))
	f.Add([]byte(plainText))
	for _, test := range strictAccepted() {
		f.Add([]byte(test.text))
	}
	f.Add([]byte(strings.Replace(fullText, "nar/", "nar/../", 1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
		if err != nil {
			return
		}
		tolerant, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
		if err != nil || !cmp.Equal(tolerant, n, cmpValues) {
			t.Errorf("the tolerant reader sees it otherwise: %v %s", err, cmp.Diff(n, tolerant, cmpValues))
		}
		written := n.AppendText(nil)
		again, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, written)
		if err != nil || !cmp.Equal(again, n, cmpValues) {
			t.Errorf("written and read again: %v %s", err, cmp.Diff(n, again, cmpValues))
		}
		if strings.Contains(n.URL, "..") && slices.Contains(strings.Split(n.URL, "/"), "..") || bytes.ContainsAny(text, "\r\x00") {
			t.Errorf("%q is accepted", text)
		}
	})
}

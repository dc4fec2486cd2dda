package doctor

import (
	"net/http"
	"strings"
	"testing"

	"firn/nix"
)

// edit changes the line of a field in the narinfo, after it was signed. Without lines, it is taken out.
func edit(field string, lines ...string) func(*fixture) {
	return func(f *fixture) {
		f.edit = func(text string) string {
			start := strings.Index("\n"+text, "\n"+field+":")
			if start < 0 {
				f.t.Fatalf("there is no %s in\n%s", field, text)
			}
			end := start + strings.Index(text[start:], "\n") + 1
			return text[:start] + strings.Join(lines, "\n") + strings.Repeat("\n", min(len(lines), 1)) + text[end:]
		}
	}
}

func TestNARInfo(t *testing.T) {
	none := func(text string) map[string]string {
		return skips(map[string]string{"narinfo": "fail " + text}, "signature", "references", "nar", "nar-encoding", "compression", "nar-hash", "ranges")
	}
	only := func(text string) map[string]string { return map[string]string{"narinfo": text} }
	elsewhere := skips(only("warn leads to another host"), "nar", "nar-encoding", "compression", "nar-hash", "ranges")
	findAll(t, map[string]fault{
		"no line feed": {func(f *fixture) { f.edit = func(s string) string { return strings.TrimSuffix(s, "\n") } }, only("fail does not end in a line feed")},
		"CR LF":        {func(f *fixture) { f.edit = func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") } }, only("fail CR LF")},
		"web page":     {func(f *fixture) { f.edit = func(string) string { return webPage } }, none("is a web page")},
		"empty":        {func(f *fixture) { f.edit = func(string) string { return "" } }, none("StorePath")},
		"too large": {func(f *fixture) {
			f.edit = func(s string) string { return s + strings.Repeat("X: y\n", nix.MaxNARInfoSize/5) }
		}, none("more than 16777216 bytes")},

		"no NarSize":  {edit("NarSize"), none("NarSize: it is missing")},
		"no NarHash":  {edit("NarHash"), none("NarHash: it is missing")},
		"no URL":      {edit("URL"), none("URL: it is missing")},
		"broken path": {edit("StorePath", "StorePath: /nix/store/hello"), none("StorePath")},
		"other path": {func(f *fixture) {
			f.edit = func(s string) string { return strings.ReplaceAll(s, strings.Repeat("1", 32), strings.Repeat("5", 32)) }
		}, map[string]string{"narinfo": "fail was asked for", "signature": "fail"}},
		"absolute URL":          {edit("URL", "URL: https://elsewhere.example/nar/hello.nar"), elsewhere},
		"slash":                 {edit("URL", "URL: /nar/hello.nar"), only("warn begins with a slash")},
		"unknown compression":   {edit("Compression", "Compression: middle-out"), map[string]string{"narinfo": `fail "middle-out"`, "compression": "fail the file is zstd", "nar-hash": "skip"}},
		"no compression":        {edit("Compression"), map[string]string{"narinfo": "warn does not say its Compression", "compression": "fail the narinfo says bzip2, and the file is zstd", "nar-hash": "skip"}},
		"no space":              {edit("Deriver", "Deriver:"+strings.Repeat("3", 32)+"-hello.drv"), only("fail no space follows")},
		"empty references":      {func(f *fixture) { f.info.References = []nix.StorePath{}; edit("References", "References:")(f) }, only("fail no space follows")},
		"no colon":              {edit("Deriver", "what is this"), only("fail has no colon")},
		"broken signature":      {edit("Deriver", "Sig: no signature"), only("fail a Sig is no signature")},
		"only by Nix":           {edit("Deriver", "Deriver: "+strings.Repeat("3", 32)+"-hello.drv", "Deriver: "+strings.Repeat("3", 32)+"-hello.drv"), only("warn it is there twice")},
		"escapes for terminals": {edit("Deriver", "\x1b[31mred"), only(`fail "\x1b[31mred"`)},
	})
}

func TestSignature(t *testing.T) {
	other, err := nix.GenerateKey("other-1")
	if err != nil {
		t.Fatal(err)
	}
	same, err := nix.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	signed := func(key nix.SecretKey) func(*fixture) {
		return func(f *fixture) { f.info.Signatures = []nix.Signature{key.Sign(f.info.AppendFingerprint(nil))} }
	}
	only := func(text string) map[string]string { return map[string]string{"signature": text} }
	findAll(t, map[string]fault{
		"none":      {func(f *fixture) { f.info.Signatures = []nix.Signature{} }, only("fail has no signature")},
		"by others": {signed(other), only(`fail signed by "other-1", and the test does not trust that`)},
		"same name": {signed(same), only(`fail the signature by "test-1" is not what`)},
		"no keys":   {func(f *fixture) { f.opts.TrustedKeys = nil }, only("skip no key is known")},
		"by two": {func(f *fixture) {
			signed(other)(f)
			f.info.Signatures = append(f.info.Signatures, f.secret.Sign(f.info.AppendFingerprint(nil)))
		}, nil},
		"content-addressed": {func(f *fixture) {
			f.info.References, f.info.Signatures = nil, []nix.Signature{}
			f.info.CA, err = nix.NewContentAddress(nix.NARMethod, f.info.NARHash)
			if err != nil {
				t.Fatal(err)
			}
			if f.info.Path, err = f.info.CA.StorePath(nix.DefaultStoreDir, "hello", nil); err != nil {
				t.Fatal(err)
			}
			f.opts.Path = f.info.Path.Hash()
		}, nil},
	})
}

func TestReferences(t *testing.T) {
	dep := strings.Repeat("2", 32) + ".narinfo"
	only := func(text string) map[string]string { return map[string]string{"references": text} }
	findAll(t, map[string]fault{
		"missing":   {around(on(dep, http.NotFound)), only("warn 1 of 1 references are not there")},
		"failing":   {around(on(dep, answerWith(500, ""))), only("fail 500")},
		"to itself": {func(f *fixture) { f.info.References = f.info.References[:1] }, nil},
		"bounded": {func(f *fixture) {
			f.opts.References = 1
			third, err := nix.DefaultStoreDir.ParseBase(strings.Repeat("6", 32) + "-not-asked-for")
			if err != nil {
				t.Fatal(err)
			}
			f.info.References = append(f.info.References, third)
		}, nil},
	})
}

func TestHead(t *testing.T) {
	path := strings.Repeat("1", 32) + ".narinfo"
	only := func(text string) map[string]string { return map[string]string{"head": text} }
	findAll(t, map[string]fault{
		"not allowed": {around(on(path, answerWith(405, ""), http.MethodHead)), only("fail its HEAD is 405")},
		"length":      {around(on(path, answerWith(200, "", "Content-Length", "1"), http.MethodHead)), only("fail the HEAD of the narinfo says 1 bytes")},
		"no length":   {around(on(path, answerWith(200, ""), http.MethodHead)), nil},
		"of the NAR":  {around(on(".nar", answerWith(501, ""), http.MethodHead)), only("fail the HEAD of the NAR is 501")},
	})
}

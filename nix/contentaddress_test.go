package nix_test

import (
	"testing"

	"pgregory.net/rapid"

	"firn/nix"
)

func TestContentAddress(t *testing.T) {
	for _, test := range []struct {
		text   string
		method nix.ContentMethod
		name   string
		algo   nix.HashAlgorithm
	}{
		{"text:sha256:" + helloNix32, nix.TextMethod, "text", nix.SHA256},
		{"fixed:sha256:" + helloNix32, nix.FlatMethod, "flat", nix.SHA256},
		{"fixed:r:sha256:" + helloNix32, nix.NARMethod, "nar", nix.SHA256},
		{"fixed:git:sha1:wz60bbf44cw7nswp1wv8vcsyfg155sqd", nix.GitMethod, "git", nix.SHA1},
		{"fixed:md5:4425hx5d1mc9y39llj4k4nm55i", nix.FlatMethod, "flat", nix.MD5},
	} {
		ca, err := nix.ParseContentAddress(test.text)
		if err != nil || ca.Method() != test.method || ca.Method().String() != test.name || ca.Hash().Algorithm() != test.algo || ca.String() != test.text {
			t.Errorf("%s: got %v, %v", test.text, ca, err)
		}
	}
	if ca := must(nix.ParseContentAddress("fixed:r:sha256:" + helloBase16)); ca.String() != "fixed:r:sha256:"+helloNix32 {
		t.Errorf("base 16 is written as %v", ca)
	}
}

func TestContentAddressRefused(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", `neither "text:" nor "fixed:"`},
		{"r:sha256:" + helloNix32, `neither "text:" nor "fixed:"`},
		{"sha256:" + helloNix32, `neither "text:" nor "fixed:"`},
		{"Fixed:r:sha256:" + helloNix32, `neither "text:" nor "fixed:"`},
		{"fixed:", "not <algorithm>:<text>"},
		{"fixed:sha256-" + helloBase64, "not <algorithm>:<text>"},
		{"fixed:r:sha256", "not <algorithm>:<text>"},
		{"fixed:nar:sha256:" + helloNix32, "unknown hash algorithm"},
		{"fixed::sha256:" + helloNix32, "unknown hash algorithm"},
		{"text:sha1:wz60bbf44cw7nswp1wv8vcsyfg155sqd", "only ever hashed by sha256"},
		{"text:r:sha256:" + helloNix32, "unknown hash algorithm"},
		{"fixed:git:md5:4425hx5d1mc9y39llj4k4nm55i", "sha1 or sha256"},
		{"fixed:r:sha256:" + helloNix32 + "\n", "its length"},
	} {
		_, err := nix.ParseContentAddress(test.text)
		wantErr(t, err, test.want)
	}
	_, err := nix.NewContentAddress(nix.NARMethod, nix.Hash{})
	wantErr(t, err, "no hash")
	_, err = nix.NewContentAddress(0, must(nix.ParseHash("sha256:"+helloNix32)))
	wantErr(t, err, "unknown method")
	var none nix.ContentAddress
	if !none.IsZero() || none.String() != "" {
		t.Errorf("the zero content address is not empty: %v", none)
	}
}

// The paths that nix-store --add-fixed, builtins.toFile and, from Nix 2.34, nix store add --mode git
// give a file hello.txt of "hello\n".
func TestContentAddressStorePath(t *testing.T) {
	for _, test := range []struct{ ca, want string }{
		{"fixed:md5:4425hx5d1mc9y39llj4k4nm55i", "dra1cz5vbrhclpv4y1q0psnbkxz581bk-hello.txt"},
		{"fixed:r:md5:4ycxcbh0ac0abr4zxw23l6isnk", "l2ycihp9r6lnfifs72r40m62fwicg5iz-hello.txt"},
		{"fixed:r:sha1:wz60bbf44cw7nswp1wv8vcsyfg155sqd", "hzq8n5jpi3g2d0xhlvqd8q1gx5c9s6i3-hello.txt"},
		{"fixed:sha256:" + helloNix32, "gy454w1cxaq731grqwylhzf4pp9r5izh-hello.txt"},
		{"text:sha256:" + helloNix32, "qa1w9gdfrba6jl2r57mb3c43863gqywp-hello.txt"},
		{"fixed:git:sha1:993998wwkrzrcmpp0slxpa0b0cjkc0ff", "rk1ijlrs1r2baksyhs884xqb0afsc830-hello.txt"},
		{"fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw", helloBase},
	} {
		ca := must(nix.ParseContentAddress(test.ca))
		path, err := ca.StorePath(nix.DefaultStoreDir, "hello.txt", nil)
		if err != nil || path.Base() != test.want {
			t.Errorf("%v: got %v, %v, want %s", ca, path, err, test.want)
		}
	}
}

func TestContentAddressReferences(t *testing.T) {
	parse := func(s string) nix.ContentAddress { return must(nix.ParseContentAddress(s)) }
	one := []nix.StorePath{must(nix.DefaultStoreDir.ParseBase(helloBase))}
	self := []nix.StorePath{{}}
	for _, test := range []struct {
		ca   nix.ContentAddress
		name string
		refs []nix.StorePath
		want string
	}{
		{parse("text:sha256:" + helloNix32), "x", self, "cannot refer to itself"},
		{parse("fixed:sha256:" + helloNix32), "x", one, "flat contents hashed by sha256 cannot have references"},
		{parse("fixed:sha256:" + helloNix32), "x", self, "cannot have references"},
		{parse("fixed:r:md5:4ycxcbh0ac0abr4zxw23l6isnk"), "x", one, "nar contents hashed by md5 cannot have references"},
		{parse("fixed:git:sha256:" + helloNix32), "x", one, "git contents"},
		{parse("text:sha256:" + helloNix32), "a/b", nil, `'/' may not`},
		{nix.ContentAddress{}, "x", nil, "unknown method"},
	} {
		_, err := test.ca.StorePath(nix.DefaultStoreDir, test.name, test.refs)
		wantErr(t, err, test.want)
	}

	// The order of the references does not matter, nor one that is there twice, and the list stays as it was.
	ca := parse("fixed:r:sha256:" + helloNix32)
	other := must(nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-other"))
	refs := []nix.StorePath{one[0], other, {}, other}
	got := must(ca.StorePath(nix.DefaultStoreDir, "x", refs))
	if want := must(ca.StorePath(nix.DefaultStoreDir, "x", []nix.StorePath{{}, other, one[0]})); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if refs[0] != one[0] || refs[1] != other {
		t.Errorf("the references were changed: %v", refs)
	}
	if without := must(ca.StorePath(nix.DefaultStoreDir, "x", refs[:2])); without == got {
		t.Errorf("a reference to itself makes no difference: %v", got)
	}
}

func TestContentAddressRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ca := genContentAddress().Draw(t, "content address")
		if got, err := nix.ParseContentAddress(ca.String()); err != nil || got != ca {
			t.Fatalf("got %v, %v, want %v", got, err, ca)
		}
		dir := genDir().Draw(t, "dir")
		name := genName().Draw(t, "name")
		path := must(ca.StorePath(dir, name, nil))
		if got, err := dir.ParsePath(path.String()); err != nil || got != path {
			t.Fatalf("computed path %v is read as %v, %v", path, got, err)
		}
	})
}

func FuzzContentAddress(f *testing.F) {
	f.Add("text:sha256:" + helloNix32)
	f.Add("fixed:r:sha256:" + helloNix32)
	f.Add("fixed:git:sha1:wz60bbf44cw7nswp1wv8vcsyfg155sqd")
	f.Add("fixed:md5:4425hx5d1mc9y39llj4k4nm55i")
	f.Add("fixed:r:sha256:" + helloBase64)
	f.Fuzz(func(t *testing.T, text string) {
		ca, err := nix.ParseContentAddress(text)
		if err != nil {
			if !ca.IsZero() {
				t.Errorf("refused, but got %v", ca)
			}
			return
		}
		if got, err := nix.ParseContentAddress(ca.String()); err != nil || got != ca {
			t.Errorf("%q: String is read as %v, %v", text, got, err)
		}
		if _, err := ca.StorePath(nix.DefaultStoreDir, "x", nil); err != nil {
			t.Errorf("%v has no store path: %v", ca, err)
		}
	})
}

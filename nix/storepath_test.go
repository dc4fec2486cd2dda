package nix_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"firn/nix"
)

const helloBase = "i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt"

func TestStorePath(t *testing.T) {
	path, err := nix.DefaultStoreDir.ParsePath("/nix/store/" + helloBase)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ what, got, want string }{
		{"String", path.String(), "/nix/store/" + helloBase},
		{"Base", path.Base(), helloBase},
		{"Hash", path.Hash().String(), "i9pmrzmpshapij2kin22pff6fc2adavx"},
		{"Name", path.Name(), "hello.txt"},
		{"Dir", string(path.Dir()), "/nix/store"},
	} {
		if test.got != test.want {
			t.Errorf("%s is %q, want %q", test.what, test.got, test.want)
		}
	}
	if path.IsZero() || path.IsDerivation() {
		t.Errorf("IsZero is %v, IsDerivation is %v", path.IsZero(), path.IsDerivation())
	}
	if other := must(nix.DefaultStoreDir.ParseBase(helloBase)); other != path {
		t.Errorf("ParseBase gives %v, ParsePath %v", other, path)
	}
	if drv := must(nix.DefaultStoreDir.ParseBase(helloBase + ".drv")); !drv.IsDerivation() {
		t.Errorf("%v is no derivation", drv)
	}
}

func TestZeroStorePath(t *testing.T) {
	var none nix.StorePath
	if !none.IsZero() || none.String() != "" || none.Base() != "" || none.Name() != "" || none.Dir() != "" ||
		none.Hash() != (nix.PathHash{}) || none.IsDerivation() {
		t.Errorf("the zero store path is not empty: %q", none)
	}
}

func TestStorePathNames(t *testing.T) {
	const hash = "i9pmrzmpshapij2kin22pff6fc2adavx-"
	for _, name := range []string{
		"a", "0", "_", "=", "?", "+", "-", "a.b", ".a", "...", ".a-b", "..a-b", "a..", "--", "+-._?=",
		strings.Repeat("a", 211), "CON", "a.drv",
	} {
		if path, err := nix.DefaultStoreDir.ParseBase(hash + name); err != nil || path.Name() != name {
			t.Errorf("name %q: got %v, %v", name, path, err)
		}
	}
	for _, test := range []struct{ name, want string }{
		{"", "1 to 211"},
		{strings.Repeat("a", 212), "1 to 211"},
		{".", "begins with"},
		{"..", "begins with"},
		{".-", "begins with"},
		{"..-", "begins with"},
		{".-a", "begins with"},
		{"..-a", "begins with"},
		{"a/b", `'/' may not`},
		{"a b", `' ' may not`},
		{"a\n", `'\n' may not`},
		{"a\x00", `'\x00' may not`},
		{"a:b", `':' may not`},
		{"a!b", `'!' may not`},
		{"a~", `'~' may not`},
		{"a%20", `'%' may not`},
		{"é", `may not`},
		{"../x", `may not`},
	} {
		_, err := nix.DefaultStoreDir.ParseBase(hash + test.name)
		wantErr(t, err, test.want)
	}
}

func TestStorePathRefused(t *testing.T) {
	for _, test := range []struct{ path, want string }{
		{"", "not in /nix/store"},
		{"/nix/store", "not in /nix/store"},
		{helloBase, "not in /nix/store"},
		{"nix/store/" + helloBase, "not in /nix/store"},
		{"/nix/store" + helloBase, "not in /nix/store"},
		{"/gnu/store/" + helloBase, "not in /nix/store"},
		{"/nix/../nix/store/" + helloBase, "not in /nix/store"},
		{"//nix/store/" + helloBase, "not in /nix/store"},
		{"/nix/store/", "32 characters"},
		{"/nix/store//" + helloBase, "32 characters"},
		{"/nix/store/./" + helloBase, "32 characters"},
		{"/nix/store/" + helloBase + "/", "may not"},
		{"/nix/store/" + helloBase + "/bin", "may not"},
		{"/nix/store/" + helloBase + "\n", "may not"},
		{"/nix/store/i9pmrzmpshapij2kin22pff6fc2adavx", "32 characters"},
		{"/nix/store/i9pmrzmpshapij2kin22pff6fc2adavx-", "1 to 211"},
		{"/nix/store/i9pmrzmpshapij2kin22pff6fc2adav-hello", "32 characters"},
		{"/nix/store/i9pmrzmpshapij2kin22pff6fc2adavxx-hello", "32 characters"},
		{"/nix/store/e9pmrzmpshapij2kin22pff6fc2adavx-hello", `'e' is no digit`},
		{"/nix/store/I9pmrzmpshapij2kin22pff6fc2adavx-hello", `'I' is no digit`},
	} {
		_, err := nix.DefaultStoreDir.ParsePath(test.path)
		wantErr(t, err, test.want)
	}
}

func TestErrorsAreShort(t *testing.T) {
	_, err := nix.DefaultStoreDir.ParsePath(strings.Repeat("x", 1<<20))
	if n := len(err.Error()); n > 500 {
		t.Errorf("the error has %d bytes", n)
	}
}

func TestPathHash(t *testing.T) {
	const text = "i9pmrzmpshapij2kin22pff6fc2adavx"
	if hash, err := nix.ParsePathHash(text); err != nil || hash.String() != text {
		t.Errorf("got %v, %v", hash, err)
	}
	for _, test := range []struct{ text, want string }{
		{"", "it has 0 characters"},
		{text[1:], "it has 31 characters"},
		{text + "0", "it has 33 characters"},
		{"u" + text[1:], "no digit"},
		{"I" + text[1:], "no digit"},
		{"../" + text[3:], "no digit"},
	} {
		_, err := nix.ParsePathHash(test.text)
		wantErr(t, err, test.want)
	}
}

func TestStoreDir(t *testing.T) {
	for _, dir := range []string{"/nix/store", "/a", "/gnu/store", "/home/a b/store", "/é"} {
		if got, err := nix.ParseStoreDir(dir); err != nil || string(got) != dir {
			t.Errorf("%q: got %q, %v", dir, got, err)
		}
	}
	for _, test := range []struct{ dir, want string }{
		{"", "empty"},
		{"/", "root"},
		{"nix/store", "not absolute"},
		{"/nix/store/", "shortest form, /nix/store"},
		{"/nix//store", "shortest form"},
		{"/nix/../store", "shortest form"},
		{"/nix/./store", "shortest form"},
		{"/nix\nstore", "control characters"},
		{"/nix\xffstore", "control characters"},
		{"/" + strings.Repeat("a", 4000), "longer than"},
	} {
		_, err := nix.ParseStoreDir(test.dir)
		wantErr(t, err, test.want)
	}
}

func TestSortPaths(t *testing.T) {
	parse := func(bases ...string) (paths []nix.StorePath) {
		for _, base := range bases {
			paths = append(paths, must(nix.DefaultStoreDir.ParseBase(base+"-x")))
		}
		return paths
	}
	a, b := strings.Repeat("0", 32), strings.Repeat("1", 32)
	if got, want := nix.SortPaths(parse(b, a, b, a)), parse(a, b); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestStorePathRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := genDir().Draw(t, "dir")
		path := genPath(dir).Draw(t, "path")
		if got, err := dir.ParsePath(path.String()); err != nil || got != path {
			t.Fatalf("got %v, %v, want %v", got, err, path)
		}
		if got := must(dir.ParseBase(path.Hash().String() + "-" + path.Name())); got != path || got.Dir() != dir {
			t.Fatalf("got %v, want %v", got, path)
		}
	})
}

func FuzzStorePath(f *testing.F) {
	f.Add("/nix/store", "/nix/store/"+helloBase)
	f.Add("/gnu/store", "/gnu/store/"+helloBase+".drv")
	f.Add("/nix/store", "/nix/store/../etc/passwd")
	f.Add("/", "//"+helloBase)
	f.Fuzz(func(t *testing.T, dirText, text string) {
		dir, err := nix.ParseStoreDir(dirText)
		if err != nil {
			return
		}
		path, err := dir.ParsePath(text)
		if err != nil {
			if !path.IsZero() {
				t.Errorf("refused, but got %v", path)
			}
			return
		}
		if path.String() != text || path.Dir() != dir || string(dir)+"/"+path.Hash().String()+"-"+path.Name() != text {
			t.Errorf("%q is taken apart to %q, %v and %q", text, path.Dir(), path.Hash(), path.Name())
		}
		if again, err := dir.ParseBase(path.Base()); err != nil || again != path {
			t.Errorf("base name of %v: got %v, %v", path, again, err)
		}
	})
}

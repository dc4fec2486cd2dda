//go:build programs

package nix_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/nix"
)

func TestKeysAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	o.run(t, "nix-store", "--generate-binary-cache-key", "cache.example.org-1", "secret", "public")
	secretText := string(must(os.ReadFile(o.home + "/secret")))
	publicText := string(must(os.ReadFile(o.home + "/public")))
	secret := must(nix.ParseSecretKey(secretText))
	if secret.Reveal() != secretText || secret.Public().String() != publicText || must(nix.ParsePublicKey(publicText)) != secret.Public() {
		t.Errorf("the key of %s is read as %v", publicText, secret.Public())
	}

	ours := must(nix.GenerateKey("ours-1"))
	for _, text := range []string{ours.Reveal(), ours.Reveal() + "\n"} {
		got, err := o.try(text, "nix", "key", "convert-secret-to-public")
		if err != nil || got != ours.Public().String() {
			t.Errorf("Nix makes %s, %v of the key of %v", got, err, ours.Public())
		}
	}
	theirs := must(nix.ParseSecretKey(o.run(t, "nix", "key", "generate-secret", "--key-name", "theirs-1")))
	if theirs.Name() != "theirs-1" {
		t.Errorf("the key is named %s", theirs.Name())
	}
}

func TestSignaturesAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	_, prog := o.addClosure(t)
	hello := o.run(t, "nix-store", "--add", o.write(t, "hello.txt", "hello\n"))
	key := must(nix.ParseSecretKey(testSecretKey))
	o.run(t, "nix", "store", "sign", "--key-file", o.write(t, "secret", testSecretKey), "--recursive", prog, hello)
	infos := o.pathInfos(t, "--recursive", prog, hello)
	if len(infos) != 3 {
		t.Errorf("there are %d paths, want 3", len(infos))
	}
	for _, p := range infos {
		info := p.value(t, o.dir)
		want := key.Sign(info.AppendFingerprint(nil))
		if !slices.Equal(info.Signatures, []nix.Signature{want}) {
			t.Errorf("Nix signs %v as %v, want %v", info.Path, info.Signatures, want)
		}
	}
}

// narInfos returns the files of the narinfos of a cache.
func narInfos(t testing.TB, cache string) []string {
	t.Helper()
	files := must(filepath.Glob(cache + "/*.narinfo"))
	if len(files) == 0 {
		t.Fatal("the cache has no narinfo")
	}
	return files
}

// What Nix writes to a cache, both readers understand, and it is written again byte for byte.
func TestNARInfosOfNix(t *testing.T) {
	o := newOracle(t)
	lib, prog := o.addClosure(t)
	o.run(t, "nix", "store", "make-content-addressed", prog)
	o.run(t, "nix", "store", "sign", "--key-file", o.write(t, "secret", testSecretKey), lib)
	buildRealisations(t, o)
	for _, compression := range []nix.Compression{nix.None, nix.XZ, nix.Bzip2, nix.Zstd, nix.Gzip, nix.Brotli} {
		cache := o.home + "/cache-" + string(compression)
		uri := "file://" + cache + "?secret-key=" + o.write(t, "other", must(nix.GenerateKey("other-1")).Reveal())
		o.run(t, "nix", "copy", "--all", "--to", uri+"&compression="+string(compression))

		got := must(nix.ParseCacheInfo(must(os.ReadFile(cache + "/nix-cache-info"))))
		if want := (nix.CacheInfo{StoreDir: o.dir}); got != want {
			t.Errorf("nix-cache-info is read as %+v, want %+v", got, want)
		}
		for _, file := range narInfos(t, cache) {
			text := must(os.ReadFile(file))
			for _, parse := range []func(nix.StoreDir, []byte) (*nix.NARInfo, error){nix.ParseNARInfo, nix.ParseNARInfoStrict} {
				n, err := parse(o.dir, text)
				if err != nil {
					t.Fatalf("%v\n%s", err, text)
				}
				if n.Compression != compression || n.Path.Hash().String()+".narinfo" != filepath.Base(file) {
					t.Errorf("%s is of %v, compressed with %s", filepath.Base(file), n.Path, n.Compression)
				}
				if again := string(n.AppendText(nil)); again != string(text) {
					t.Errorf("written otherwise than Nix does:\n%s", cmp.Diff(string(text), again))
				}
			}
		}
	}
}

// Nix fetches what has our narinfo and our signature, if it trusts the key, and only then.
func TestNixTrustsOurNARInfos(t *testing.T) {
	o := newOracle(t)
	_, prog := o.addClosure(t)
	cache := o.home + "/cache"
	o.run(t, "nix", "copy", "--to", "file://"+cache, prog)
	key := must(nix.GenerateKey("ours-1"))
	for _, file := range narInfos(t, cache) {
		n := must(nix.ParseNARInfoStrict(o.dir, must(os.ReadFile(file))))
		n.Signatures = append(n.Signatures, key.Sign(n.AppendFingerprint(nil)))
		n.FileHash, n.FileSize = nix.Hash{}, 0
		o.write(t, "cache/"+filepath.Base(file), string(n.AppendText(nil)))
	}
	fetch := func(root string, trusted nix.PublicKey) error {
		_, err := o.try("", "nix", "copy", "--from", "file://"+cache, "--to", "local?root="+o.home+"/"+root, prog,
			"--option", "trusted-public-keys", trusted.String())
		return err
	}
	if err := fetch("trusting", key.Public()); err != nil {
		t.Error(err)
	}
	if got := string(must(os.ReadFile(o.home + "/trusting/nix/store/" + filepath.Base(prog) + "/bin/prog"))); !strings.HasPrefix(got, "I am "+prog) {
		t.Errorf("fetched %q", got)
	}
	wantErr(t, fetch("distrusting", must(nix.GenerateKey("ours-1")).Public()), "because it lacks a")
}

// Nix reads the narinfos that we write as they were meant.
func TestNixReadsOurNARInfos(t *testing.T) {
	o := newOracle(t)
	o.write(t, "cache/nix-cache-info", string(nix.CacheInfo{StoreDir: nix.DefaultStoreDir, Priority: 30}.AppendText(nil)))
	want := map[string]*nix.NARInfo{}
	for seed := 0; len(want) < 200; seed++ {
		n := genNARInfo().Example(seed)
		if n.Path.Dir() == nix.DefaultStoreDir && n.CA.Method() != nix.GitMethod { // Nix 2.8 does not know git
			want[n.Path.String()] = n
			o.write(t, "cache/"+n.Path.Hash().String()+".narinfo", string(n.AppendText(nil)))
		}
	}
	args := []string{"--store", "file://" + o.home + "/cache?store=" + string(nix.DefaultStoreDir)}
	for path := range want {
		args = append(args, path)
	}
	infos := o.pathInfos(t, args...)
	if len(infos) != len(want) {
		t.Errorf("Nix knows %d paths, want %d", len(infos), len(want))
	}
	for _, p := range infos {
		n := want[p.Path]
		if got := p.value(t, nix.DefaultStoreDir); !cmp.Equal(sorted(got), sorted(&n.PathInfo), cmpValues) {
			t.Errorf("Nix reads otherwise: %s", cmp.Diff(sorted(&n.PathInfo), sorted(got), cmpValues))
		}
		if p.URL != n.URL || p.DownloadSize != n.FileSize || p.DownloadHash != n.FileHash.SRI() {
			t.Errorf("Nix reads %s %d %s, want %s %d %s", p.URL, p.DownloadSize, p.DownloadHash, n.URL, n.FileSize, n.FileHash.SRI())
		}
		// Our JSON form says of each member that Nix prints the same.
		var ours nixPathInfo
		if err := json.Unmarshal(must(n.MarshalJSON()), &ours); err != nil {
			t.Error(err)
		}
		slices.Sort(ours.Signatures)
		slices.Sort(p.Signatures)
		if p.References == nil {
			p.References = []string{}
		}
		if p.Signatures == nil {
			p.Signatures = []string{}
		}
		if len(ours.Signatures) == 0 {
			ours.Signatures = []string{}
		}
		if !cmp.Equal(ours, p) {
			t.Errorf("JSON differs: %s", cmp.Diff(p, ours))
		}
	}
}

// What the strict reader accepts, Nix reads alike.
func TestNixReadsWhatIsAccepted(t *testing.T) {
	o := newOracle(t)
	o.write(t, "cache/nix-cache-info", "StoreDir: /nix/store\n")
	for _, test := range strictAccepted() {
		n := must(nix.ParseNARInfoStrict(nix.DefaultStoreDir, []byte(test.text)))
		o.write(t, "cache/"+n.Path.Hash().String()+".narinfo", test.text)
		infos := o.pathInfos(t, "--store", "file://"+o.home+"/cache?store=/nix/store", "--option", "narinfo-cache-positive-ttl", "0", n.Path.String())
		if got := infos[0].value(t, nix.DefaultStoreDir); !cmp.Equal(sorted(got), sorted(&n.PathInfo), cmpValues) {
			t.Errorf("%s: Nix reads otherwise: %s", test.name, cmp.Diff(sorted(&n.PathInfo), sorted(got), cmpValues))
		}
	}
}

// sorted returns the path info with its signatures in the order of their text, and without what Nix
// has no place for.
func sorted(info *nix.PathInfo) nix.PathInfo {
	copied := *info
	copied.Signatures = slices.SortedFunc(slices.Values(info.Signatures), func(a, b nix.Signature) int {
		return strings.Compare(a.String(), b.String())
	})
	copied.Extra = nil
	return copied
}

// What Nix signs and writes of realisations is read, verified and written again byte for byte.
func TestRealisationsAgreeWithNix(t *testing.T) {
	o := newOracle(t)
	secret := o.write(t, "secret", testSecretKey)
	o.write(t, "conf/nix.conf", strings.Join(append(o.settings, "secret-key-files = "+secret), "\n")+"\n")
	file := buildRealisations(t, o)
	o.run(t, "nix", "copy", "-f", file, "--to", "file://"+o.home+"/cache")
	key := must(nix.ParseSecretKey(testSecretKey))

	files := must(filepath.Glob(o.home + "/cache/realisations/*.doi"))
	if len(files) < 2 {
		t.Fatalf("there are %d realisations, want 2 or more", len(files))
	}
	for _, file := range files {
		text := must(os.ReadFile(file))
		r, err := nix.ParseRealisation(o.dir, text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if got := r.ID.String() + ".doi"; got != filepath.Base(file) {
			t.Errorf("%s is of %s", filepath.Base(file), got)
		}
		if again := string(must(json.Marshal(r))); again != string(text) {
			t.Errorf("written otherwise than Nix does:\n%s", cmp.Diff(string(text), again))
		}
		if want := key.Sign(r.AppendFingerprint(nil)); !slices.Equal(r.Signatures, []nix.Signature{want}) {
			t.Errorf("Nix signs %v as %v, want %v", r.ID, r.Signatures, want)
		}
	}
}

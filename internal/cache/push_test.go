package cache_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// pushed is a cache with a sink.
type pushed struct {
	*testing.T
	*cache.Cache
	sink *cachetest.Memory
	key  nix.SecretKey
}

func newPushed(t *testing.T, opts cache.Options, before ...cache.Source) *pushed {
	t.Helper()
	p := &pushed{T: t, sink: cachetest.NewMemory(), key: newKey(t, "ours-1")}
	opts.Sink, opts.Keys = cache.SinkOf(p.sink), []nix.SecretKey{p.key}
	p.Cache = newCache(t, opts, append(before, p.sink)...)
	return p
}

// upload uploads a NAR uncompressed, and returns the narinfo that goes with it.
func (p *pushed) upload(of cachetest.Path) *nix.NARInfo {
	p.Helper()
	n := &nix.NARInfo{PathInfo: *of.Info, URL: cachetest.URL(of.NAR, ""), Compression: nix.None, FileHash: of.Info.NARHash, FileSize: of.Info.NARSize}
	if _, err := p.Receive(p.Context(), cache.Upload{URL: n.URL, NAR: bytes.NewReader(of.NAR)}); err != nil {
		p.Fatalf("Receive of %s: %v", of.Info.Path, err)
	}
	return n
}

// put publishes what a narinfo says, with the NAR that its URL leads to.
func put(t testing.TB, c *cache.Cache, n *nix.NARInfo) (added bool, err error) {
	var r cache.Received
	if !cache.IsOwnURL(n.URL, &n.PathInfo) {
		if r, err = c.Received(t.Context(), n.URL); err != nil {
			return false, err
		}
	}
	return c.Publish(t.Context(), &n.PathInfo, r)
}

func (p *pushed) publish(n *nix.NARInfo) (added bool) {
	p.Helper()
	added, err := put(p, p.Cache, n)
	if err != nil {
		p.Fatalf("Publish of %s: %v", n.Path, err)
	}
	return added
}

// wantRefused checks that a narinfo is refused, and says why.
func (p *pushed) wantRefused(n *nix.NARInfo, kind error, says string) {
	p.Helper()
	_, err := put(p, p.Cache, n)
	refusal, ok := errors.AsType[*cache.Refusal](err)
	if !errors.Is(err, kind) || !ok || !strings.Contains(refusal.Text(), says) {
		p.Errorf("Publish of %s: %v, want %v that says %q", n.Path, err, kind, says)
	}
}

func TestPublish(t *testing.T) {
	c := newPushed(t, cache.Options{})
	p := hello(t)
	theirs := newKey(t, "theirs-1")
	n := c.upload(p)
	n.Signatures = []nix.Signature{theirs.Sign(n.AppendFingerprint(nil))}
	wantMissing(t, c.Cache, n.Path.Hash())
	if !c.publish(n) {
		t.Error("Publish says that the path was there")
	}
	info := wantNARInfo(t, c.Cache, n.Path.Hash())
	want := []nix.Signature{n.Signatures[0], c.key.Sign(n.AppendFingerprint(nil))}
	if diff := cmp.Diff(texts(want), texts(info.Signatures)); diff != "" {
		t.Errorf("signatures (-want +got):\n%s", diff)
	}
	if c.publish(n) {
		t.Error("Publish once more says that the path was not there")
	}

	// The narinfo comes back with one more signature, as from nix store sign.
	back := *info
	back.Signatures = append(slices.Clip(info.Signatures), newKey(t, "more-1").Sign(n.AppendFingerprint(nil)))
	c.publish(&back)
	if got := wantNARInfo(t, c.Cache, n.Path.Hash()); len(got.Signatures) != 3 {
		t.Errorf("signatures are %q, want one more", texts(got.Signatures))
	}
	if kept, _ := c.sink.PathInfo(t.Context(), n.Path.Hash()); len(kept.Signatures) != 2 {
		t.Errorf("kept are %q, want all but our own", texts(kept.Signatures))
	}
}

// What a cache with a sink refuses, nothing changed.
func TestPublishRefuses(t *testing.T) {
	p := hello(t)
	tree := cachetest.NewTree(t, nix.DefaultStoreDir, "tree", map[string]string{"a": "a"})
	absent, err := nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-absent")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := nix.StoreDir("/elsewhere").ParseBase(absent.Base())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		spoil func(c *pushed, n *nix.NARInfo)
		kind  error
		says  string
	}{
		{"URL of something else", func(c *pushed, n *nix.NARInfo) { n.URL = c.upload(hello(t)).URL }, cache.ErrInvalid, "NarHash"},
		{"NAR hash", func(_ *pushed, n *nix.NARInfo) { n.NARHash = nix.SHA256Sum([32]byte{}) }, cache.ErrInvalid, "NarHash"},
		{"NAR size", func(_ *pushed, n *nix.NARInfo) { n.NARSize += 8 }, cache.ErrInvalid, "NarSize"},
		{"no NAR hash", func(_ *pushed, n *nix.NARInfo) { n.NARHash = nix.Hash{} }, cache.ErrInvalid, "NarHash"},
		{"store directory", func(_ *pushed, n *nix.NARInfo) { n.Path = elsewhere }, cache.ErrInvalid, "not in /nix/store"},
		{"store directory of a reference", func(_ *pushed, n *nix.NARInfo) { n.References = []nix.StorePath{elsewhere} }, cache.ErrInvalid, "References"},
		{"store directory of the deriver", func(_ *pushed, n *nix.NARInfo) { n.Deriver = elsewhere }, cache.ErrInvalid, "Deriver"},
		{"missing reference", func(_ *pushed, n *nix.NARInfo) { n.References = []nix.StorePath{absent} }, cache.ErrInvalid, absent.Base()},
		{"reference of another name", func(c *pushed, n *nix.NARInfo) {
			c.publish(c.upload(hello(t)))
			ref, _ := nix.DefaultStoreDir.ParseBase(hello(t).Info.Path.Base() + "x")
			n.References = []nix.StorePath{ref}
		}, cache.ErrInvalid, "hello.txtx"},
		{"forged signature", func(c *pushed, n *nix.NARInfo) {
			n.Signatures = []nix.Signature{newKey(t, c.key.Name()).Sign(n.AppendFingerprint(nil))}
		}, cache.ErrInvalid, "ours-1"},
		{"signature of something else", func(c *pushed, n *nix.NARInfo) {
			n.Signatures = []nix.Signature{c.key.Sign(p.Info.AppendFingerprint(nil))}
		}, cache.ErrInvalid, "ours-1"},
		{"content address of another path", func(_ *pushed, n *nix.NARInfo) { n.CA = p.Info.CA }, cache.ErrInvalid, "CA"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newPushed(t, cache.Options{})
			n := c.upload(tree)
			test.spoil(c, n)
			c.wantRefused(n, test.kind, test.says)
			wantMissing(t, c.Cache, tree.Info.Path.Hash())
		})
	}
	t.Run("no NAR", func(t *testing.T) {
		c := newPushed(t, cache.Options{})
		n := c.upload(tree)
		if _, err := c.Publish(t.Context(), &n.PathInfo, cache.Received{}); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("Publish without a NAR of a path that is not there: %v, want ErrNotFound", err)
		}
	})
	t.Run("no sink", func(t *testing.T) {
		c := newCache(t, cache.Options{}, cachetest.NewMemory())
		if _, err := c.Publish(t.Context(), p.Info, cache.Received{}); !errors.Is(err, cache.ErrInvalid) {
			t.Errorf("Publish: %v, want ErrInvalid", err)
		}
		if _, err := c.Receive(t.Context(), cache.Upload{}); !errors.Is(err, cache.ErrInvalid) {
			t.Errorf("Receive: %v, want ErrInvalid", err)
		}
		if _, err := c.Received(t.Context(), "nar/x.nar"); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("Received: %v, want ErrNotFound", err)
		}
	})
}

// A narinfo that no client would read is not made, however a path came, and whatever signatures come later.
func TestPublishTooManyReferences(t *testing.T) {
	c := newPushed(t, cache.Options{AllowMissingReferences: true})
	p := hello(t)
	info := *p.Info
	info.CA = nix.ContentAddress{}
	info.References = append(info.References, cachetest.LongReferences(80_000)...)
	p.Info = &info
	n := c.upload(p)
	c.wantRefused(n, cache.ErrTooLarge, "References: with 80000 of them")
	n.References = n.References[:71_000] // 16.7 MB of at most 16.8
	c.publish(n)
	n.Signatures = nil
	for i := range 64 {
		sig, err := nix.NewSignature(fmt.Sprintf("%0512d", i), make([]byte, 64))
		if err != nil {
			t.Fatal(err)
		}
		n.Signatures = append(n.Signatures, sig)
	}
	c.publish(n)
	text, err := c.NARInfo(t.Context(), n.Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	got, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > nix.MaxNARInfoSize {
		t.Errorf("it has %d bytes", len(text))
	}
	if n := len(got.Signatures); n != 64 || got.Signatures[n-1].Name != "ours-1" {
		t.Errorf("it has %d signatures, the last of them by %s", n, got.Signatures[n-1].Name)
	}
}

// Signatures that would make a narinfo too long are refused.
func TestPublishTooManyBytesOfSignatures(t *testing.T) {
	c := newPushed(t, cache.Options{AllowMissingReferences: true})
	p := hello(t)
	info := *p.Info
	info.CA = nix.ContentAddress{}
	info.References = append(info.References, cachetest.LongReferences((nix.MaxNARInfoSize-5000)/cachetest.ReferenceSize)...)
	p.Info = &info
	n := c.upload(p)
	c.publish(n)
	n.Signatures = []nix.Signature{otherSignature(t, "a-1")}
	c.wantRefused(n, cache.ErrTooLarge, "the narinfo of")
}

// A path that is there with another NAR stays, and with other references it is refused.
func TestPublishAnother(t *testing.T) {
	c := newPushed(t, cache.Options{})
	p := cachetest.NewTree(t, nix.DefaultStoreDir, "tree", map[string]string{"built": "monday"})
	q := cachetest.NewTree(t, nix.DefaultStoreDir, "tree", map[string]string{"built": "tuesday"})
	q.Info.Path = p.Info.Path
	c.publish(c.upload(p))
	if c.publish(c.upload(q)) {
		t.Error("the second build was added")
	}
	if got := wantNARInfo(t, c.Cache, p.Info.Path.Hash()).NARHash; got != p.Info.NARHash {
		t.Errorf("NAR hash is %s, want that of the first build", got)
	}
	n := c.upload(p)
	n.References = []nix.StorePath{p.Info.Path}
	c.wantRefused(n, cache.ErrConflict, "other references")
}

// What an earlier source has is kept too, and signatures that are pushed of it are served with it,
// whether or not it is kept.
func TestPublishWhatIsThere(t *testing.T) {
	p := hello(t)
	c := newPushed(t, cache.Options{}, cachetest.NewMemory(p))
	fingerprint := p.Info.AppendFingerprint(nil)
	want := []nix.Signature{c.key.Sign(fingerprint)}
	add := func(name string) {
		t.Helper()
		back := *wantNARInfo(t, c.Cache, p.Info.Path.Hash())
		sig := newKey(t, name).Sign(fingerprint)
		back.Signatures = append(slices.Clip(back.Signatures), sig)
		want = slices.Insert(want, len(want)-1, sig)
		for range 2 {
			c.publish(&back)
		}
	}
	wantSigned := func() {
		t.Helper()
		got := texts(wantNARInfo(t, c.Cache, p.Info.Path.Hash()).Signatures)
		if all := texts(want); !cmp.Equal(slices.Sorted(slices.Values(all)), slices.Sorted(slices.Values(got))) {
			t.Errorf("signatures are %q, want %q", got, all)
		}
	}
	back := *wantNARInfo(t, c.Cache, p.Info.Path.Hash())
	c.publish(&back)
	wantSigned()
	add("one-1")
	wantSigned()
	add("two-1")
	wantSigned()
	n := c.upload(p)
	n.Extra = []nix.Field{{Name: "Provenance", Value: "x"}}
	if c.publish(n) {
		t.Error("a path that is there was added")
	}
	if _, err := c.sink.PathInfo(t.Context(), p.Info.Path.Hash()); err != nil {
		t.Errorf("it is not kept: %v", err)
	}
	wantSigned()
	add("three-1")
	wantSigned()
	if got := wantNARInfo(t, c.Cache, p.Info.Path.Hash()).Extra; !slices.Equal(got, n.Extra) {
		t.Errorf("unknown fields are %v", got)
	}
	for i := range 70 {
		back := *wantNARInfo(t, c.Cache, p.Info.Path.Hash())
		back.Signatures = []nix.Signature{newKey(t, fmt.Sprint("more-", i)).Sign(fingerprint)}
		if _, err := put(t, c.Cache, &back); i > 62 && !errors.Is(err, cache.ErrInvalid) {
			t.Errorf("signature %d: %v", i, err)
		}
	}
}

func refersTo(p cachetest.Path, refs ...cachetest.Path) cachetest.Path {
	info := *p.Info
	for _, r := range refs {
		info.References = append(info.References, r.Info.Path)
	}
	info.References = nix.SortPaths(info.References)
	return cachetest.Path{Info: &info, NAR: p.NAR}
}

func TestCycle(t *testing.T) {
	trees := make([]cachetest.Path, 4)
	for i := range trees {
		trees[i] = cachetest.NewTree(t, nix.DefaultStoreDir, "tree", map[string]string{"n": fmt.Sprint(i)})
	}
	a, b, d, e := trees[0], trees[1], trees[2], trees[3]
	c := newPushed(t, cache.Options{AllowMissingReferences: true})
	c.publish(c.upload(refersTo(a, a, b)))
	c.publish(c.upload(refersTo(b, d, e)))
	c.wantRefused(c.upload(refersTo(d, a)), cache.ErrInvalid, "cycle")
	c.wantRefused(c.upload(refersTo(e, b)), cache.ErrInvalid, "cycle")
	c.publish(c.upload(refersTo(d, d)))
	c.publish(c.upload(refersTo(e, d, e)))

	// Many at once who would make a cycle together do not.
	for range 20 {
		c := newPushed(t, cache.Options{AllowMissingReferences: true})
		var wg sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for i := range trees {
			n := c.upload(refersTo(trees[i], trees[(i+1)%len(trees)]))
			wg.Go(func() {
				if _, err := put(t, c.Cache, n); err != nil {
					mu.Lock()
					defer mu.Unlock()
					refused++
				}
			})
		}
		wg.Wait()
		if refused != 1 {
			t.Errorf("%d paths of a cycle were refused, want 1", refused)
		}
	}
}

// A cycle is not closed either where missing references were allowed once, or a path is lost to which others refer.
func TestLateCycle(t *testing.T) {
	trees := make([]cachetest.Path, 3)
	for i := range trees {
		trees[i] = cachetest.NewTree(t, nix.DefaultStoreDir, "tree", map[string]string{"n": fmt.Sprint(i)})
	}
	a, b, d := trees[0], trees[1], trees[2]
	c := newPushed(t, cache.Options{AllowMissingReferences: true})
	c.publish(c.upload(refersTo(a, b)))
	strict, err := cache.New([]cache.Source{c.sink}, cache.Options{Sink: cache.SinkOf(c.sink)})
	if err != nil {
		t.Fatal(err)
	}
	c.Cache = strict
	c.publish(c.upload(refersTo(d, a)))
	c.wantRefused(c.upload(refersTo(b, a)), cache.ErrInvalid, "cycle")
	c.wantRefused(c.upload(refersTo(b, d)), cache.ErrInvalid, "cycle")
	c.publish(c.upload(refersTo(b)))

	c.sink.Remove(a.Info.Path)
	c.wantRefused(c.upload(refersTo(a, d)), cache.ErrInvalid, "cycle")
	c.publish(c.upload(refersTo(a, b)))
}

// Misses and narinfos that were remembered are right after a push, whether or not the sink can tell that it has changed.
func TestRememberedAfterPush(t *testing.T) {
	memory := cachetest.NewMemory()
	for _, sink := range []cache.Sink{cache.SinkOf(cachetest.NewMemory()), {
		Source: struct{ cache.Source }{memory}, Receiver: memory, Publisher: memory, Endorser: memory, Recorder: memory,
	}} {
		c := newCache(t, cache.Options{Sink: sink}, sink.Source)
		p := &pushed{T: t, Cache: c}
		wantMissing(t, c, hello(t).Info.Path.Hash())
		n := p.upload(hello(t))
		wantMissing(t, c, n.Path.Hash())
		p.publish(n)
		wantNARInfo(t, c, n.Path.Hash())
		n.Signatures = []nix.Signature{newKey(t, "a-1").Sign(n.AppendFingerprint(nil))}
		p.publish(n)
		if got := wantNARInfo(t, c, n.Path.Hash()); len(got.Signatures) != 1 {
			t.Errorf("signatures are %q, want one", texts(got.Signatures))
		}
	}
}

// addressed returns a path with a content address of the given contents.
func addressed(t *testing.T, archive []byte, method nix.ContentMethod, algorithm nix.HashAlgorithm, sum []byte, refs ...nix.StorePath) cachetest.Path {
	t.Helper()
	hash, err := nix.NewHash(algorithm, sum)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := nix.NewContentAddress(method, hash)
	if err != nil {
		t.Fatal(err)
	}
	path, err := ca.StorePath(nix.DefaultStoreDir, "addressed", refs)
	if err != nil {
		t.Fatal(err)
	}
	return cachetest.Path{NAR: archive, Info: &nix.PathInfo{
		Path: path, CA: ca, References: refs, NARHash: nix.SHA256Sum(sha256.Sum256(archive)), NARSize: int64(len(archive))}}
}

func TestContentAddress(t *testing.T) {
	contents := []byte(strings.Repeat("some contents\n", 10_000))
	sums := map[nix.HashAlgorithm]func([]byte) []byte{
		nix.MD5:    func(b []byte) []byte { s := md5.Sum(b); return s[:] },
		nix.SHA1:   func(b []byte) []byte { s := sha1.Sum(b); return s[:] },
		nix.SHA256: func(b []byte) []byte { s := sha256.Sum256(b); return s[:] },
		nix.SHA512: func(b []byte) []byte { s := sha512.Sum512(b); return s[:] },
	}
	file, tree := cachetest.FileNAR(string(contents)), cachetest.TreeNAR(t, map[string]string{"a": "b"})
	for algorithm, sum := range sums {
		t.Run(algorithm.String(), func(t *testing.T) {
			c := newPushed(t, cache.Options{})
			c.publish(c.upload(hello(t)))
			right := []cachetest.Path{
				addressed(t, file, nix.FlatMethod, algorithm, sum(contents)),
				addressed(t, tree, nix.NARMethod, algorithm, sum(tree)),
			}
			wrong := []cachetest.Path{
				addressed(t, file, nix.FlatMethod, algorithm, sum([]byte("something else"))),
				addressed(t, file, nix.FlatMethod, algorithm, sum(file)),
				addressed(t, tree, nix.FlatMethod, algorithm, sum(tree)),
				addressed(t, tree, nix.NARMethod, algorithm, sum(file)),
			}
			if algorithm == nix.SHA256 {
				right = append(right, addressed(t, file, nix.TextMethod, algorithm, sum(contents), hello(t).Info.Path))
				wrong = append(wrong, addressed(t, file, nix.TextMethod, algorithm, sum(file), hello(t).Info.Path))
			}
			if algorithm == nix.SHA1 {
				// As git hashes it: experimental in Nix, and not supported.
				wrong = append(wrong, addressed(t, file, nix.GitMethod, algorithm, sum(fmt.Appendf(nil, "blob %d\x00%s", len(contents), contents))))
			}
			for _, p := range right {
				c.publish(c.upload(p))
			}
			for _, p := range wrong {
				c.wantRefused(c.upload(p), cache.ErrInvalid, "CA")
			}
			if c.sink.Open() != 0 {
				t.Errorf("%d NARs are still open", c.sink.Open())
			}
		})
	}
}

// Paths that refer to themselves, as Nix 2.8 and 2.34 made and addressed them from the same derivation:
// the older one hashes where in the NAR the path hash was, the newer does not.
func TestSelfReference(t *testing.T) {
	const dir = nix.StoreDir("/tmp/h6nix/st/store")
	for _, test := range []struct{ version, base, ca string }{
		{"2.8", "dnviy3m893iyacbbcll4vfjjypp13x2r-self", "fixed:r:sha256:1i1zlqf9l7am9db4iyba5n8wbs1hb9p27krqsc8jgq54h85k8zci"},
		{"2.34", "4m8f3zfwi32vah9zgzpw0458cjgwhlk4-self", "fixed:r:sha256:08wj5cxr8p53lpn5vycrx53w0vr6kjpbb3rcmjw77nvqxz3d47r6"},
	} {
		t.Run(test.version, func(t *testing.T) {
			path, err := dir.ParseBase(test.base)
			if err != nil {
				t.Fatal(err)
			}
			ca, err := nix.ParseContentAddress(test.ca)
			if err != nil {
				t.Fatal(err)
			}
			publish := func(contents string) error {
				archive := cachetest.FileNAR(contents)
				p := cachetest.Path{NAR: archive, Info: &nix.PathInfo{
					Path: path, CA: ca, References: []nix.StorePath{path}, NARHash: nix.SHA256Sum(sha256.Sum256(archive)), NARSize: int64(len(archive))}}
				sink := inDir{cachetest.NewMemory(), dir}
				c := &pushed{T: t, Cache: newCache(t, cache.Options{Sink: cache.SinkOf(sink)}, sink)}
				_, err := put(t, c.Cache, c.upload(p))
				return err
			}
			contents := fmt.Sprintf("a %[1]s b %[1]s c\n", path)
			if err := publish(contents); err != nil {
				t.Errorf("Publish: %v", err)
			}
			for _, wrong := range []string{contents + "x", strings.Replace(contents, " b ", " x ", 1), strings.Replace(contents, test.base[:1], "x", 1)} {
				if err := publish(wrong); !errors.Is(err, cache.ErrInvalid) {
					t.Errorf("Publish of %q: %v, want ErrInvalid", wrong, err)
				}
			}
		})
	}
}

// inDir is a sink in another store directory.
type inDir struct {
	*cachetest.Memory
	dir nix.StoreDir
}

func (s inDir) StoreDir() nix.StoreDir { return s.dir }

func TestPutOutputs(t *testing.T) {
	c := newPushed(t, cache.Options{})
	out := hello(t).Info.Path
	drv, err := nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-a.drv")
	if err != nil {
		t.Fatal(err)
	}
	r := &nix.Realisation{ID: nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{}), Output: "out"}, OutPath: out}
	b := &nix.BuildTrace{Drv: drv, Output: "out", OutPath: out}
	put := func(kind error) {
		t.Helper()
		if err := c.PutRealisation(t.Context(), r); !errors.Is(err, kind) {
			t.Errorf("PutRealisation: %v, want %v", err, kind)
		}
		if err := c.PutBuildTrace(t.Context(), b); !errors.Is(err, kind) {
			t.Errorf("PutBuildTrace: %v, want %v", err, kind)
		}
	}
	put(cache.ErrInvalid) // its output is not there
	c.publish(c.upload(hello(t)))
	forged := newKey(t, c.key.Name())
	r.Signatures, b.Signatures = []nix.Signature{forged.Sign(r.AppendFingerprint(nil))}, []nix.Signature{forged.Sign(b.AppendFingerprint(nil))}
	put(cache.ErrInvalid)
	r.Signatures, b.Signatures = []nix.Signature{c.key.Sign(r.AppendFingerprint(nil))}, []nix.Signature{c.key.Sign(b.AppendFingerprint(nil))}
	put(nil)
	if got, err := c.Realisation(t.Context(), r.ID); err != nil || got.OutPath != out {
		t.Errorf("Realisation: %v, %v", got, err)
	}
	if got, err := c.BuildTrace(t.Context(), drv, "out"); err != nil || got.OutPath != out {
		t.Errorf("BuildTrace: %v, %v", got, err)
	}
	if err := c.PutLog(t.Context(), drv, strings.NewReader("built\n")); err != nil {
		t.Errorf("PutLog: %v", err)
	}
	if log, err := c.OpenLog(t.Context(), drv); err != nil {
		t.Errorf("OpenLog: %v", err)
	} else {
		log.Close()
	}
}

func TestDebugInfo(t *testing.T) {
	c := newPushed(t, cache.Options{})
	const member = "lib/debug/.build-id/01/23456789abcdef0123456789abcdef01234567.debug"
	p := cachetest.NewTree(t, nix.DefaultStoreDir, "debug", map[string]string{member: "debug"})
	const id = "0123456789abcdef0123456789abcdef01234567"
	if _, err := c.DebugInfo(t.Context(), id); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("DebugInfo of what is not there: %v, want ErrNotFound", err)
	}
	c.publish(c.upload(p))
	want := &cache.DebugInfo{Archive: wantNARInfo(t, c.Cache, p.Info.Path.Hash()).URL, Member: member}
	got, err := c.DebugInfo(t.Context(), id)
	if err != nil {
		t.Fatalf("DebugInfo: %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("DebugInfo (-want +got):\n%s", diff)
	}
}

type rights map[string]cache.Rights

func (r rights) Name() string                          { return "somebody" }
func (r rights) May(want cache.Rights, in string) bool { return r[in]&want == want }

func TestAllow(t *testing.T) {
	reader, other := rights{"a": cache.Read}, rights{"b": cache.Read | cache.Push | cache.Admin}
	for _, test := range []struct {
		private bool
		who     cache.Principal
		right   cache.Rights
		may     bool
	}{
		{false, cache.Anybody, cache.Read, true},
		{false, cache.Anybody, cache.Push, false},
		{false, cache.Anybody, cache.Read | cache.Push, false},
		{true, cache.Anybody, cache.Read, false},
		{true, reader, cache.Read, true},
		{true, reader, cache.Push, false},
		{true, other, cache.Read, false},
		{false, other, cache.Push, false},
	} {
		c := newCache(t, cache.Options{Name: "a", Private: test.private})
		if err := c.Allow(test.who, test.right); test.may && err != nil || !test.may && !errors.Is(err, cache.ErrDenied) {
			t.Errorf("private %t, %v, rights %b: %v, want %t", test.private, test.who, test.right, err, test.may)
		}
	}
	if name := newCache(t, cache.Options{}).Name(); name != cache.Main {
		t.Errorf("a cache without a name is called %q", name)
	}
}

// failing is a sink that cannot be asked.
type failing struct{ *cachetest.Memory }

func (failing) Basis(context.Context, nix.PathHash) (cache.Basis, error) {
	return cache.Basis{}, cache.ErrUnavailable
}

// A sink that could not tell is not taken for one that does not have it.
func TestPublishUnavailable(t *testing.T) {
	sink := failing{cachetest.NewMemory()}
	c := newCache(t, cache.Options{Sink: cache.SinkOf(sink)}, sink)
	n := (&pushed{T: t, Cache: c}).upload(hello(t))
	if _, err := put(t, c, n); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Publish: %v, want ErrUnavailable", err)
	}
}

package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/memo"
	"firn/nix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newKey(t testing.TB, name string) nix.SecretKey {
	t.Helper()
	k, err := nix.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newCache(t testing.TB, opts cache.Options, sources ...cache.Source) *cache.Cache {
	t.Helper()
	c, err := cache.New(sources, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func hello(t testing.TB) cachetest.Path {
	return cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n")
}

// wantNARInfo checks that the cache has a path, and returns what it says.
func wantNARInfo(t *testing.T, c *cache.Cache, hash nix.PathHash) *nix.NARInfo {
	t.Helper()
	text, err := c.NARInfo(t.Context(), hash)
	if err != nil {
		t.Fatalf("NARInfo: %v", err)
	}
	info, err := nix.ParseNARInfoStrict(c.Info().StoreDir, text)
	if err != nil {
		t.Fatalf("NARInfo returned\n%s\n%v", text, err)
	}
	value, err := c.Lookup(t.Context(), hash)
	if err != nil {
		t.Fatalf("Lookup: %v", err)
	}
	if diff := cmp.Diff(string(text), string(value.AppendText(nil))); diff != "" {
		t.Errorf("NARInfo and Lookup differ:\n%s", diff)
	}
	return info
}

func wantMissing(t *testing.T, c *cache.Cache, hash nix.PathHash) {
	t.Helper()
	if _, err := c.NARInfo(t.Context(), hash); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("NARInfo: %v, want ErrNotFound", err)
	}
	if _, _, err := c.OpenNAR(t.Context(), cache.Archive{Path: hash}); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR: %v, want ErrNotFound", err)
	}
	if err := c.WriteListing(t.Context(), hash, io.Discard); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Listing: %v, want ErrNotFound", err)
	}
}

func TestNARInfo(t *testing.T) {
	p := hello(t)
	key := newKey(t, "test-1")
	c := newCache(t, cache.Options{Keys: []nix.SecretKey{key}}, cachetest.NewMemory(p))
	info := wantNARInfo(t, c, p.Info.Path.Hash())

	if info.Path != p.Info.Path || info.NARHash != p.Info.NARHash || info.NARSize != p.Info.NARSize || info.CA != p.Info.CA {
		t.Errorf("narinfo of %s is of something else: %s", p.Info.Path, info.AppendText(nil))
	}
	want := "nar/i9pmrzmpshapij2kin22pff6fc2adavx-04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw.nar"
	if info.URL != want {
		t.Errorf("URL is %s, want %s", info.URL, want)
	}
	if info.Compression != nix.None || info.FileHash != info.NARHash || info.FileSize != info.NARSize {
		t.Errorf("the download is not the NAR: %s", info.AppendText(nil))
	}
	if len(info.Signatures) != 1 || !key.Public().Verify(info.AppendFingerprint(nil), info.Signatures[0]) {
		t.Errorf("signatures are %v, want one by %s", info.Signatures, key.Name())
	}
}

func TestSignatures(t *testing.T) {
	p := hello(t)
	fingerprint := p.Info.AppendFingerprint(nil)
	ours, second, theirs := newKey(t, "ours-1"), newKey(t, "ours-2"), newKey(t, "theirs-1")
	forged := newKey(t, "ours-1").Sign(fingerprint)
	p.Info.Signatures = []nix.Signature{
		theirs.Sign(fingerprint), ours.Sign(fingerprint), forged, theirs.Sign(fingerprint),
	}
	for _, test := range []struct {
		name string
		keys []nix.SecretKey
		want []nix.Signature
	}{
		{"no keys", nil, []nix.Signature{theirs.Sign(fingerprint), ours.Sign(fingerprint), forged}},
		{"one key", []nix.SecretKey{ours}, []nix.Signature{theirs.Sign(fingerprint), ours.Sign(fingerprint)}},
		{"two keys", []nix.SecretKey{ours, second},
			[]nix.Signature{theirs.Sign(fingerprint), ours.Sign(fingerprint), second.Sign(fingerprint)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCache(t, cache.Options{Keys: test.keys}, cachetest.NewMemory(p))
			info := wantNARInfo(t, c, p.Info.Path.Hash())
			if diff := cmp.Diff(texts(test.want), texts(info.Signatures)); diff != "" {
				t.Errorf("signatures (-want +got):\n%s", diff)
			}
		})
	}
	if len(p.Info.Signatures) != 4 {
		t.Error("the source's path info was changed")
	}
}

func texts(sigs []nix.Signature) []string {
	var all []string
	for _, s := range sigs {
		all = append(all, s.String())
	}
	return all
}

func TestNewRefuses(t *testing.T) {
	key := newKey(t, "test-1")
	for _, test := range []struct {
		name    string
		sources []cache.Source
		keys    []nix.SecretKey
	}{
		{"two keys of one name", nil, []nix.SecretKey{key, newKey(t, "other-1"), key}},
		{"two store directories", []cache.Source{cachetest.NewMemory(), elsewhere{cachetest.NewMemory()}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := cache.New(test.sources, cache.Options{Keys: test.keys}); !errors.Is(err, cache.ErrInvalid) {
				t.Errorf("New: %v, want ErrInvalid", err)
			}
		})
	}
}

type elsewhere struct{ cache.Source }

func (elsewhere) StoreDir() nix.StoreDir { return "/elsewhere/store" }

func TestWithoutSources(t *testing.T) {
	c := newCache(t, cache.Options{Priority: 30})
	wantMissing(t, c, hello(t).Info.Path.Hash())
	if err := c.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	want := nix.CacheInfo{StoreDir: nix.DefaultStoreDir, WantMassQuery: true, Priority: 30}
	if diff := cmp.Diff(want, c.Info()); diff != "" {
		t.Errorf("Info (-want +got):\n%s", diff)
	}
}

// While a source vouches for its answers it is asked once; when it changes, once more.
func TestRemembered(t *testing.T) {
	p, q := hello(t), cachetest.NewPath(t, nix.DefaultStoreDir, "other", "")
	m := cachetest.NewMemory(p)
	c := newCache(t, cache.Options{Keys: []nix.SecretKey{newKey(t, "test-1")}}, m)
	hash, other := p.Info.Path.Hash(), q.Info.Path.Hash()
	wantAsked := func(want int) {
		t.Helper()
		if got := m.Asked(); got != want {
			t.Errorf("the source was asked %d times, want %d", got, want)
		}
	}

	first, err := c.NARInfo(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	wantNARInfo(t, c, hash)
	wantAsked(1)
	wantMissing(t, c, other)
	wantMissing(t, c, other)
	wantAsked(2)

	m.Add(q)
	wantNARInfo(t, c, other)
	wantAsked(3)
	again, err := c.NARInfo(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	wantAsked(4)
	if &first[0] != &again[0] {
		t.Error("a change of something else made a narinfo be rendered anew")
	}

	changed := cachetest.NewPath(t, nix.DefaultStoreDir, "changed", "changed")
	changed.Info.Path = p.Info.Path
	changed.Info.CA = nix.ContentAddress{}
	m.Add(changed)
	if got := wantNARInfo(t, c, hash).NARHash; got != changed.Info.NARHash {
		t.Errorf("NAR hash after a change is %s, want %s", got, changed.Info.NARHash)
	}
	m.Remove(p.Info.Path)
	wantMissing(t, c, hash)
}

// A source behind one that has a path does not keep its narinfo from being remembered, whether or not
// it can tell when it changes.
func TestRememberedBeforeUnversioned(t *testing.T) {
	p, q := hello(t), cachetest.NewPath(t, nix.DefaultStoreDir, "other", "")
	m, pushed, behind := cachetest.NewMemory(p), cachetest.NewMemory(), cachetest.NewMemory(q)
	c := newCache(t, cache.Options{Sink: cache.SinkOf(pushed)}, m, pushed, unversioned{behind})
	for range 3 {
		wantNARInfo(t, c, p.Info.Path.Hash())
	}
	if got := m.Asked(); got != 1 {
		t.Errorf("the first source was asked %d times, want once", got)
	}
	for range 3 {
		wantNARInfo(t, c, q.Info.Path.Hash())
	}
	if got := behind.Asked(); got != 6 {
		t.Errorf("the source that cannot tell was asked %d times, want each time", got)
	}
}

// delayed is a source that hears of its changes a little later.
type delayed struct {
	*cachetest.Memory
	heard memo.Version
}

func (d *delayed) Version(context.Context) memo.Version { return d.heard }

// Of a source that may be behind, hits are remembered and misses are not.
func TestRecent(t *testing.T) {
	p, q := hello(t), cachetest.NewPath(t, nix.DefaultStoreDir, "other", "")
	d := &delayed{cachetest.NewMemory(p), memo.Version{Number: 1, Freshness: memo.Recent}}
	c := newCache(t, cache.Options{}, d)
	wantNARInfo(t, c, p.Info.Path.Hash())
	wantMissing(t, c, q.Info.Path.Hash())
	d.Remove(p.Info.Path)
	d.Add(q)
	wantNARInfo(t, c, p.Info.Path.Hash()) // not heard of yet
	wantNARInfo(t, c, q.Info.Path.Hash())
	d.heard.Number++
	wantMissing(t, c, p.Info.Path.Hash())
	d.heard.Freshness = memo.Unknown
	d.Remove(q.Info.Path)
	wantMissing(t, c, q.Info.Path.Hash())
}

// unversioned hides that a source can tell when nothing has changed.
type unversioned struct{ cache.Source }

func TestUnversioned(t *testing.T) {
	p := hello(t)
	m := cachetest.NewMemory(p)
	c := newCache(t, cache.Options{}, unversioned{m})
	first, _ := c.NARInfo(t.Context(), p.Info.Path.Hash())
	wantNARInfo(t, c, p.Info.Path.Hash())
	m.Remove(p.Info.Path)
	wantMissing(t, c, p.Info.Path.Hash())
	m.Add(p)
	again, err := c.NARInfo(t.Context(), p.Info.Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, again) {
		t.Error("the narinfo is not what it was")
	}
}

func TestOrder(t *testing.T) {
	p := hello(t)
	hash := p.Info.Path.Hash()
	q := p
	info := *p.Info
	q.Info = &info
	q.Info.Signatures = []nix.Signature{newKey(t, "second-1").Sign(p.Info.AppendFingerprint(nil))}
	broken := errors.New("disk on fire")

	for _, test := range []struct {
		name          string
		first, second *cachetest.Memory
		failing       bool // the first
		want          error
		signatures    int
	}{
		{"both have it", cachetest.NewMemory(p), cachetest.NewMemory(q), false, nil, 0},
		{"the second has it", cachetest.NewMemory(), cachetest.NewMemory(q), false, nil, 1},
		{"none has it", cachetest.NewMemory(), cachetest.NewMemory(), false, cache.ErrNotFound, 0},
		{"the first cannot tell, the second has it", cachetest.NewMemory(p), cachetest.NewMemory(q), true, nil, 1},
		{"the first cannot tell, the second has it not", cachetest.NewMemory(p), cachetest.NewMemory(), true, cache.ErrUnavailable, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.failing {
				test.first.Fail(broken)
			}
			c := newCache(t, cache.Options{}, test.first, test.second)
			for range 2 {
				got, err := c.Lookup(t.Context(), hash)
				if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
					t.Fatalf("Lookup: %v, want %v", err, test.want)
				}
				if err == nil && len(got.Signatures) != test.signatures {
					t.Errorf("%d signatures, want %d: another source answered", len(got.Signatures), test.signatures)
				}
			}
			if test.failing {
				// What was answered in the meantime is not kept.
				test.first.Fail(nil)
				if got, err := c.Lookup(t.Context(), hash); err != nil || len(got.Signatures) != 0 {
					t.Errorf("Lookup when the first source is well again: %v, %v, want its answer", got, err)
				}
			}
		})
	}
}

// A source that mixes up what it is asked is not believed, and nothing of it is signed.
func TestUnsoundAnswers(t *testing.T) {
	p := hello(t)
	for name, spoil := range map[string]func(*nix.PathInfo){
		"no NAR hash":   func(i *nix.PathInfo) { i.NARHash = nix.Hash{} },
		"no NAR size":   func(i *nix.PathInfo) { i.NARSize = 0 },
		"another path":  func(i *nix.PathInfo) { i.Path = cachetest.NewPath(t, nix.DefaultStoreDir, "other", "").Info.Path },
		"another store": func(i *nix.PathInfo) { i.Path, _ = nix.StoreDir("/elsewhere").ParseBase(i.Path.Base()) },
	} {
		t.Run(name, func(t *testing.T) {
			info := *p.Info
			spoil(&info)
			c := newCache(t, cache.Options{}, fixed{cachetest.NewMemory(), &info})
			wantMissing(t, c, p.Info.Path.Hash())
		})
	}
}

// fixed answers whatever it is asked with the same path info.
type fixed struct {
	*cachetest.Memory
	info *nix.PathInfo
}

func (f fixed) PathInfo(context.Context, nix.PathHash) (*nix.PathInfo, error) { return f.info, nil }

func TestOpenNAR(t *testing.T) {
	p := hello(t)
	c := newCache(t, cache.Options{}, cachetest.NewMemory(), cachetest.NewMemory(p))
	for _, narHash := range []nix.Hash{{}, p.Info.NARHash} {
		n, info, err := c.OpenNAR(t.Context(), cache.Archive{Path: p.Info.Path.Hash(), NARHash: narHash})
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := n.WriteRange(t.Context(), &got, 0, n.Size()); err != nil || !bytes.Equal(got.Bytes(), p.NAR) {
			t.Errorf("the NAR is wrong (error: %v)", err)
		}
		if info.Path != p.Info.Path {
			t.Errorf("the narinfo is of %s", info.Path)
		}
		n.Close()
	}
	if _, _, err := c.OpenNAR(t.Context(), cache.Archive{Path: p.Info.Path.Hash(), NARHash: nix.SHA256Sum([32]byte{})}); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR by another NAR hash: %v, want ErrNotFound", err)
	}
}

// blocking answers only when it is told to.
type blocking struct {
	*cachetest.Memory
	entered chan struct{} // told when somebody asks
	release chan struct{} // closed to let them go
}

func (b blocking) PathInfo(ctx context.Context, hash nix.PathHash) (*nix.PathInfo, error) {
	b.entered <- struct{}{}
	<-b.release
	return b.Memory.PathInfo(ctx, hash)
}

// Many who ask for one path at once ask the source once,
// and that the first of them goes away does not concern the others.
func TestCoalesced(t *testing.T) {
	p := hello(t)
	b := blocking{cachetest.NewMemory(p), make(chan struct{}, 100), make(chan struct{})}
	c := newCache(t, cache.Options{}, b)
	var wg sync.WaitGroup
	ask := func(ctx context.Context) {
		wg.Go(func() {
			if _, err := c.NARInfo(ctx, p.Info.Path.Hash()); err != nil {
				t.Errorf("NARInfo: %v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	ask(ctx)
	<-b.entered
	cancel()
	for range 20 {
		ask(t.Context())
	}
	close(b.release)
	wg.Wait()
	if got := b.Asked(); got != 1 {
		t.Errorf("the source was asked %d times, want once", got)
	}
}

func TestLogsAndRealisations(t *testing.T) {
	m := cachetest.NewMemory()
	key := newKey(t, "test-1")
	c := newCache(t, cache.Options{Keys: []nix.SecretKey{key}}, unversioned{cachetest.NewMemory()}, m)
	drv, err := nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-a.drv")
	if err != nil {
		t.Fatal(err)
	}
	id := nix.RealisationID{DrvHash: nix.SHA256Sum([32]byte{}), Output: "out"}
	out := hello(t).Info.Path

	if _, err := c.OpenLog(t.Context(), drv); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenLog: %v, want ErrNotFound", err)
	}
	if _, err := c.Realisation(t.Context(), id); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Realisation: %v, want ErrNotFound", err)
	}
	if _, err := c.BuildTrace(t.Context(), drv, "out"); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("BuildTrace: %v, want ErrNotFound", err)
	}

	m.AddLog(drv, []byte("built\n"))
	m.AddRealisation(&nix.Realisation{ID: id, OutPath: out})
	m.AddBuildTrace(&nix.BuildTrace{Drv: drv, Output: "out", OutPath: out})
	if _, err := c.Realisation(t.Context(), id); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Realisation of a path that is not there: %v, want ErrNotFound", err)
	}
	if _, err := c.BuildTrace(t.Context(), drv, "out"); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("BuildTrace of a path that is not there: %v, want ErrNotFound", err)
	}
	m.Add(hello(t))
	log, err := c.OpenLog(t.Context(), drv)
	if err != nil {
		t.Fatalf("OpenLog: %v", err)
	}
	log.Close()
	r, err := c.Realisation(t.Context(), id)
	if err != nil {
		t.Fatalf("Realisation: %v", err)
	}
	if len(r.Signatures) != 1 || !key.Public().Verify(r.AppendFingerprint(nil), r.Signatures[0]) {
		t.Errorf("realisation is signed by %v, want %s", r.Signatures, key.Name())
	}
	b, err := c.BuildTrace(t.Context(), drv, "out")
	if err != nil {
		t.Fatalf("BuildTrace: %v", err)
	}
	if len(b.Signatures) != 1 || !key.Public().Verify(b.AppendFingerprint(nil), b.Signatures[0]) {
		t.Errorf("build trace is signed by %v, want %s", b.Signatures, key.Name())
	}
}

func TestCheck(t *testing.T) {
	broken := errors.New("disk on fire")
	m := cachetest.NewMemory()
	m.Fail(broken)
	c := newCache(t, cache.Options{}, cachetest.NewMemory(), m)
	if err := c.Check(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Check: %v, want %v", err, broken)
	}
}

func BenchmarkNARInfo(b *testing.B) {
	paths := make([]cachetest.Path, 1000)
	for i := range paths {
		paths[i] = cachetest.NewPath(b, nix.DefaultStoreDir, fmt.Sprint("p", i), strings.Repeat("x", i))
	}
	m := cachetest.NewMemory(paths...)
	ctx := b.Context()
	b.Run("remembered", func(b *testing.B) {
		c := newCache(b, cache.Options{Keys: []nix.SecretKey{newKey(b, "test-1")}}, m)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := c.NARInfo(ctx, paths[i%len(paths)].Info.Path.Hash()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("missing", func(b *testing.B) {
		c := newCache(b, cache.Options{}, m)
		hash := nix.PathHash{1}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.NARInfo(ctx, hash); err != cache.ErrNotFound {
				b.Fatal(err)
			}
		}
	})
	b.Run("revalidated", func(b *testing.B) {
		c := newCache(b, cache.Options{Keys: []nix.SecretKey{newKey(b, "test-1")}}, unversioned{m})
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := c.NARInfo(ctx, paths[i%len(paths)].Info.Path.Hash()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("signed", func(b *testing.B) {
		c := newCache(b, cache.Options{Keys: []nix.SecretKey{newKey(b, "test-1")}, Memory: 1}, m)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := c.NARInfo(ctx, paths[i%len(paths)].Info.Path.Hash()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

package depot_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/catalog"
	"firn/internal/catalog/sqlite"
	"firn/internal/depot"
	"firn/internal/depot/blob"
	"firn/internal/depot/blob/blobtest"
	"firn/internal/depot/index"
	"firn/nix"
	"firn/nix/nar"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedVariable); dir != "" {
		useUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

// A Catalog is a database with all that a depot needs.
type Catalog interface {
	depot.Catalog
	index.NARs
	index.Uploads
	index.Chunks
	index.Packs
	index.Paths
	index.References
	index.Endorsements
	index.Deletions
	index.Files
	index.Upkeep
	Close() error
}

// deletePath deletes a path of the cache main, whatever refers to it.
func deletePath(t *tester, hash nix.PathHash) error {
	_, err := index.Of(t.catalog).Delete(t.Context(), &index.Deletion{Cache: t.record.ID, Paths: []nix.PathHash{hash}, Referrers: index.KeepReferrers})
	return err
}

// A tester is a depot in memory with one cache.
type tester struct {
	testing.TB
	catalog Catalog
	blobs   blob.Store
	depot   *depot.Depot
	record  *catalog.Cache
	*depot.View
}

// Name is that of the test, and not that of the source.
func (t *tester) Name() string { return t.TB.Name() }

func newTester(tb testing.TB, opts depot.Options) *tester {
	return newTesterOn(tb, newCatalog(tb), blobtest.NewMemory(), opts)
}

func newTesterOn(tb testing.TB, cat Catalog, blobs blob.Store, opts depot.Options) *tester {
	tb.Helper()
	t := &tester{TB: tb, catalog: cat, blobs: blobs, depot: depot.New(cat, index.Of(cat), blobs, opts)}
	tb.Cleanup(t.close)
	t.record, t.View = t.main()
	return t
}

// close may be called twice.
func (t *tester) close() {
	if t.depot == nil {
		return
	}
	if err := t.depot.Close(); err != nil {
		t.Error(err)
	}
	if err := t.catalog.Close(); err != nil {
		t.Error(err)
	}
	t.depot = nil
}

// main returns the cache that there always is, which may be there already.
func (t *tester) main() (*catalog.Cache, *depot.View) {
	t.Helper()
	all, err := t.catalog.AllCaches(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(all) > 0 {
		return all[0], t.depot.For(all[0])
	}
	return t.cache("main")
}

// cache adds a cache.
func (t *tester) cache(name string) (*catalog.Cache, *depot.View) {
	t.Helper()
	c := &catalog.Cache{
		Name: name, StoreDir: nix.DefaultStoreDir, Sources: []string{catalog.SourceDepot},
		Created: time.Unix(1_800_000_000, 0).UTC(),
	}
	if err := t.catalog.AddCache(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return c, t.depot.For(c)
}

// newCatalog returns an empty catalog.
func newCatalog(tb testing.TB) Catalog {
	return openCatalog(tb, filepath.Join(tb.TempDir(), "catalog.db"))
}

func openCatalog(tb testing.TB, path string) Catalog {
	tb.Helper()
	c, err := sqlite.Open(tb.Context(), path, sqlite.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// infoOf makes up the path info of a NAR.
func infoOf(tb testing.TB, archive []byte) *nix.PathInfo {
	tb.Helper()
	hash := nix.SHA256Sum(sha256.Sum256(archive))
	path, err := nix.DefaultStoreDir.ParseBase(hash.Nix32()[:32] + "-made-up")
	if err != nil {
		tb.Fatal(err)
	}
	return &nix.PathInfo{Path: path, NARHash: hash, NARSize: int64(len(archive))}
}

// push receives and publishes a NAR.
func (t *tester) push(archive []byte) *nix.PathInfo {
	t.Helper()
	info := infoOf(t, archive)
	got, err := t.Receive(t.Context(), cache.Upload{NAR: bytes.NewReader(archive)})
	if err != nil {
		t.Fatal(err)
	}
	if got.NARHash != info.NARHash || got.NARSize != info.NARSize {
		t.Fatalf("received %v, %d bytes, want %v, %d", got.NARHash, got.NARSize, info.NARHash, info.NARSize)
	}
	if _, err := t.Publish(t.Context(), info, cachetest.Unchecked()); err != nil {
		t.Fatal(err)
	}
	return info
}

// wantNAR checks that a path is served whole, in both forms and in ranges.
func (t *tester) wantNAR(info *nix.PathInfo, archive []byte) {
	t.Helper()
	plain, err := t.OpenNAR(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	t.wantRanges(plain, archive)
	frames, _, err := t.OpenCompressed(t.Context(), info)
	if err != nil {
		t.Fatal(err)
	}
	size, tag, err := t.StatCompressed(t.Context(), info)
	if err != nil || size != frames.Size() || tag == "" {
		t.Errorf("compressed NAR has %d bytes, tag %q, %v, want %d", size, tag, err, frames.Size())
	}
	var packed bytes.Buffer
	if err := frames.WriteRange(t.Context(), &packed, 0, frames.Size()); err != nil {
		t.Fatal(err)
	}
	t.wantRanges(frames, packed.Bytes())
	z, err := zstd.NewReader(&packed)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("decompressed to %d bytes, %v, want the NAR of %d", len(got), err, len(archive))
	}
}

func (t *tester) wantRanges(n cache.NAR, want []byte) {
	t.Helper()
	defer n.Close()
	if n.Size() != int64(len(want)) {
		t.Errorf("size is %d, want %d", n.Size(), len(want))
		return
	}
	r := rand.New(rand.NewPCG(1, uint64(len(want))))
	ranges := [][2]int64{{0, n.Size()}, {0, 1}, {n.Size() - 1, 1}, {n.Size(), 0}, {1, n.Size() - 1}}
	for range 8 {
		off := r.Int64N(n.Size())
		ranges = append(ranges, [2]int64{off, r.Int64N(n.Size() - off + 1)})
	}
	for _, at := range ranges {
		var got bytes.Buffer
		if err := n.WriteRange(t.Context(), &got, at[0], at[1]); err != nil {
			t.Errorf("%d bytes at %d: %v", at[1], at[0], err)
		} else if !bytes.Equal(got.Bytes(), want[at[0]:at[0]+at[1]]) {
			t.Errorf("%d bytes at %d are others than those wanted", at[1], at[0])
		}
	}
	for _, at := range [][2]int64{{-1, 1}, {0, -1}, {0, n.Size() + 1}, {n.Size() + 1, 0}} {
		if err := n.WriteRange(t.Context(), io.Discard, at[0], at[1]); err == nil {
			t.Errorf("%d bytes at %d: no error", at[1], at[0])
		}
	}
}

// wantClean checks that nothing is damaged.
func (t *tester) wantClean() {
	t.Helper()
	report, err := t.depot.Verify(t.Context(), depot.VerifyOptions{})
	if err != nil || len(report.Damaged) > 0 {
		t.Errorf("verified %d NARs, damaged %v, %v", report.NARs, report.Damaged, err)
	}
}

// packs returns the names of the packs that there are, and their bytes.
func (t *tester) packs() (names []string, size int64) {
	t.Helper()
	err := t.blobs.List(t.Context(), func(i blob.Info) error {
		names = append(names, i.Name)
		size += i.Size
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names, size
}

// noise returns bytes that do not compress.
func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	rand.NewChaCha8(s).Read(b)
	return b
}

// text returns bytes that compress to about a third.
func text(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 2000)
	for i := range words {
		words[i] = fmt.Appendf(nil, "%x ", r.Uint32()>>r.IntN(24))
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[int(float64(len(words))*r.Float64()*r.Float64())]...)
	}
	return b[:n]
}

// object is a part of a tree; contents is a string or bytes of a file, nil of a directory.
type object struct {
	header   nar.Header
	contents []byte
}

func file(path string, contents []byte) object {
	return object{nar.Header{Path: path, Type: nar.TypeRegular, Size: int64(len(contents))}, contents}
}

func program(path string, contents []byte) object {
	o := file(path, contents)
	o.header.Executable = true
	return o
}

func dir(path string) object { return object{header: nar.Header{Path: path, Type: nar.TypeDirectory}} }

func link(path, target string) object {
	return object{header: nar.Header{Path: path, Type: nar.TypeSymlink, Target: target}}
}

// archive returns the NAR of objects.
func archive(tb testing.TB, objects ...object) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	for _, o := range objects {
		if err := w.WriteHeader(&o.header); err != nil {
			tb.Fatal(err)
		}
		if o.header.Type == nar.TypeRegular {
			if _, err := w.Write(o.contents); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// reference returns the text of a store path, another one for each n and generation.
func reference(n, generation int) string {
	sum := sha256.Sum256(fmt.Append(nil, n, generation))
	return "/nix/store/" + nix.SHA256Sum(sum).Nix32()[:32] + "-package"
}

// system returns NARs like those of a system, with references that differ from generation to generation.
func system(tb testing.TB, count, generation int) [][]byte {
	var all [][]byte
	for i := range count {
		r := rand.New(rand.NewPCG(uint64(i), 7))
		objects := []object{dir(""), dir("bin")}
		for j := range 1 + r.IntN(4) {
			b := text(20_000<<r.IntN(7), uint64(i*100+j))
			for range r.IntN(12) {
				copy(b[r.IntN(len(b)-100):], reference(i+r.IntN(5), generation))
			}
			objects = append(objects, program(fmt.Sprintf("bin/%02d", j), b))
		}
		objects = append(objects, dir("share"))
		for j := range r.IntN(30) {
			objects = append(objects, file(fmt.Sprintf("share/%02d", j), text(100+r.IntN(5000), uint64(i*100+50+j))))
		}
		objects = append(objects, link("z", reference(i, generation)+"/bin"))
		all = append(all, archive(tb, objects...))
	}
	return all
}

func wantError(tb testing.TB, what string, got, want error) {
	tb.Helper()
	if !errors.Is(got, want) {
		tb.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// framesOf returns OpenCompressed of a view without the tag.
func framesOf(v *depot.View) func(context.Context, *nix.PathInfo) (cache.NAR, error) {
	return func(ctx context.Context, info *nix.PathInfo) (cache.NAR, error) {
		n, _, err := v.OpenCompressed(ctx, info)
		return n, err
	}
}

package transfer_test

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/transfer"
	"firn/nix"
)

// A listed source is one in memory that can list what it has.
type listed struct {
	*cachetest.Memory
	paths []cachetest.Path
	files []string
}

func (l *listed) Paths(context.Context) iter.Seq2[*nix.PathInfo, error] {
	return func(yield func(*nix.PathInfo, error) bool) {
		for _, p := range l.paths {
			if !yield(p.Info, nil) {
				return
			}
		}
	}
}

func (l *listed) Files(_ context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, name := range l.files {
			if strings.HasPrefix(name, prefix) && !yield(name, nil) {
				return
			}
		}
	}
}

// newCache returns a cache of three paths, of which each refers to the one before it and the last to itself too,
// with a log, a realisation and a build trace.
func newCache(t *testing.T) (*cache.Cache, *listed) {
	t.Helper()
	source := &listed{}
	for i, name := range []string{"a", "b", "c"} {
		p := cachetest.NewPath(t, nix.DefaultStoreDir, name, strings.Repeat(name, 1000))
		if i > 0 {
			p.Info.CA = nix.ContentAddress{}
			p.Info.References = append(p.Info.References, source.paths[i-1].Info.Path)
		}
		if i == 2 {
			p.Info.References = nix.SortPaths(append(p.Info.References, p.Info.Path))
		}
		source.paths = append(source.paths, p)
	}
	drv := parsePath(t, "0c0ppk5jhpl1ym9qd9vv1yh9rgpy4jm7-a.drv")
	source.paths[0].Info.Deriver = drv
	other, err := nix.NewSignature("ml-dsa-1", make([]byte, 2420))
	if err != nil {
		t.Fatal(err)
	}
	source.paths[0].Info.Signatures = []nix.Signature{other}
	source.paths[0].Info.Extra = []nix.Field{{Name: "Provenance", Value: `{"type":"copied","from":"a"}`}}
	slices.Reverse(source.paths) // listed before what they refer to
	source.Memory = cachetest.NewMemory(source.paths...)
	source.AddLog(drv, []byte("built\n"))
	id, err := nix.ParseRealisationID("sha256:" + strings.Repeat("0", 64) + "!out")
	if err != nil {
		t.Fatal(err)
	}
	source.AddRealisation(&nix.Realisation{ID: id, OutPath: source.paths[0].Info.Path})
	source.AddBuildTrace(&nix.BuildTrace{Drv: drv, Output: "out", OutPath: source.paths[0].Info.Path})
	source.files = []string{"log/" + drv.Base(), "realisations/" + id.String() + ".doi", "build-trace-v2/" + drv.Base() + "/out.doi"}
	key, err := nix.GenerateKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New([]cache.Source{source}, cache.Options{Keys: []nix.SecretKey{key}, Priority: 7})
	if err != nil {
		t.Fatal(err)
	}
	return c, source
}

func parsePath(t *testing.T, base string) nix.StorePath {
	t.Helper()
	p, err := nix.DefaultStoreDir.ParseBase(base)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tree returns the contents of the files below dir by their names.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestExport(t *testing.T) {
	c, source := newCache(t)
	dir := filepath.Join(t.TempDir(), "new", "cache")
	var last transfer.Progress
	result, err := transfer.Export(t.Context(), c, nil, dir, transfer.ExportOptions{Progress: func(p transfer.Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	if result != last || result.Known != 3 || result.Paths != 3 || result.Moved != 3 || result.Files != 3 || result.Failed != 0 {
		t.Errorf("the result is %+v, and the last progress %+v", result, last)
	}
	got := tree(t, dir)
	want := map[string]string{"nix-cache-info": "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n"}
	for _, p := range source.paths {
		hash := p.Info.Path.Hash()
		text, err := c.NARInfo(t.Context(), hash)
		if err != nil {
			t.Fatal(err)
		}
		info, err := c.Lookup(t.Context(), hash)
		if err != nil {
			t.Fatal(err)
		}
		var listing strings.Builder
		if err := c.WriteListing(t.Context(), hash, &listing); err != nil {
			t.Fatal(err)
		}
		want[hash.String()+".narinfo"] = string(text)
		want[hash.String()+".ls"] = listing.String()
		want[info.URL] = string(p.NAR)
	}
	for _, name := range source.files {
		if got[name] == "" {
			t.Errorf("no %s", name)
		}
		want[name] = got[name]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the directory (-want +got):\n%s", diff)
	}

	// A second time there is nothing to do, also where another export was killed.
	if err := os.MkdirAll(filepath.Join(dir, ".firn-export"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".firn-export", "1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	result, err = transfer.Export(t.Context(), c, nil, dir, transfer.ExportOptions{})
	if err != nil || result.Moved != 0 || result.Files != 0 || result.Bytes != 0 || result.Paths != 3 {
		t.Errorf("again: %+v, %v", result, err)
	}
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Errorf("the directory after that (-want +got):\n%s", diff)
	}

	// A file that is not whole is written again.
	info, err := c.Lookup(t.Context(), source.paths[1].Info.Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, info.URL), 10); err != nil {
		t.Fatal(err)
	}
	result, err = transfer.Export(t.Context(), c, nil, dir, transfer.ExportOptions{})
	if err != nil || result.Moved != 1 || result.Bytes != info.NARSize {
		t.Errorf("with a damaged file: %+v, %v", result, err)
	}
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Errorf("the directory after that (-want +got):\n%s", diff)
	}
}

// Of a closure, nothing else is written.
func TestExportClosure(t *testing.T) {
	c, source := newCache(t)
	b := source.paths[1].Info.Path
	dir := t.TempDir()
	result, err := transfer.Export(t.Context(), c, transfer.Closure(t.Context(), c, []nix.StorePath{b, b}), dir, transfer.ExportOptions{})
	if err != nil || result.Moved != 2 || result.Files != 1 {
		t.Fatalf("%+v, %v", result, err)
	}
	for name := range tree(t, dir) {
		if strings.HasPrefix(name, "realisations") || strings.Contains(name, source.paths[0].Info.Path.Hash().String()) {
			t.Errorf("%s is there", name)
		}
	}
	absent := parsePath(t, "0c0ppk5jhpl1ym9qd9vv1yh9rgpy4jm7-absent")
	_, err = transfer.Export(t.Context(), c, transfer.Closure(t.Context(), c, []nix.StorePath{absent}), dir, transfer.ExportOptions{})
	if !errors.Is(err, cache.ErrNotFound) || !strings.Contains(err.Error(), absent.String()) {
		t.Errorf("a path that is not there: %v", err)
	}
}

// unreadable is a source one of whose NARs cannot be read.
type unreadable struct {
	*listed
	path nix.StorePath
}

func (u unreadable) OpenNAR(ctx context.Context, info *nix.PathInfo) (cache.NAR, error) {
	if info.Path == u.path {
		return nil, errors.New("read error")
	}
	return u.listed.OpenNAR(ctx, info)
}

// A path that cannot be written is missing with all that refers to it, and nothing else is.
func TestExportFailure(t *testing.T) {
	_, source := newCache(t)
	lone := cachetest.NewPath(t, nix.DefaultStoreDir, "lone", "lone")
	source.paths = append(source.paths, lone)
	source.Add(lone)
	c, err := cache.New([]cache.Source{unreadable{source, source.paths[1].Info.Path}}, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	result, err := transfer.Export(t.Context(), c, nil, dir, transfer.ExportOptions{})
	if err == nil || !strings.Contains(err.Error(), "read error") || result.Failed != 2 || result.Moved != 2 {
		t.Errorf("%+v, %v", result, err)
	}
	var narinfos []string
	for name := range tree(t, dir) {
		if hash, ok := strings.CutSuffix(name, ".narinfo"); ok {
			narinfos = append(narinfos, hash)
		}
	}
	slices.Sort(narinfos)
	want := []string{source.paths[2].Info.Path.Hash().String(), lone.Info.Path.Hash().String()}
	slices.Sort(want)
	if diff := cmp.Diff(want, narinfos); diff != "" {
		t.Errorf("narinfos (-want +got):\n%s", diff)
	}
}

// Two do not write to one directory at once.
func TestExportLocked(t *testing.T) {
	c, _ := newCache(t)
	dir := t.TempDir()
	var inner error
	paths := func(func(*nix.PathInfo, error) bool) {
		_, inner = transfer.Export(t.Context(), c, nil, dir, transfer.ExportOptions{})
	}
	if _, err := transfer.Export(t.Context(), c, paths, dir, transfer.ExportOptions{}); err != nil {
		t.Error(err)
	}
	if inner == nil || !strings.Contains(inner.Error(), "another export writes there") {
		t.Errorf("the second: %v", inner)
	}
}

func TestExportEnds(t *testing.T) {
	c, _ := newCache(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := transfer.Export(ctx, c, nil, t.TempDir(), transfer.ExportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

package cache_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/internal/zstdcache"
	"firn/nix"
)

func newEncoder(t *testing.T) *zstdcache.Cache {
	t.Helper()
	encoder, err := zstdcache.Open(t.TempDir(), zstdcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := encoder.Close(); err != nil {
			t.Error(err)
		}
	})
	return encoder
}

func TestCompress(t *testing.T) {
	p := hello(t)
	c := newCache(t, cache.Options{Encoder: newEncoder(t), Compress: true}, cachetest.NewMemory(p))
	hash := p.Info.Path.Hash()

	before, err := c.NARInfo(t.Context(), hash)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{".nar.zst\n", "\nCompression: zstd\n"} {
		if !strings.Contains(string(before), want) {
			t.Errorf("the narinfo lacks %q:\n%s", want, before)
		}
	}
	if strings.Contains(string(before), "FileSize") || strings.Contains(string(before), "FileHash") {
		t.Errorf("the narinfo knows the file before it was made:\n%s", before)
	}

	compressed := cache.Archive{Path: hash, NARHash: p.Info.NARHash, Compression: nix.Zstd}
	if _, _, known, err := c.StatNAR(t.Context(), compressed); known || err != nil {
		t.Errorf("StatNAR before it was made: %v, %v", known, err)
	}
	n, _, err := c.OpenNAR(t.Context(), compressed)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var file bytes.Buffer
	if err := n.WriteRange(t.Context(), &file, 0, n.Size()); err != nil {
		t.Fatal(err)
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	if got, err := decoder.DecodeAll(file.Bytes(), nil); err != nil || !bytes.Equal(got, p.NAR) {
		t.Errorf("the compressed NAR is wrong (error: %v)", err)
	}

	// Clients sum up what they will download, so the size is told as soon as it is known.
	info := wantNARInfo(t, c, hash)
	if info.FileSize != int64(file.Len()) {
		t.Errorf("FileSize %d, want %d", info.FileSize, file.Len())
	}
	if _, size, known, err := c.StatNAR(t.Context(), compressed); size != int64(file.Len()) || !known || err != nil {
		t.Errorf("StatNAR: %d, %v, %v", size, known, err)
	}

	// The plain NAR stays where it was.
	plain, _, err := c.OpenNAR(t.Context(), cache.Archive{Path: hash, NARHash: p.Info.NARHash})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if plain.Size() != p.Info.NARSize {
		t.Errorf("the plain NAR has %d bytes, want %d", plain.Size(), p.Info.NARSize)
	}
}

// Clients that remember the URL of a compressed NAR get it, also when narinfos do not point to it any more.
func TestEncoderWithoutCompress(t *testing.T) {
	p := hello(t)
	c := newCache(t, cache.Options{Encoder: newEncoder(t)}, cachetest.NewMemory(p))
	if info := wantNARInfo(t, c, p.Info.Path.Hash()); info.Compression != nix.None || info.FileSize != p.Info.NARSize {
		t.Errorf("narinfo: %s, %d bytes", info.Compression, info.FileSize)
	}
	n, _, err := c.OpenNAR(t.Context(), cache.Archive{Path: p.Info.Path.Hash(), Compression: nix.Zstd})
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
}

func TestNoEncoder(t *testing.T) {
	p := hello(t)
	c := newCache(t, cache.Options{}, cachetest.NewMemory(p))
	a := cache.Archive{Path: p.Info.Path.Hash(), Compression: nix.Zstd}
	if _, _, err := c.OpenNAR(t.Context(), a); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR: %v, want ErrNotFound", err)
	}
	if _, err := cache.New(nil, cache.Options{Compress: true}); !errors.Is(err, cache.ErrInvalid) {
		t.Errorf("New to compress with nothing: %v, want ErrInvalid", err)
	}
}

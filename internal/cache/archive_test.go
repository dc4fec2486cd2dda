package cache_test

import (
	"bytes"
	"errors"
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

// A NAR that is named by its hash comes from whichever source has it.
func TestShadowedNAR(t *testing.T) {
	pushed := tree(t, "app")
	other := cachetest.NewTree(t, nix.DefaultStoreDir, "app", map[string]string{"name": "built elsewhere"})
	info := *other.Info
	info.Path, info.CA = pushed.Info.Path, nix.ContentAddress{}
	other.Info = &info
	l := newLeaning(t, cache.Options{})
	l.publish(l.upload(pushed))
	l.store.Add(other)
	hash := pushed.Info.Path.Hash()
	if got := wantNARInfo(t, l.Cache, hash); got.NARHash != other.Info.NARHash {
		t.Errorf("the narinfo has %s", got.NARHash)
	}
	for _, p := range []cachetest.Path{pushed, other} {
		a := cache.Archive{Path: hash, NARHash: p.Info.NARHash}
		n, info, err := l.OpenNAR(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := n.WriteRange(t.Context(), &got, 0, n.Size()); err != nil || !bytes.Equal(got.Bytes(), p.NAR) || info.NARHash != p.Info.NARHash {
			t.Errorf("the NAR %s has %d bytes and is said to be %s: %v", p.Info.NARHash, got.Len(), info.NARHash, err)
		}
		n.Close()
		if _, size, known, err := l.StatNAR(t.Context(), a); err != nil || !known || size != int64(len(p.NAR)) {
			t.Errorf("StatNAR of %s: %d, %t, %v", p.Info.NARHash, size, known, err)
		}
	}
	wantNone := func(a cache.Archive) {
		t.Helper()
		if _, _, err := l.OpenNAR(t.Context(), a); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("OpenNAR: %v, want ErrNotFound", err)
		}
	}
	wantNone(cache.Archive{Path: hash, NARHash: hello(t).Info.NARHash})
	wantNone(cache.Archive{Path: hash, NARHash: pushed.Info.NARHash, Compression: nix.Zstd})
	wantNone(cache.Archive{Path: hello(t).Info.Path.Hash(), NARHash: pushed.Info.NARHash})

	// A source that cannot tell does not make it a miss.
	l.store.Fail(errors.New("disk on fire"))
	if _, _, err := l.OpenNAR(t.Context(), cache.Archive{Path: hash, NARHash: hello(t).Info.NARHash}); !errors.Is(err, cache.ErrUnavailable) && !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("OpenNAR: %v", err)
	}
	n, _, err := l.OpenNAR(t.Context(), cache.Archive{Path: hash, NARHash: pushed.Info.NARHash})
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
}

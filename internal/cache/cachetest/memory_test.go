package cachetest_test

import (
	"testing"

	"firn/internal/cache"
	"firn/internal/cache/cachetest"
	"firn/nix"
)

func TestMemory(t *testing.T) {
	cachetest.Run(t, func(t *testing.T) cachetest.Fixture {
		paths := []cachetest.Path{
			cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n"),
			cachetest.NewPath(t, nix.DefaultStoreDir, "empty", ""),
			cachetest.NewPath(t, nix.DefaultStoreDir, "large", string(make([]byte, 200_000))),
		}
		drv, err := nix.DefaultStoreDir.ParseBase("00000000000000000000000000000000-hello.drv")
		if err != nil {
			t.Fatal(err)
		}
		m := cachetest.NewMemory(paths...)
		m.AddLog(drv, []byte("built\n"))
		return cachetest.Fixture{
			Source: m,
			Paths:  paths,
			Logs:   map[nix.StorePath][]byte{drv: []byte("built\n")},
			Remove: func(_ *testing.T, path nix.StorePath) { m.Remove(path) },
		}
	})
}

func TestMemorySink(t *testing.T) {
	cachetest.TestSink(t, func(testing.TB) cache.Sink { return cache.SinkOf(cachetest.NewMemory()) })
}

// The spec's vector: this very file, added by Nix 2.8.
func TestNewPath(t *testing.T) {
	p := cachetest.NewPath(t, nix.DefaultStoreDir, "hello.txt", "hello\n")
	if got, want := p.Info.Path.String(), "/nix/store/i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt"; got != want {
		t.Errorf("path is %s, want %s", got, want)
	}
	if got, want := p.Info.NARHash.String(), "sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw"; got != want {
		t.Errorf("NAR hash is %s, want %s", got, want)
	}
}

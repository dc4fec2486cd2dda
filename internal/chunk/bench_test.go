package chunk_test

import (
	"math/rand/v2"
	"testing"

	"firn/internal/chunk"
	"firn/nix"
)

func BenchmarkNext(b *testing.B) {
	noise := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	b.Run("noise", func(b *testing.B) { benchmarkNext(b, noise) })
	b.Run("zeros", func(b *testing.B) { benchmarkNext(b, make([]byte, 64<<20)) })
	text := noise[:4<<20]
	for i := 0; i+100 < len(text); i += 300 {
		copy(text[i:], "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x")
	}
	b.Run("references", func(b *testing.B) { benchmarkNext(b, text) })
}

func benchmarkNext(b *testing.B, nar []byte) {
	b.SetBytes(int64(len(nar)))
	for b.Loop() {
		c := chunk.NewCutter(nix.DefaultStoreDir)
		for rest := nar; len(rest) > 0; {
			n, _ := c.Next(rest[:min(len(rest), chunk.NeedSize)], len(rest) <= chunk.NeedSize)
			rest = rest[n:]
		}
	}
}

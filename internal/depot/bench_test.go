package depot_test

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"firn/internal/cache"
	"firn/internal/depot"
	"firn/nix"
)

// BenchmarkReceive keeps new NARs, on all cores and on one.
func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{2_000, 50_000, 1_000_000, 64_000_000} {
		contents := text(size, 1)
		nar := archive(b, file("", contents))
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			t := newTester(b, depot.Options{})
			var n atomic.Uint64
			b.SetBytes(int64(len(nar)))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				own := bytes.Clone(nar)
				for pb.Next() {
					// Other bytes in each chunk.
					for i := 200; i < len(own); i += 30_000 {
						copy(own[i:], fmt.Sprintf("%016x", n.Add(1)))
					}
					if _, err := t.Receive(b.Context(), cache.Upload{NAR: bytes.NewReader(own)}); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkReceiveAgain keeps NARs that are there.
func BenchmarkReceiveAgain(b *testing.B) {
	for _, size := range []int{2_000, 64_000_000} {
		nar := archive(b, file("", text(size, 1)))
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			t := newTester(b, depot.Options{})
			b.SetBytes(int64(len(nar)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := t.Receive(b.Context(), cache.Upload{NAR: bytes.NewReader(nar)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkServe opens and writes NARs, the first generation and the second.
func BenchmarkServe(b *testing.B) {
	t := newTester(b, depot.Options{})
	var infos [2][]*nix.PathInfo
	for generation := range infos {
		for _, nar := range system(b, 20, generation) {
			infos[generation] = append(infos[generation], t.push(nar))
		}
	}
	for generation, infos := range infos {
		for _, compressed := range []bool{true, false} {
			b.Run(fmt.Sprintf("generation-%d/compressed-%t", generation, compressed), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					var size int64
					for _, info := range infos {
						open := t.OpenNAR
						if compressed {
							open = framesOf(t.View)
						}
						n, err := open(b.Context(), info)
						if err != nil {
							b.Fatal(err)
						}
						if err := n.WriteRange(b.Context(), struct{ io.Writer }{io.Discard}, 0, n.Size()); err != nil {
							b.Fatal(err)
						}
						size += n.Size()
						n.Close()
					}
					b.SetBytes(size)
				}
			})
		}
	}
}

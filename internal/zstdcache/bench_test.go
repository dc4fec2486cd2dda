package zstdcache

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"firn/internal/cache"
)

// BenchmarkCompress compares the first request, until the last byte is there and kept, with the zstd command.
func BenchmarkCompress(b *testing.B) {
	for _, size := range []int{1000, 100_000, 4 << 20, 64 << 20} {
		d := randomDump(size, 1)
		for _, level := range []int{1, 3, 7} {
			b.Run(fmt.Sprintf("%d/firn-%d", size, level), func(b *testing.B) {
				h := newHouse(b, Options{Level: level})
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					n := must(h.Encode(b.Context(), d.info, d.open))
					if err := n.WriteRange(b.Context(), io.Discard, 0, n.Size()); err != nil {
						b.Fatal(err)
					}
					n.Close()
					f, _ := h.Cache.dir.files.Peek(d.info.NARHash)
					b.ReportMetric(float64(f.size)/float64(size), "ratio")
					h.Cache.dir.drop(f, nil)
				}
			})
		}
		b.Run(fmt.Sprintf("%d/zstd-3-T2", size), func(b *testing.B) {
			in, out := filepath.Join(b.TempDir(), "in"), filepath.Join(b.TempDir(), "out")
			if err := os.WriteFile(in, d.data, 0o644); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			for b.Loop() {
				if err := exec.CommandContext(b.Context(), "zstd", "-3", "-T2", "-q", "-f", in, "-o", out).Run(); err != nil {
					b.Fatal(err)
				}
			}
			info := must(os.Stat(out))
			b.ReportMetric(float64(info.Size())/float64(size), "ratio")
		})
	}
}

// BenchmarkServe sends kept files over a kept-alive connection of net/http.
func BenchmarkServe(b *testing.B) {
	for _, size := range []int{1000, 10_000, 50_000, 1 << 20, 64 << 20} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			h := newHouse(b, Options{})
			d := incompressible(size, 1)
			h.encode(d)
			listener := must(net.Listen("tcp", "127.0.0.1:0"))
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				serve(w, r, h.Cache, d)
			})}
			go server.Serve(listener)
			defer server.Close()
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			url := "http://" + listener.Addr().String()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				answer := must(client.Get(url))
				if _, err := io.Copy(io.Discard, answer.Body); err != nil {
					b.Fatal(err)
				}
				answer.Body.Close()
			}
		})
	}
}

// serve answers as a door does.
func serve(w http.ResponseWriter, r *http.Request, c *Cache, d *dump) {
	n, err := c.Encode(r.Context(), d.info, d.open)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer n.Close()
	w.Header()["Content-Type"] = []string{"application/x-nix-nar"}
	w.Header()["Content-Length"] = []string{strconv.FormatInt(n.Size(), 10)}
	if err := n.WriteRange(r.Context(), w, 0, n.Size()); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// BenchmarkEncode is what a hit costs before the first byte.
func BenchmarkEncode(b *testing.B) {
	for _, size := range []int{1000, 100_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			h := newHouse(b, Options{})
			d := incompressible(size, 1)
			h.encode(d)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					must(h.Encode(context.Background(), d.info, d.open)).Close()
				}
			})
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var _ cache.Encoder = (*Cache)(nil)

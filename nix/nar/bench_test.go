package nar_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"firn/nix/nar"
)

// BenchmarkWriteRange sends NARs through net/http over loopback, to a client that throws them away:
// "tree" by WriteRange, "flat" the same bytes as one file by sendfile, which is what a server of static files does.
// cpu-µs/op is the time of both ends; what tree has more than flat is the price of not having the NAR as a file.
func BenchmarkWriteRange(b *testing.B) {
	for _, c := range []struct {
		name string
		tree tree
	}{
		{"small-file", tree{file("", noise(4700, 1))}},
		{"few-files", manyFiles(8, 4700)},
		{"1000-small-files", manyFiles(1000, 4700)},
		{"1000-middling-files", manyFiles(1000, 60_000)},
		{"large-files", manyFiles(8, 32<<20)},
		{"mixed", mixed()},
	} {
		path := c.tree.make(b, filepath.Join(b.TempDir(), "tree"))
		l := layout(b, path)
		flat := filepath.Join(b.TempDir(), "flat")
		f, err := os.Create(flat)
		if err == nil {
			err = l.WriteRange(b.Context(), f, path, 0, l.Size())
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
		b.Run(c.name+"/tree", func(b *testing.B) {
			benchmarkSend(b, l.Size(), func(w http.ResponseWriter, r *http.Request) error {
				return l.WriteRange(r.Context(), w, path, 0, l.Size())
			})
		})
		b.Run(c.name+"/flat", func(b *testing.B) {
			benchmarkSend(b, l.Size(), func(w http.ResponseWriter, r *http.Request) error {
				f, err := os.Open(flat)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = io.Copy(w, f)
				return err
			})
		})
	}
}

// mixed has the sizes that are common in stores: a median of 4.7 kB, and most of the bytes in few large files.
func mixed() tree {
	t := tree{dir("")}
	for i := range 300 {
		size := 300 << (i % 9) // 300 bytes to 77 kB
		if i%100 == 50 {
			size = 8 << 20
		}
		t = append(t, file(fmt.Sprintf("file-%03d", i), noise(size, uint32(i))))
	}
	return t
}

func benchmarkSend(b *testing.B, size int64, send func(http.ResponseWriter, *http.Request) error) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-nix-nar")
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		if err := send(w, r); err != nil {
			b.Error(err)
		}
	}))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	sink := make([]byte, 512<<10)
	b.SetBytes(size)
	b.ReportAllocs()
	cpu := cpuTime(b)
	for b.Loop() {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			b.Fatal(err)
		}
		left := size
		for left > 0 {
			n, err := resp.Body.Read(sink)
			if left -= int64(n); err != nil && left > 0 {
				b.Fatal(err)
			}
		}
		resp.Body.Close()
	}
	b.ReportMetric((cpuTime(b)-cpu)*1e6/float64(b.N), "cpu-µs/op")
}

// cpuTime returns how many seconds this process has kept processors busy.
func cpuTime(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func BenchmarkNewLayout(b *testing.B) {
	path := manyFiles(1000, 1).make(b, filepath.Join(b.TempDir(), "tree"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := nar.NewLayout(b.Context(), path); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRangeAtEnd reads the last bytes of a NAR of many files.
func BenchmarkRangeAtEnd(b *testing.B) {
	path := manyFiles(45_000, 1).make(b, filepath.Join(b.TempDir(), "tree"))
	l := layout(b, path)
	b.ReportAllocs()
	for b.Loop() {
		if err := l.WriteRange(b.Context(), io.Discard, path, l.Size()-1000, 1000); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHash is the speed of verification: reading and hashing on two cores.
func BenchmarkHash(b *testing.B) {
	path := mixed().make(b, filepath.Join(b.TempDir(), "tree"))
	l := layout(b, path)
	sum, err := l.Hash(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(l.Size())
	b.ReportAllocs()
	for b.Loop() {
		if err := l.WriteVerified(b.Context(), io.Discard, path, sum); err != nil {
			b.Fatal(err)
		}
	}
}

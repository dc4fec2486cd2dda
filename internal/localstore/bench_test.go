package localstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"firn/internal/cache"
	"firn/internal/memo"
	"firn/nix"
)

// benchStore is a store with a database of a hundred thousand paths of five references each.
func benchStore(b *testing.B) *Store {
	n := newNix(b)
	fillDatabase(b, n, 100_000, 5)
	s := n.open()
	if err := waitForFilter(s); err != nil {
		b.Fatal(err)
	}
	return s
}

func BenchmarkPathInfo(b *testing.B) {
	s := benchStore(b)
	b.Run("hit", func(b *testing.B) {
		b.ReportAllocs()
		defer reportCPU(b, cpuTime(b))
		for i := 0; b.Loop(); i++ {
			if _, err := s.PathInfo(b.Context(), generatedHash(i%100_000)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("hit/parallel", func(b *testing.B) {
		b.ReportAllocs()
		defer reportCPU(b, cpuTime(b))
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if _, err := s.PathInfo(b.Context(), generatedHash(i%100_000)); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("miss", func(b *testing.B) {
		b.ReportAllocs()
		defer reportCPU(b, cpuTime(b))
		for i := 0; b.Loop(); i++ {
			if _, err := s.PathInfo(b.Context(), generatedHash(-1-i)); !errors.Is(err, cache.ErrNotFound) {
				b.Fatal(err)
			}
		}
	})
	b.Run("miss/unfiltered", func(b *testing.B) {
		b.ReportAllocs()
		defer reportCPU(b, cpuTime(b))
		for i := 0; b.Loop(); i++ {
			if _, err := s.db.pathInfo(b.Context(), generatedHash(-1-i)); !errors.Is(err, cache.ErrNotFound) {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkVersion(b *testing.B) {
	s := newNix(b).open()
	b.ReportAllocs()
	defer reportCPU(b, cpuTime(b))
	for b.Loop() {
		if s.Version(b.Context()).Freshness != memo.Current {
			b.Fatal("it does not vouch for its version")
		}
	}
}

// A miss that the daemon is asked about, which an unprivileged process does once for a path and version.
func BenchmarkDaemonMiss(b *testing.B) {
	n := newNix(b)
	n.startDaemon()
	d := newDaemon(filepath.Join(n.stateDir, "daemon-socket/socket"), n.storeDir)
	defer d.close()
	b.ReportAllocs()
	defer reportCPU(b, cpuTime(b))
	for i := 0; b.Loop(); i++ {
		if info, err := d.pathInfo(b.Context(), generatedHash(i)); info != nil || err != nil {
			b.Fatal(info, err)
		}
	}
}

// Opening and closing a NAR: protection, layout from memory, validity.
func BenchmarkOpenNAR(b *testing.B) {
	n := newNix(b)
	path := n.add("file", "hello\n")
	s := n.open()
	info, err := s.PathInfo(b.Context(), path.Hash())
	if err != nil {
		b.Fatal(err)
	}
	send := func(b *testing.B) {
		nar, err := s.OpenNAR(b.Context(), info)
		if err != nil {
			b.Fatal(err)
		}
		if err := nar.WriteRange(b.Context(), io.Discard, 0, nar.Size()); err != nil {
			b.Fatal(err)
		}
		nar.Close()
	}
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		defer reportCPU(b, cpuTime(b))
		for b.Loop() {
			send(b)
		}
	})
	b.Run("beside another", func(b *testing.B) {
		other, err := s.OpenNAR(b.Context(), info)
		if err != nil {
			b.Fatal(err)
		}
		defer other.Close()
		b.ReportAllocs()
		defer reportCPU(b, cpuTime(b))
		for b.Loop() {
			send(b)
		}
	})
}

// BenchmarkOpen opens a database of a million paths, and reports how long it is until the first answer and
// until the filter is full, and what memory that takes, in all and as the Go heap.
func BenchmarkOpen(b *testing.B) {
	n := newNix(b)
	fillDatabase(b, n, 1_000_000, 1)
	var first, full time.Duration
	var heap, resident int64
	for b.Loop() {
		before := residentMemory(b)
		start := time.Now()
		s, err := Open(b.Context(), n.options())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.PathInfo(b.Context(), generatedHash(500_000)); err != nil {
			b.Fatal(err)
		}
		if _, err := s.PathInfo(b.Context(), nix.PathHash{}); !errors.Is(err, cache.ErrNotFound) {
			b.Fatal(err)
		}
		first += time.Since(start)
		if err := waitForFilter(s); err != nil {
			b.Fatal(err)
		}
		full += time.Since(start)
		resident = max(resident, residentMemory(b)-before)
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		heap = max(heap, int64(m.HeapAlloc))
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(first.Seconds()*1e3/float64(b.N), "ms/first-answer")
	b.ReportMetric(full.Seconds()*1e3/float64(b.N), "ms/filter-full")
	b.ReportMetric(float64(resident)/1e6, "MB-resident-more")
	b.ReportMetric(float64(heap)/1e6, "MB-heap")
}

// reportCPU reports the processor time of the loop, user and system: unlike the time, other work on the machine does not change it much.
func reportCPU(b *testing.B, before time.Duration) {
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// residentMemory is how many bytes of memory the process has, of Linux; zero elsewhere.
func residentMemory(b *testing.B) int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		b.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

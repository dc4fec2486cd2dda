package sqlite

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"firn/internal/catalog"
	"firn/internal/depot/index"
	"firn/internal/depot/index/indextest"
	"firn/internal/memo"
	"firn/nix"
)

// sampleHash is the path hash of the path of a number out of n in a catalog made by fill.
func sampleHash(i, n int) (hash nix.PathHash) {
	binary.BigEndian.PutUint64(hash[:], uint64(i*(1<<62/n)))
	return hash
}

// fill makes n paths in a cache, of the size that they have in a binary cache, with a NAR, a listing and an upload each.
func fill(b *testing.B, c *Catalog, cache catalog.CacheID, n int) {
	b.Helper()
	numbers := fmt.Sprintf("WITH RECURSIVE numbers (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < %d) ", n)
	key := func(digits int) string {
		return fmt.Sprintf("unhex(printf('%%016x%%0%dx', i * %d, 0))", digits-16, 1<<62/n)
	}
	const references = 20 // of each path
	sig := "cache.example.org-1:" + strings.Repeat("A", 86) + "=="
	for _, text := range []string{
		"PRAGMA cache_size = -100000",
		numbers + "INSERT INTO listings SELECT i + 1, " + key(64) + ", randomblob(300) FROM numbers",
		numbers + "INSERT INTO nars SELECT i + 1, " + key(64) + ", 100000, 30000, '0123456789abcdef', 0, 0, i + 1 FROM numbers",
		numbers + "INSERT INTO recipes SELECT i + 1, randomblob(60) FROM numbers",
		numbers + fmt.Sprintf(`INSERT INTO paths (cache, hash, name, nar, deriver, sigs, ca, fields, registered, published, publisher)
			SELECT %d, %s, 'some-package-1.2.3', i + 1, printf('%%032d-some-package-1.2.3.drv', i), '%s', '', '', 1700000000, 1700000000, '' FROM numbers`, cache, key(40), sig),
		// Each refers to those before it: the first of them have most of the referrers, as in any cache.
		numbers + fmt.Sprintf("INSERT INTO referenced (cache, hash, name) SELECT %d, %s, 'some-package-1.2.3' FROM numbers", cache, key(40)),
		numbers + fmt.Sprintf("INSERT INTO path_refs SELECT i + 1, 1 + i * value / %d FROM numbers, json_each('[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]') WHERE true ON CONFLICT DO NOTHING", references),
		numbers + fmt.Sprintf("INSERT INTO uploads SELECT %d, printf('nar/%%052d.nar.xz', i), i + 1, zeroblob(32), 25000, NULL, 'xz' FROM numbers", cache),
	} {
		if err := c.write(context.Background(), func(x *change) error { return x.exec(text) }); err != nil {
			b.Fatal(err)
		}
	}
}

// Look-ups of narinfos that are there, in turns at random, and of some that are not.
func BenchmarkPath(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		c := openAt(b, filepath.Join(b.TempDir(), "catalog.db"), Options{})
		cache, err := addCache(b.Context(), c, "main")
		if err != nil {
			b.Fatal(err)
		}
		fill(b, c, cache, n)
		for _, test := range []struct {
			name  string
			found bool
		}{{"there", true}, {"missing", false}} {
			b.Run(fmt.Sprintf("%s/%d", test.name, n), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						hash := sampleHash(rand.IntN(n), n)
						if !test.found {
							hash[19] = 1
						}
						if _, err := c.Path(b.Context(), cache, hash); (err == nil) != test.found {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

func BenchmarkAddNAR(b *testing.B) {
	for _, goroutines := range []int{1, 16} {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			c := openAt(b, filepath.Join(b.TempDir(), "catalog.db"), Options{})
			cache, err := addCache(b.Context(), c, "main")
			if err != nil {
				b.Fatal(err)
			}
			var next atomic.Int64
			done := make(chan error)
			b.ResetTimer()
			for range goroutines {
				go func() {
					for {
						i := next.Add(1)
						if i > int64(b.N) {
							done <- nil
							return
						}
						n, _ := indextest.Sample(fmt.Sprint(i), cache)
						if _, _, err := c.AddNAR(context.Background(), n); err != nil {
							done <- err
							return
						}
					}
				}()
			}
			for range goroutines {
				if err := <-done; err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "NARs/s")
		})
	}
}

func BenchmarkVersion(b *testing.B) {
	c := openAt(b, filepath.Join(b.TempDir(), "catalog.db"), Options{})
	for b.Loop() {
		if c.Version(b.Context()).Freshness != memo.Current {
			b.Fatal("no version")
		}
	}
}

// One path is deleted, for which the references of all are read, while another process pushes.
func BenchmarkDeletePaths(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		path := filepath.Join(b.TempDir(), "catalog.db")
		c, other := openAt(b, path, Options{}), openAt(b, path, Options{})
		cache, err := addCache(b.Context(), c, "main")
		if err != nil {
			b.Fatal(err)
		}
		fill(b, c, cache, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var done atomic.Bool
			var longest time.Duration
			var pushing sync.WaitGroup
			pushing.Go(func() {
				for i := 0; !done.Load(); i++ {
					began := time.Now()
					if err := push(context.Background(), other, cache, fmt.Sprint(b.N, "-", i)); err != nil {
						b.Error(err)
					}
					longest = max(longest, time.Since(began))
				}
			})
			for b.Loop() {
				d := &index.Deletion{Cache: cache, Paths: []nix.PathHash{sampleHash(rand.IntN(n), n)}, Referrers: index.DeleteReferrers}
				if _, err := index.Of(c).Delete(b.Context(), d); err != nil && !errors.Is(err, catalog.ErrNotFound) {
					b.Fatal(err)
				}
			}
			done.Store(true)
			pushing.Wait()
			b.ReportMetric(float64(longest.Microseconds())/1000, "ms/longest-push")
		})
	}
}

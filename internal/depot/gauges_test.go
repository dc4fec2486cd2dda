package depot_test

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"firn/internal/depot"
	"firn/internal/depot/blob/blobtest"
	"firn/internal/depot/index"
)

// slowCounts is a catalog in which counting takes some time of the clock.
type slowCounts struct {
	Catalog
	now    *time.Time
	takes  time.Duration
	counts int
}

func (s *slowCounts) Count(ctx context.Context) (index.Counts, error) {
	s.counts++
	*s.now = s.now.Add(s.takes)
	return s.Catalog.Count(ctx)
}

func TestGauges(tt *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	cat := &slowCounts{Catalog: newCatalog(tt), now: &now}
	blobs := &narrow{Store: blobtest.NewMemory(), free: 6, all: 120}
	s := newTesterOn(tt, cat, blobs, depot.Options{Now: func() time.Time { return now }})
	gauges := s.depot.Gauges()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(gauges)
	gather := func() map[string]float64 {
		s.Helper()
		families, err := registry.Gather()
		if err != nil {
			s.Fatal(err)
		}
		got := make(map[string]float64)
		for _, f := range families {
			got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
		}
		return got
	}
	// tick has so much time pass, and wants the count to have been done so often by then.
	tick := func(after time.Duration, counts int) {
		s.Helper()
		now = now.Add(after)
		if err := gauges.Tick(s.Context()); err != nil {
			s.Fatal(err)
		}
		if cat.counts != counts {
			s.Fatalf("counted %d times, want %d", cat.counts, counts)
		}
	}

	// Until it is counted only the disk is known.
	if got, want := slices.Sorted(maps.Keys(gather())), []string{"firn_depot_disk_bytes", "firn_depot_disk_free_bytes", "firn_depot_there"}; !slices.Equal(got, want) {
		s.Errorf("before the first count there are %v, want %v", got, want)
	}
	s.push(archive(s, file("", noise(300_000, 1))))
	s.push(archive(s, file("", noise(200_000, 2))))
	tick(0, 1)
	counted := now
	all, err := cat.Catalog.Count(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	want := map[string]float64{
		"firn_depot_paths": 2, "firn_depot_nars": 2, "firn_depot_withheld_nars": 0, "firn_depot_packs": 2,
		"firn_depot_nar_bytes": float64(all.NARBytes), "firn_depot_served_bytes": float64(all.FileBytes),
		"firn_depot_chunks": float64(all.Chunks), "firn_depot_kept_bytes": float64(all.PackBytes),
		"firn_depot_reclaimable_bytes":         0,
		"firn_depot_counted_timestamp_seconds": float64(counted.Unix()),
		"firn_depot_disk_free_bytes":           6, "firn_depot_disk_bytes": 120, "firn_depot_there": 1, "firn_depot_incomplete_nars": 0,
	}
	if all.NARBytes < 500_000 || all.PackBytes < 500_000 {
		s.Errorf("%d bytes of NARs in packs of %d: less than was pushed", all.NARBytes, all.PackBytes)
	}
	if diff := cmp.Diff(want, gather()); diff != "" {
		s.Errorf("wrong metrics (-want +got):\n%s", diff)
	}

	// What changes is counted, but not at once; scrapes do not count.
	s.push(archive(s, file("", noise(100_000, 3))))
	blobs.free = 5
	tick(59*time.Second, 1)
	want["firn_depot_disk_free_bytes"] = 5
	if diff := cmp.Diff(want, gather()); diff != "" {
		s.Errorf("wrong metrics a moment later (-want +got):\n%s", diff)
	}
	cat.takes = 10 * time.Second
	tick(time.Second, 2)
	if got := gather()["firn_depot_paths"]; got != 3 {
		s.Errorf("%v paths, want 3", got)
	}

	// A count that takes long is the rarer for it.
	s.push(archive(s, file("", noise(100_000, 4))))
	tick(900*time.Second, 2)
	tick(100*time.Second, 3)

	// Whoever scrapes has them counted.
	s.push(archive(s, file("", noise(100_000, 5))))
	now = now.Add(time.Hour)
	ctx, cancel := context.WithCancel(s.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		gauges.Run(ctx, func(err error) { s.Error(err) })
	}()
	for end := time.Now().Add(time.Minute); gather()["firn_depot_paths"] != 5 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-ended
	if got := gather()["firn_depot_paths"]; got != 5 {
		s.Errorf("%v paths, want 5", got)
	}
	cat.counts = 3

	// Where nothing has changed, nothing is counted, and what is known is right now.
	cat.takes = 0
	tick(2000*time.Second, 3)
	if got, want := gather()["firn_depot_counted_timestamp_seconds"], float64(now.Unix()); got != want {
		s.Errorf("right at %v, want %v", got, want)
	}
}

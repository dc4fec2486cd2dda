package depot

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"firn/internal/depot/blob"
	"firn/internal/depot/index"
	"firn/internal/memo"
)

const (
	// countEvery is the least time between two counts for [Gauges].
	countEvery = time.Minute
	// countShare is how many times longer than a count took the next one waits. A count reads whole
	// tables, of which a large depot has millions of rows.
	countShare = 100
)

// Gauges are the metrics of how much the depot has, and how much room there is. A scrape gets the
// last count, and makes Run count again if it is old. Without scrapes nothing is counted.
type Gauges struct {
	d     *Depot
	asked chan struct{} // holds something when there was a scrape

	mu      sync.Mutex
	counts  index.Counts
	at      time.Time     // when these were right; zero: never
	took    time.Duration // to count them
	version memo.Version  // of the catalog just before
}

// Gauges returns the gauges of the depot. They show only the room on the disk until they are
// counted.
func (d *Depot) Gauges() *Gauges { return &Gauges{d: d, asked: make(chan struct{}, 1)} }

// Run counts after scrapes, until ctx ends. It calls failed with errors.
func (g *Gauges) Run(ctx context.Context, failed func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.asked:
		}
		if err := g.Tick(ctx); err != nil && ctx.Err() == nil {
			failed(err)
		}
	}
}

// Tick counts, unless that was done a moment ago or nothing has changed since. Only one goroutine
// may call it at a time.
func (g *Gauges) Tick(ctx context.Context) error {
	g.mu.Lock()
	at, took, version := g.at, g.took, g.version
	g.mu.Unlock()
	begun := g.d.opts.Now()
	if !at.IsZero() && begun.Sub(at) < max(countEvery, countShare*took) {
		return nil
	}
	now := g.d.catalog.Version(ctx)
	if !at.IsZero() && version.Hit(now) {
		g.mu.Lock()
		g.at = begun
		g.mu.Unlock()
		return nil
	}
	counts, err := g.d.index.Count(ctx)
	if err != nil {
		return failure("count what is kept", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts, g.at, g.took, g.version = counts, begun, g.d.opts.Now().Sub(begun), now
	return nil
}

// A gauge is one number of a count.
type gauge struct {
	desc  *prometheus.Desc
	value func(*index.Counts) int64
}

func newGauge(name, help string, value func(*index.Counts) int64) gauge {
	return gauge{prometheus.NewDesc("firn_depot_"+name, help, nil, nil), value}
}

var (
	gauges = []gauge{
		newGauge("paths", "Store paths that were pushed and are published, in all caches.", func(c *index.Counts) int64 { return c.Paths }),
		newGauge("nars", "NARs that are kept, each once, however many paths and caches have it.", func(c *index.Counts) int64 { return c.NARs }),
		newGauge("withheld_nars", "NARs that are not served, as they are damaged or lack a pack.", func(c *index.Counts) int64 { return c.Withheld }),
		newGauge("incomplete_nars", "Of these, the NARs that lack a pack. They are served again when it is back.", func(c *index.Counts) int64 { return c.Missing }),
		newGauge("nar_bytes", "The size of these NARs, uncompressed.", func(c *index.Counts) int64 { return c.NARBytes }),
		newGauge("served_bytes", "The size of these NARs as they are served, compressed.", func(c *index.Counts) int64 { return c.FileBytes }),
		newGauge("chunks", "Pieces that NARs can share.", func(c *index.Counts) int64 { return c.Chunks }),
		newGauge("packs", "Packs, which hold the bytes of the NARs.", func(c *index.Counts) int64 { return c.Packs }),
		newGauge("kept_bytes", "The size of the packs.", func(c *index.Counts) int64 { return c.PackBytes }),
		newGauge("reclaimable_bytes", "Bytes of the packs that no NAR needs any more. Most go by themselves, a day later.", func(c *index.Counts) int64 { return c.Reclaimable }),
	}
	descCounted  = prometheus.NewDesc("firn_depot_counted_timestamp_seconds", "When the other firn_depot metrics but those of the disk were right, in seconds since 1970.", nil, nil)
	descThere    = prometheus.NewDesc("firn_depot_there", "1 if the directory of the packs is there, 0 if not, such as on a disk that is not mounted.", nil, nil)
	descDiskFree = prometheus.NewDesc("firn_depot_disk_free_bytes", "Room on the disk of the packs.", nil, nil)
	descDisk     = prometheus.NewDesc("firn_depot_disk_bytes", "The size of the disk of the packs.", nil, nil)
)

// Describe sends the descriptions of the metrics.
func (*Gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range gauges {
		ch <- g.desc
	}
	ch <- descCounted
	ch <- descThere
	ch <- descDiskFree
	ch <- descDisk
}

// Collect sends their values.
func (g *Gauges) Collect(ch chan<- prometheus.Metric) {
	select {
	case g.asked <- struct{}{}:
	default:
	}
	tell := func(desc *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v)
	}
	g.mu.Lock()
	counts, at := g.counts, g.at
	g.mu.Unlock()
	if !at.IsZero() {
		for _, each := range gauges {
			tell(each.desc, float64(each.value(&counts)))
		}
		tell(descCounted, float64(at.Unix()))
	}
	there := 1.0
	if g.d.look(context.Background()) != nil {
		there = 0
	}
	tell(descThere, there)
	if free, all, err := g.d.Room(context.Background()); err == nil && all > 0 {
		tell(descDiskFree, float64(free))
		tell(descDisk, float64(all))
	}
}

// Room returns how many bytes can still be written, and how many there can be in all; 0 in all if
// that is not known.
func (d *Depot) Room(ctx context.Context) (free, all int64, err error) {
	m, ok := d.blobs.(blob.Measured)
	if !ok {
		return 0, 0, nil
	}
	return m.Room(ctx)
}

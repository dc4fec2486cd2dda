package zstdcache

import "github.com/prometheus/client_golang/prometheus"

// The metrics of a Cache, which is a prometheus.Collector of its Stats.
var (
	descBytes    = prometheus.NewDesc("firn_zstd_kept_bytes", "Disk that compressed NARs take.", nil, nil)
	descFiles    = prometheus.NewDesc("firn_zstd_kept_files", "Compressed NARs that are kept.", nil, nil)
	descMaking   = prometheus.NewDesc("firn_zstd_compressing", "NARs that are being compressed.", nil, nil)
	descRequests = prometheus.NewDesc("firn_zstd_requests_total",
		"Requests for compressed NARs: hits of kept ones, misses that began a compression, joins of one under way, "+
			"direct ones that were compressed for one reader because they could not be kept.", []string{"result"}, nil)
	descEvictions = prometheus.NewDesc("firn_zstd_evictions_total", "Compressed NARs that made room for others.", nil, nil)
)

// Describe tells the metrics.
func (c *Cache) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect tells their values.
func (c *Cache) Collect(ch chan<- prometheus.Metric) {
	s := c.Stats()
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	count := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descBytes, float64(s.Bytes))
	gauge(descFiles, float64(s.Files))
	gauge(descMaking, float64(s.Making))
	count(descRequests, s.Hits, "hit")
	count(descRequests, s.Misses, "miss")
	count(descRequests, s.Joins, "join")
	count(descRequests, s.Direct, "direct")
	count(descEvictions, s.Evictions)
}

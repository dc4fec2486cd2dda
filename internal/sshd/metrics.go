package sshd

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// The metrics of a Server, which is a prometheus.Collector.
var (
	descLogins = prometheus.NewDesc("firn_ssh_logins_total",
		"Connections that logged in, failed to, or were turned away because too many others were about to.", []string{"result"}, nil)
	descConnections = prometheus.NewDesc("firn_ssh_connections", "Connections that have logged in.", nil, nil)
	descSessions    = prometheus.NewDesc("firn_ssh_sessions_total", "Commands that were answered, by how that ended.", []string{"result"}, nil)
	descInFlight    = prometheus.NewDesc("firn_ssh_sessions_in_flight", "Commands that are being answered.", nil, nil)
	descBytes       = prometheus.NewDesc("firn_ssh_bytes_total", "Bytes on the wire.", []string{"direction"}, nil)
)

// counts are what a Server counts.
type counts struct {
	loggedIn, failed, turnedAway  atomic.Int64 // connections
	open                          atomic.Int64 // connections now
	inFlight, ended, endedInError atomic.Int64 // commands
	received, sent                atomic.Int64 // bytes
}

// Describe tells the metrics.
func (s *Server) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, ch) }

// Collect tells their values.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	tell := func(d *prometheus.Desc, kind prometheus.ValueType, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, float64(v), labels...)
	}
	tell(descLogins, prometheus.CounterValue, s.counts.loggedIn.Load(), "ok")
	tell(descLogins, prometheus.CounterValue, s.counts.failed.Load(), "failed")
	tell(descLogins, prometheus.CounterValue, s.counts.turnedAway.Load(), "turned away")
	tell(descConnections, prometheus.GaugeValue, s.counts.open.Load())
	tell(descSessions, prometheus.CounterValue, s.counts.ended.Load(), "ok")
	tell(descSessions, prometheus.CounterValue, s.counts.endedInError.Load(), "failed")
	tell(descInFlight, prometheus.GaugeValue, s.counts.inFlight.Load())
	tell(descBytes, prometheus.CounterValue, s.counts.received.Load(), "received")
	tell(descBytes, prometheus.CounterValue, s.counts.sent.Load(), "sent")
}

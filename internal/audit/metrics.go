package audit

import "github.com/prometheus/client_golang/prometheus"

// metrics are the counters of a Log. Every one is looked up once, here.
type metrics struct {
	all                              []prometheus.Collector
	sessions, bytes, nars, published map[FrontEnd]prometheus.Counter
	refused, denied                  map[FrontEnd]map[Reason]prometheus.Counter
}

// reasons are those that a front end can have.
var reasons = map[FrontEnd][]Reason{
	HTTP: {WrongToken, WrongCertificate, TooOften, NoToken, MayNotRead, MayNotPush},
	SSH:  {WrongKey, MayNotRead, MayNotPush},
}

func newMetrics() *metrics {
	m := &metrics{}
	m.sessions = m.counter("firn_push_sessions_total", "Push sessions that have ended, in which something was pushed.")
	m.bytes = m.counter("firn_upload_bytes_total", "Bytes of uploads, as they were sent.")
	m.nars = m.counter("firn_nars_received_total", "NARs that were received, verified and kept.")
	m.published = m.counter("firn_paths_published_total", "Store paths that were published and not there before.")
	m.refused = m.refusals("firn_logins_refused_total", "Log-ins that were refused, by reason.", Reason.login)
	m.denied = m.refusals("firn_access_denied_total", "Requests and conversations that were refused for want of a right, by reason.",
		func(r Reason) bool { return !r.login() })
	return m
}

func (m *metrics) counter(name, help string) map[FrontEnd]prometheus.Counter {
	vector := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"front_end"})
	m.all = append(m.all, vector)
	return map[FrontEnd]prometheus.Counter{HTTP: vector.WithLabelValues(string(HTTP)), SSH: vector.WithLabelValues(string(SSH))}
}

func (m *metrics) refusals(name, help string, has func(Reason) bool) map[FrontEnd]map[Reason]prometheus.Counter {
	vector := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"front_end", "reason"})
	m.all = append(m.all, vector)
	counters := map[FrontEnd]map[Reason]prometheus.Counter{}
	for end, all := range reasons {
		counters[end] = map[Reason]prometheus.Counter{}
		for _, r := range all {
			if has(r) {
				counters[end][r] = vector.WithLabelValues(string(end), string(r))
			}
		}
	}
	return counters
}

// Describe tells the metrics.
func (l *Log) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range l.metrics.all {
		c.Describe(ch)
	}
}

// Collect tells their values.
func (l *Log) Collect(ch chan<- prometheus.Metric) {
	for _, c := range l.metrics.all {
		c.Collect(ch)
	}
}

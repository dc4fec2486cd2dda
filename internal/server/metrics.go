package server

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"firn/internal/cache"
)

// Results of a look-up of a narinfo.
const (
	lookupHit = iota
	lookupMiss
	lookupFailed
	lookupResults
)

// metrics are the metrics that /metrics shows. Every counter is looked up once, here, and not for each
// request.
type metrics struct {
	handler http.Handler // for every client
	inside  http.Handler // with metrics of the process, which show the cost, and so the size, of others' uploads; and with those of all caches

	inFlight atomic.Int64
	requests [routes][6]prometheus.Counter // by status class; 0 is an answer that never began
	seconds  [routes]prometheus.Observer
	bytes    [routes]prometheus.Counter
	lookups  [lookupResults]prometheus.Counter
	aborts   [culprits]prometheus.Counter

	refused map[string]prometheus.Counter // by reason
}

// newMetrics returns the metrics of a server. more adds to those for every client, inside to those of the
// process.
func newMetrics(caches cache.Registry, more, inside []prometheus.Collector) *metrics {
	m := &metrics{}
	inFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "firn_http_requests_in_flight",
		Help: "Requests that are being answered.",
	}, func() float64 { return float64(m.inFlight.Load()) })
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "firn_http_requests_total",
		Help: "Requests answered, by what was asked for and class of the status.",
	}, []string{"route", "status"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "firn_http_request_duration_seconds",
		Help:    "Time from the header of a request to the last byte of its answer.",
		Buckets: []float64{0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000},
	}, []string{"route"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "firn_http_response_bytes_total",
		Help: "Bytes of bodies sent.",
	}, []string{"route"})
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "firn_narinfo_lookups_total",
		Help: "Look-ups of narinfos, by result.",
	}, []string{"result"})
	aborts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "firn_http_aborts_total",
		Help: "Answers that ended before their last byte, by who ended them.",
	}, []string{"by"})

	verified := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "firn_nar_verified_total",
		Help: "NARs that were compared with their hashes, and were right.",
	}, func() float64 { right, _ := verifiedOf(caches); return float64(right) })
	failed := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "firn_nar_verification_failures_total",
		Help: "NARs that were not the ones their hashes promised. They are withheld.",
	}, func() float64 { _, wrong := verifiedOf(caches); return float64(wrong) })

	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "firn_uploads_refused_total",
		Help: "Uploads that were refused or failed, by reason.",
	}, []string{"reason"})
	m.refused = make(map[string]prometheus.Counter)
	for _, r := range append(refusals, refusal{reason: reasonFailed}) {
		m.refused[r.reason] = refused.WithLabelValues(r.reason)
	}

	for r := range routes {
		name := routeNames[r]
		m.requests[r][0] = requests.WithLabelValues(name, "none")
		for class := 1; class < len(m.requests[r]); class++ {
			m.requests[r][class] = requests.WithLabelValues(name, strconv.Itoa(class)+"xx")
		}
		m.seconds[r] = seconds.WithLabelValues(name)
		m.bytes[r] = bytes.WithLabelValues(name)
	}
	for i, result := range [lookupResults]string{"hit", "miss", "failed"} {
		m.lookups[i] = lookups.WithLabelValues(result)
	}
	for c := range culprits {
		m.aborts[c] = aborts.WithLabelValues(culprit(c).String())
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(
		inFlight, verified, failed, requests, seconds, bytes, lookups, aborts, refused,
	)
	registry.MustRegister(more...)
	private := prometheus.NewRegistry()
	private.MustRegister(inside...)
	private.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{DisableCompression: true})
	m.inside = promhttp.HandlerFor(prometheus.Gatherers{registry, private}, promhttp.HandlerOpts{DisableCompression: true})
	return m
}

// answered counts a request that has been answered or aborted.
func (m *metrics) answered(x *exchange, took time.Duration) {
	route := x.label()
	m.requests[route][x.status/100].Inc()
	m.seconds[route].Observe(took.Seconds())
	m.bytes[route].Add(float64(x.sent))
}

// verifiedOf returns how many NARs the sources of the cache at the root have verified. All caches have the
// same sources, or fewer.
func verifiedOf(caches cache.Registry) (right, wrong int64) {
	c, err := caches.ByName(context.Background(), cache.Main)
	if err != nil {
		return 0, 0
	}
	return c.Verified()
}

// refusal is a reason for which uploads are refused, and the error that stands for it.
type refusal struct {
	reason string
	err    error
}

const reasonFailed = "failed"

// refusals are searched in this order. Any other error is a failure of the server.
var refusals = []refusal{
	{"no token", cache.ErrUnauthenticated},
	{"denied", cache.ErrDenied},
	{"slow", errSlow},
	{"gone", errGone},
	{"too large", cache.ErrTooLarge},
	{"conflict", cache.ErrConflict},
	{"invalid", cache.ErrInvalid},
	{"no such place", cache.ErrNotFound},
	{"method", errMethod},
	{"no room", cache.ErrFull},
	{"unavailable", cache.ErrUnavailable},
}

// uploaded counts an upload that has ended.
func (m *metrics) uploaded(err error) {
	if err == nil {
		return
	}
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			m.refused[r.reason].Inc()
			return
		}
	}
	m.refused[reasonFailed].Inc()
}

func (s *Server) serveMetrics(x *exchange) error {
	h := x.w.Header()
	x.setCaching(h, cacheNever)
	h["X-Content-Type-Options"] = noSniff
	inside := s.fromHere(x)
	if !inside {
		who, err := s.authenticate(x)
		if err != nil {
			return err
		}
		inside = who.May(cache.Admin, cache.Main)
	}
	handler := s.metrics.handler
	if inside {
		handler = s.metrics.inside
	}
	// It sets no header before its first byte, which begins the answer.
	handler.ServeHTTP(&counted{x.w, &body{x: x, status: http.StatusOK}}, x.r)
	return nil
}

// counted is a response whose body counts the bytes.
type counted struct {
	http.ResponseWriter
	body *body
}

func (c *counted) Write(p []byte) (int, error) { return c.body.Write(p) }

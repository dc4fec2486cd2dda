package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestMetricsInside: what the process takes, and what is kept of all, is not for everybody. It shows what an upload cost, and so what others have.
func TestMetricsInside(t *testing.T) {
	p := newCaches(t, Options{Inside: []prometheus.Collector{
		prometheus.NewGauge(prometheus.GaugeOpts{Name: "firn_test_kept", Help: "What is kept of all."}),
	}})
	for name, c := range map[string]struct {
		from    string
		headers []string
		inside  bool
	}{
		"anybody":              {"192.0.2.1:1000", nil, false},
		"who may push":         {"192.0.2.1:1000", []string{as("push-main")}, false},
		"admin of another":     {"192.0.2.1:1000", []string{as("admin-team")}, false},
		"admin":                {"192.0.2.1:1000", []string{as("admin-main")}, true},
		"this machine":         {"127.0.0.1:1000", nil, true},
		"this machine, IPv6":   {"[::1]:1000", nil, true},
		"through a proxy":      {"127.0.0.1:1000", []string{"X-Forwarded-For: 192.0.2.1"}, false},
		"claiming to be here":  {"127.0.0.1:1000", []string{"X-Forwarded-For: 127.0.0.1"}, false},
		"through another":      {"127.0.0.1:1000", []string{"Via: 1.1 proxy"}, false},
		"elsewhere, claiming":  {"192.0.2.1:1000", []string{"X-Forwarded-For: 127.0.0.1"}, false},
		"through a socket":     {"@", nil, false},
		"admin behind a proxy": {"127.0.0.1:1000", []string{"X-Forwarded-For: 192.0.2.1", as("admin-main")}, true},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil)
		r.RemoteAddr = c.from
		for _, h := range c.headers {
			key, value, _ := strings.Cut(h, ": ")
			r.Header.Set(key, value)
		}
		w := httptest.NewRecorder()
		p.server.Handler().ServeHTTP(w, r)
		text := w.Body.String()
		if w.Code != http.StatusOK || !strings.Contains(text, "firn_http_requests_total") {
			t.Errorf("%s: status %d, %.200s", name, w.Code, text)
		}
		for _, of := range []string{"process_cpu_seconds_total", "go_memstats", "firn_test_kept"} {
			if strings.Contains(text, of) != c.inside {
				t.Errorf("%s: has %s: %v, want %v", name, of, !c.inside, c.inside)
			}
		}
	}
}

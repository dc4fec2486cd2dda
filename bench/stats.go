//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
)

// median is the middle of xs, which is not changed; NaN when there are none.
func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(xs))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// medianRatio is the median of xs[i]/base[i]: what was measured side by side is compared side by side.
// NaN when one of them was not measured.
func medianRatio(xs, base []float64) float64 {
	n := min(len(xs), len(base))
	ratios := make([]float64, n)
	for i := range ratios {
		ratios[i] = xs[i] / base[i]
	}
	return median(ratios)
}

// Metric is one thing that is measured of a server.
type Metric struct {
	Key    string  // in the CSV
	Title  string  // in tables
	Unit   string  // as printed
	Scale  float64 // a sample times Scale is in Unit
	Digits int     // after the point
	Higher bool    // more is better
	Ratio  bool    // the ratio to nginx says something
}

// format prints a sample.
func (m Metric) format(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	return fmt.Sprintf("%.*f", m.Digits, v*m.Scale)
}

// Samples are the measurements: server name, then metric key, then one value a run, in SI units (seconds, bytes, 1/s).
type Samples map[string]map[string][]float64

func (s Samples) add(server, metric string, v float64) {
	if s[server] == nil {
		s[server] = make(map[string][]float64)
	}
	s[server][metric] = append(s[server][metric], v)
}

// of is what was measured; empty when nothing was.
func (s Samples) of(server, metric string) []float64 { return s[server][metric] }

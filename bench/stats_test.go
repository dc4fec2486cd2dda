//go:build linux

package main

import (
	"math"
	"testing"
)

func TestMedian(t *testing.T) {
	tests := []struct {
		xs   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	}
	for _, tt := range tests {
		if got := median(tt.xs); got != tt.want {
			t.Errorf("median of %v: %v, want %v", tt.xs, got, tt.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing: %v", got)
	}
	xs := []float64{2, 1}
	if median(xs); xs[0] != 2 {
		t.Error("median has sorted its argument")
	}
}

// A run in which the machine was slow for everybody does not count for more than another.
func TestMedianRatio(t *testing.T) {
	if got := medianRatio([]float64{2, 20, 3}, []float64{1, 10, 1}); got != 2 {
		t.Errorf("got %v, want 2", got)
	}
	for _, base := range [][]float64{nil, {}} {
		if got := medianRatio([]float64{1}, base); !math.IsNaN(got) {
			t.Errorf("ratio to nothing: %v", got)
		}
	}
}

func TestMetricFormat(t *testing.T) {
	m := Metric{Scale: 1e3, Digits: 1}
	if got := m.format(0.01234); got != "12.3" {
		t.Errorf("got %s", got)
	}
	if got := m.format(math.NaN()); got != "–" {
		t.Errorf("got %s", got)
	}
}

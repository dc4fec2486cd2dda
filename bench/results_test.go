//go:build linux

package main

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		xs   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}} {
		before := append([]float64(nil), tt.xs...)
		if got := median(tt.xs); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.xs, got, tt.want)
		}
		if !cmp.Equal(before, tt.xs) {
			t.Errorf("median changed %v to %v", before, tt.xs)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
}

// A ratio is the median of the ratios of rounds, which is another number than the ratio of the
// medians.
func TestRatio(t *testing.T) {
	r := &Row{Values: map[Column][]float64{firn: {2, 30, 4}, least: {1, 10, 8}, before: {4}}}
	for c, want := range map[Column]float64{least: 2, before: 0.5} {
		if got := r.ratio(c); got != want {
			t.Errorf("ratio to %s is %v, want %v", c, got, want)
		}
	}
	if got := r.ratio(nginx); !math.IsNaN(got) {
		t.Errorf("ratio to what was not measured is %v", got)
	}
}

func TestJudged(t *testing.T) {
	for _, tt := range []struct {
		unit        Unit
		bar         Bar
		firn, least float64
		limit       string
		value       string
		reached     bool
	}{
		{seconds, atMost(1.15, least), 1.1549, 1, "≤ 1.15 × the least", "1.15", true}, // as it is printed
		{seconds, atMost(1.15, least), 1.1551, 1, "≤ 1.15 × the least", "1.16", false},
		{perSecond, atLeast(0.9, least), 90, 100, "≥ 0.90 × the least", "0.90", true},
		{perSecond, atLeast(0.9, least), 89, 100, "≥ 0.90 × the least", "0.89", false},
		{milliseconds, atMost(0.1, ""), 0.10004, 0, "≤ 100.0 ms", "100.0", true},
		{megabytes, atMost(64e6, ""), 64.2e6, 0, "≤ 64.0 MB", "64.2", false},
		{percent, atMost(0.001, ""), 0.00118, 0, "≤ 0.10 %", "0.12", false},
		{seconds, atMost(1, least), math.NaN(), 1, "≤ 1.00 × the least", "NaN", false},
	} {
		r := &Row{Unit: tt.unit, Bar: tt.bar, Values: map[Column][]float64{firn: {tt.firn}, least: {tt.least}}}
		limit, value, reached := r.judged()
		if limit != tt.limit || value != tt.value || reached != tt.reached {
			t.Errorf("%v of %v: %q, %q, %v, want %q, %q, %v", tt.bar, tt.firn, limit, value, reached, tt.limit, tt.value, tt.reached)
		}
	}
}

// example is what two rounds of some things give.
func example() *Results {
	var r Results
	r.Machine, r.Before = "a machine", "v0.1.0"
	nars := r.row("NARs of a live store", "all NARs, 4 connections", seconds, atMost(1.15, least))
	for c, xs := range map[Column][]float64{nginx: {1, 1.2}, least: {2, 2.4}, before: {2.2, 2.5}, firn: {2.1, 2.4}} {
		for _, x := range xs {
			nars.add(c, x)
		}
	}
	r.row("NARs of a live store", "sent", megabytes, Bar{}).add(firn, 3e6)
	r.row("Memory", "resident", megabytes, atMost(1e6, "")).add(firn, 2e6)
	return &r
}

func TestTable(t *testing.T) {
	want := [][]string{
		{"", "nginx", "the least", "before", "firn", "firn / nginx", "firn / the least", "firn / before", "bar", ""},
		{"all NARs, 4 connections, s", "1.100 (1.000–1.200)", "2.200 (2.000–2.400)", "2.350 (2.200–2.500)", "2.250 (2.100–2.400)",
			"2.05", "1.02", "0.96", "≤ 1.15 × the least", "reached"},
		{"sent, MB", "", "", "", "3.0", "", "", "", "", ""},
	}
	r := example()
	if diff := cmp.Diff(want, r.Sections[0].table()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if reached, all := r.bars(); reached != 1 || all != 2 {
		t.Errorf("%d of %d bars are reached, want 1 of 2", reached, all)
	}
}

// The page and the plot have what was measured, also when they are made from the file of an earlier
// run.
func TestPage(t *testing.T) {
	text, err := json.Marshal(example())
	if err != nil {
		t.Fatal(err)
	}
	var r Results
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	page, err := r.page()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"firn reaches 1 of 2 bars.\n", "| machine | a machine |\n", "| before | `v0.1.0` |\n", "\n## NARs of a live store\n\n|  ", "| 2.250 (2.100–2.400) |",
		"| resident, MB | 2.0  | ≤ 1.0 MB | missed |\n",
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
	plot, err := r.plot()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "NARs of a live store: 4 connections", "nginx", "bar for firn"} {
		if !strings.Contains(string(plot), want) {
			t.Errorf("the plot has no %q", want)
		}
	}
}

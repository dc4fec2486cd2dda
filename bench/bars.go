//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Bar is something that firn must reach, and whether it does.
type Bar struct {
	What    string
	Limit   string
	Value   string
	Nearest string // what the least that can be done comes to on the machine, in the same runs; "": not known
	Verdict Verdict
	Note    string // the section of the notes that says what stands in the way
}

// near adds what the ratio is of a server that does the least it can.
func (b Bar) near(note string, ratio float64) Bar {
	if !math.IsNaN(ratio) {
		b.Nearest = fmt.Sprintf("%.2f", ratio)
	}
	return b.note(note)
}

func (b Bar) note(section string) Bar {
	b.Note = section
	return b
}

// Verdict is what came of a bar.
type Verdict string

// The verdicts.
const (
	Pass        Verdict = "pass"
	Fail        Verdict = "FAIL"
	NotMeasured Verdict = "not measured"
)

// startNoise is by how much two starts of the same program may differ that cost the same, in seconds.
const startNoise = 0.010

// barGroup is the bars of one thing that firn does.
type barGroup struct {
	title string
	bars  []Bar
}

// barGroups are all bars, in the order of the page. Groups of which nothing was measured are left out, but for the first.
func barGroups(s Samples) []barGroup {
	all := []barGroup{{"Serving a store as it is", storeBars(s)}}
	for _, g := range []barGroup{
		{"Keeping what is pushed", slices.Concat(pushBars(s), keptBars(s), depotBars(s), catalogBars(s))},
		{"Copies over SSH", sshBars(s)},
	} {
		if len(g.bars) > 0 {
			all = append(all, g)
		}
	}
	return all
}

// bars are the bars of all groups.
func bars(s Samples) (all []Bar) {
	for _, g := range barGroups(s) {
		all = append(all, g.bars...)
	}
	return all
}

// storeBars are the bars of what is served from a live store.
func storeBars(s Samples) []Bar {
	ratioOf := func(server, base string, m Metric) float64 {
		return medianRatio(s.of(server, m.Key), s.of(base, m.Key))
	}
	valueOf := func(server string, m Metric) float64 { return median(s.of(server, m.Key)) }

	all := []Bar{
		atMostRatio("all narinfos, 1 connection", ratioOf(firnPlain, nginxPlain, metricNARInfos), 1.15).near("narinfos", ratioOf(bareGo, nginxPlain, metricNARInfos)),
		atLeastRatio("narinfo hits per second, 64 connections", ratioOf(firnPlain, nginxPlain, metricHits), 0.9).near("narinfos", ratioOf(bareGo, nginxPlain, metricHits)),
		atLeastRatio("narinfo misses per second, 64 connections", ratioOf(firnPlain, nginxPlain, metricMisses), 0.9).near("narinfos", ratioOf(bareGo, nginxPlain, metricMisses)),
	}
	for _, n := range narConnections {
		limit := 1.0
		if n == 1 {
			limit = 1.1
		}
		m := metricNARs(n)
		all = append(all, atMostRatio(m.Title+", uncompressed", ratioOf(firnPlain, nginxPlain, m), limit).near("nars", ratioOf(bareGo, nginxPlain, m)))
	}
	for _, n := range narConnections {
		m := metricNARs(n)
		all = append(all, atMostRatio(m.Title+", zstd", ratioOf(firnZstd, nginxZstd, m), 1.0).near("zstd", ratioOf(bareZstd, nginxZstd, m)))
	}
	all = append(all,
		under(metricRange, metricRange.Title, valueOf(firnPlain, metricRange), 2*time.Millisecond.Seconds()).note("nars"),
		atMostRatio(metricCPU.Title, ratioOf(firnPlain, nginxPlain, metricCPU), 1.5).near("nars", ratioOf(bareGo, nginxPlain, metricCPU)),
		under(metricAfter, metricAfter.Title, valueOf(firnPlain, metricAfter), 64e6).note("memory"),
		under(metricFlight, metricFlight.Title, valueOf(firnPlain, metricFlight), 128e6).note("memory"),
		under(metricStart, metricStart.Title, valueOf(firnPlain, metricStart), 0.1),
	)
	small, large := scaleName(scalePaths[0]), scaleName(scalePaths[1])
	return append(all,
		under(metricScaleStart, "start to first narinfo over 1,000,000 paths, against 100,000", valueOf(large, metricScaleStart), valueOf(small, metricScaleStart)+startNoise),
		under(metricScalePeak, "resident over 1,000,000 paths, at most", valueOf(large, metricScalePeak), 256e6).note("memory"),
	)
}

// depotBars are the bars of what is served from a depot; none when nothing was.
func depotBars(s Samples) (all []Bar) {
	for _, server := range []string{firnDepot, firnAgain} {
		if len(s.of(server, metricNARInfos.Key)) == 0 {
			continue
		}
		for _, m := range []Metric{metricNARInfos, metricNARs(1), metricNARs(4), metricNARs(16)} {
			bare := medianRatio(s.of(bareZstd, m.Key), s.of(nginxZstd, m.Key))
			all = append(all, atMostRatio(m.Title+", "+server, medianRatio(s.of(server, m.Key), s.of(nginxZstd, m.Key)), 1.1).near("depot", bare))
		}
	}
	return all
}

// atMostRatio is a bar on a ratio, to nginx where the row says nothing else. It is judged as it is printed, with two digits.
func atMostRatio(what string, ratio, limit float64) Bar {
	return judge(what, fmt.Sprintf("≤ %.2f ×", limit), fmt.Sprintf("%.2f", ratio), ratio, round2(ratio) <= limit)
}

// atLeastRatio is the same the other way round.
func atLeastRatio(what string, ratio, limit float64) Bar {
	return judge(what, fmt.Sprintf("≥ %.2f ×", limit), fmt.Sprintf("%.2f", ratio), ratio, round2(ratio) >= limit)
}

// atMostPercent is a bar on a share.
func atMostPercent(what string, percent, limit float64) Bar {
	return judge(what, fmt.Sprintf("≤ %.2f %%", limit), fmt.Sprintf("%.2f %%", percent), percent, round2(percent) <= limit)
}

// under is a bar on a value of a metric.
func under(m Metric, what string, v, limit float64) Bar {
	return judge(what, fmt.Sprintf("< %s %s", m.format(limit), m.Unit), m.format(v)+" "+m.Unit, v, v < limit)
}

func judge(what, limit, value string, v float64, reached bool) Bar {
	switch {
	case math.IsNaN(v):
		return Bar{What: what, Limit: limit, Value: "–", Verdict: NotMeasured}
	case reached:
		return Bar{What: what, Limit: limit, Value: value, Verdict: Pass}
	default:
		return Bar{What: what, Limit: limit, Value: value, Verdict: Fail}
	}
}

func round2(v float64) float64 { return math.Round(v*100) / 100 }

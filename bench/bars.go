//go:build linux

package main

import (
	"fmt"
	"math"
	"time"
)

// Bar is something that firn must reach, and whether it does.
type Bar struct {
	What    string
	Limit   string
	Value   string
	Verdict Verdict
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

// bars are all bars, in the order of the table.
func bars(s Samples) []Bar {
	ratioOf := func(server, base string, m Metric) float64 {
		return medianRatio(s.of(server, m.Key), s.of(base, m.Key))
	}
	valueOf := func(server string, m Metric) float64 { return median(s.of(server, m.Key)) }

	all := []Bar{
		atMostRatio("all narinfos, 1 connection", ratioOf(firnPlain, nginxPlain, metricNARInfos), 1.15),
		atLeastRatio("narinfo hits per second, 64 connections", ratioOf(firnPlain, nginxPlain, metricHits), 0.9),
		atLeastRatio("narinfo misses per second, 64 connections", ratioOf(firnPlain, nginxPlain, metricMisses), 0.9),
	}
	for _, n := range narConnections {
		limit := 1.0
		if n == 1 {
			limit = 1.1
		}
		all = append(all, atMostRatio(metricNARs(n).Title+", uncompressed", ratioOf(firnPlain, nginxPlain, metricNARs(n)), limit))
	}
	for _, n := range narConnections {
		all = append(all, atMostRatio(metricNARs(n).Title+", zstd", ratioOf(firnZstd, nginxZstd, metricNARs(n)), 1.0))
	}
	all = append(all, pushBars(s)...)
	all = append(all, sshBars(s)...)
	all = append(all, catalogBars(s)...)
	small, large := scaleName(scalePaths[0]), scaleName(scalePaths[1])
	return append(all,
		under(metricRange, metricRange.Title, valueOf(firnPlain, metricRange), 2*time.Millisecond.Seconds()),
		atMostRatio(metricCPU.Title, ratioOf(firnPlain, nginxPlain, metricCPU), 1.5),
		under(metricAfter, metricAfter.Title, valueOf(firnPlain, metricAfter), 64e6),
		under(metricFlight, metricFlight.Title, valueOf(firnPlain, metricFlight), 128e6),
		under(metricStart, metricStart.Title, valueOf(firnPlain, metricStart), 0.1),
		under(metricScaleStart, "start to first narinfo over 1,000,000 paths, against 100,000", valueOf(large, metricScaleStart), valueOf(small, metricScaleStart)+startNoise),
		under(metricScalePeak, "resident over 1,000,000 paths, at most", valueOf(large, metricScalePeak), 256e6),
	)
}

// pushBars are the bars of what is pushed and served again; none when nothing was pushed.
func pushBars(s Samples) []Bar {
	if len(s[nixFiles]) == 0 {
		return nil
	}
	all := []Bar{
		atMostRatio("copy of the closure to the depot, uncompressed, to Nix's to files", medianRatio(s.of(pushPlain, metricPush.Key), s.of(nixFiles, metricPush.Key)), 0.9),
		atMostRatio("copy of the closure to the depot, zstd, to Nix's to files", medianRatio(s.of(pushZstd, metricPush.Key), s.of(nixFiles, metricPush.Key)), 1.1),
		atMostRatio("kept of one generation, to Nix's files", medianRatio(s.of(pushPlain, metricKept.Key), s.of(nixFiles, metricKept.Key)), 1.0),
		atMostPercent("added by a rebuild of everything, of the first generation", 100*median(s.of(pushPlain, metricAdded.Key))/median(s.of(pushPlain, metricKept.Key)), 1),
		under(metricUploads, metricUploads.Title, median(s.of(pushPlain, metricUploads.Key)), 300e6),
	}
	for _, server := range []string{firnDepot, firnAgain} {
		all = append(all, atMostRatio(metricNARInfos.Title+", "+server, medianRatio(s.of(server, metricNARInfos.Key), s.of(nginxZstd, metricNARInfos.Key)), 1.1))
		for _, n := range []int{1, 4, 16} {
			all = append(all, atMostRatio(metricNARs(n).Title+", "+server, medianRatio(s.of(server, metricNARs(n).Key), s.of(nginxZstd, metricNARs(n).Key)), 1.1))
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
		return Bar{what, limit, "–", NotMeasured}
	case reached:
		return Bar{what, limit, value, Pass}
	default:
		return Bar{what, limit, value, Fail}
	}
}

func round2(v float64) float64 { return math.Round(v*100) / 100 }

//go:build linux

package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// The plot is drawn by hand: grouped bars with whiskers from the lowest to the highest run, in three panels.
// Its colours follow the reader's light or dark theme.

// Sizes in SVG units, which are pixels at scale 1.
const (
	plotWidth   = 880
	plotMargin  = 16
	panelHeight = 210
	panelGap    = 56
	headHeight  = 64
	barLimit    = 44 // the widest a bar may be
	groupGap    = 24
	glyphWidth  = 7 // of a legend's letter, about
)

// barColors are of the servers that always take part: one hue for firn uncompressed, one for zstd, one for its depot, greys for nginx and bare Go. Light theme, dark theme.
var barColors = map[string][2]string{
	nginxPlain: {"#8c959f", "#8b949e"},
	bareGo:     {"#d0d7de", "#484f58"},
	firnPlain:  {"#0969da", "#58a6ff"},
	nginxZstd:  {"#b7a58a", "#8f7f66"},
	bareZstd:   {"#e4dccb", "#5b5243"},
	firnZstd:   {"#1a7f64", "#3fb99a"},
	firnDepot:  {"#9a6700", "#d29922"},
	firnAgain:  {"#d4a72c", "#8a6410"},
}

// peerColors are of the others, in turn.
var peerColors = [][2]string{{"#8250df", "#a371f7"}, {"#bf3989", "#db61a2"}, {"#bc4c00", "#db6d28"}}

// panel is one pair of axes.
type panel struct {
	title  string
	groups []group
}

// group is the bars of one metric.
type group struct {
	label  string
	metric Metric
}

// panels are what is drawn: the first over the whole width, the others side by side below it.
func panels() []panel {
	nars := panel{title: "All NARs, seconds; less is better"}
	for _, n := range narConnections {
		nars.groups = append(nars.groups, group{connections(n), metricNARs(n)})
	}
	return []panel{
		nars,
		{"All narinfos, milliseconds; less is better", []group{{connections(1), metricNARInfos}}},
		{"Narinfo requests per second, 64 connections; more is better", []group{{"hits", metricHits}, {"misses", metricMisses}}},
	}
}

func connections(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// plot is docs/benchmarks.svg.
func (r *Report) plot() []byte {
	var b bytes.Buffer
	height := headHeight + 2*panelHeight + panelGap + plotMargin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, -apple-system, Segoe UI, sans-serif" font-size="12" role="img" aria-label="Benchmarks of firn and nginx">`+"\n", plotWidth, height)
	r.plotStyle(&b)
	fmt.Fprintf(&b, `<rect class="paper" width="%d" height="%d" rx="6"/>`+"\n", plotWidth, height)
	r.plotLegend(&b)
	all := panels()
	full := float64(plotWidth - 2*plotMargin)
	r.plotPanel(&b, all[0], plotMargin, headHeight, full)
	third := (full - panelGap) / 3
	second := float64(headHeight + panelHeight + panelGap)
	r.plotPanel(&b, all[1], plotMargin, second, third)
	r.plotPanel(&b, all[2], plotMargin+third+panelGap, second, 2*third)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (r *Report) plotStyle(b *bytes.Buffer) {
	light, dark := new(strings.Builder), new(strings.Builder)
	peers := 0
	for i, s := range r.Servers {
		color, ok := barColors[s.Name]
		if !ok {
			color = peerColors[peers%len(peerColors)]
			peers++
		}
		fmt.Fprintf(light, " .s%d { fill: %s }", i, color[0])
		fmt.Fprintf(dark, " .s%d { fill: %s }", i, color[1])
	}
	fmt.Fprintf(b, `<style>
 .paper { fill: #ffffff } text { fill: #1f2328 } .faint { fill: #59636e } .axis { stroke: #8c959f } .grid { stroke: #d8dee4 } .whisker { stroke: #59636e }
%s
 @media (prefers-color-scheme: dark) {
 .paper { fill: #0d1117 } text { fill: #e6edf3 } .faint { fill: #9198a1 } .axis { stroke: #6e7681 } .grid { stroke: #262c36 } .whisker { stroke: #c9d1d9 }
%s
 }
</style>
`, light, dark)
}

func (r *Report) plotLegend(b *bytes.Buffer) {
	x := plotMargin
	for i, s := range r.Servers {
		fmt.Fprintf(b, `<rect class="s%d" x="%d" y="14" width="12" height="12" rx="2"/><text x="%d" y="24">%s</text>`+"\n", i, x, x+17, escape(s.Name))
		x += 17 + glyphWidth*len(s.Name) + 18
	}
}

// plotPanel draws a panel whose upper left corner is at x, y.
func (r *Report) plotPanel(b *bytes.Buffer, p panel, x, y, width float64) {
	fmt.Fprintf(b, `<text x="%s" y="%s" font-weight="600">%s</text>`+"\n", px(x), px(y-6), escape(p.title))
	top, bottom := y+18, y+panelHeight-20
	highest := 0.0
	for _, g := range p.groups {
		for _, s := range r.Servers {
			if xs := r.Samples.of(s.Name, g.metric.Key); len(xs) > 0 {
				highest = max(highest, slices.Max(xs)*g.metric.Scale)
			}
		}
	}
	step := niceStep(highest / 4)
	ceiling := math.Max(step, math.Ceil(highest/step)*step)
	at := func(v float64) float64 { return bottom - v/ceiling*(bottom-top) }
	const axisWidth = 46
	for v := 0.0; v <= ceiling+step/2; v += step {
		class := "grid"
		if v == 0 {
			class = "axis"
		}
		fmt.Fprintf(b, `<line class="%s" x1="%s" x2="%s" y1="%s" y2="%s"/><text class="faint" x="%s" y="%s" font-size="10" text-anchor="end">%s</text>`+"\n",
			class, px(x+axisWidth), px(x+width), px(at(v)), px(at(v)), px(x+axisWidth-6), px(at(v)+3), axisNumber(v))
	}
	slot := (width - axisWidth) / float64(len(p.groups))
	bar := math.Min(barLimit, (slot-groupGap)/float64(len(r.Servers)))
	for i, g := range p.groups {
		middle := x + axisWidth + (float64(i)+0.5)*slot
		fmt.Fprintf(b, `<text class="faint" x="%s" y="%s" text-anchor="middle">%s</text>`+"\n", px(middle), px(bottom+16), escape(g.label))
		left := middle - bar*float64(len(r.Servers))/2
		for j, s := range r.Servers {
			xs := r.Samples.of(s.Name, g.metric.Key)
			if len(xs) == 0 {
				continue
			}
			v, low, high := median(xs)*g.metric.Scale, slices.Min(xs)*g.metric.Scale, slices.Max(xs)*g.metric.Scale
			bx := left + float64(j)*bar
			fmt.Fprintf(b, `<rect class="s%d" x="%s" y="%s" width="%s" height="%s" rx="1.5"><title>%s, %s: %s %s (%s–%s)</title></rect>`, j, px(bx+1), px(at(v)), px(bar-2), px(bottom-at(v)),
				escape(s.Name), escape(g.label), g.metric.format(median(xs)), escape(g.metric.Unit), g.metric.format(slices.Min(xs)), g.metric.format(slices.Max(xs)))
			fmt.Fprintf(b, `<line class="whisker" x1="%s" x2="%s" y1="%s" y2="%s"/>`, px(bx+bar/2), px(bx+bar/2), px(at(low)), px(at(high)))
			fmt.Fprintf(b, `<text x="%s" y="%s" font-size="9" text-anchor="middle">%s</text>`+"\n", px(bx+bar/2), px(at(high)-3), shortNumber(v))
		}
	}
}

// niceStep is the least of 1, 2 and 5 times a power of ten that is not below v.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*power >= v*(1-1e-9) {
			return m * power
		}
	}
	return 10 * power
}

// axisNumber prints a multiple of a niceStep.
func axisNumber(v float64) string {
	if v >= 10_000 {
		return strconv.FormatFloat(v/1000, 'g', 4, 64) + "k"
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// shortNumber prints a number for the top of a narrow bar.
func shortNumber(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0fk", v/1000)
	case v >= 10:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func px(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

func escape(s string) string {
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(s)) // a bytes.Buffer takes everything
	return b.String()
}

//go:build linux

package main

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sampleReport is one of two runs in which firn always took half as long again as nginx, and nothing else was measured.
func sampleReport(t *testing.T) *Report {
	t.Helper()
	r := &Report{
		Command: "go run .", Date: time.Unix(1_800_000_000, 0), Took: time.Minute, Runs: 2, Discard: DiscardTruncate,
		Samples: make(Samples), Metrics: metrics(), NotesDir: t.TempDir(),
	}
	for _, spec := range []Spec{{Name: nginxPlain}, {Name: firnPlain, Baseline: nginxPlain}, {Name: "<peer>", Baseline: nginxPlain}, {Name: nginxZstd}} {
		r.Servers = append(r.Servers, &Server{Spec: spec})
	}
	for _, m := range r.Metrics {
		for _, v := range []float64{1, 2} {
			r.Samples.add(nginxPlain, m.Key, v)
			r.Samples.add(firnPlain, m.Key, v*1.5)
		}
	}
	return r
}

func TestCell(t *testing.T) {
	r := sampleReport(t)
	tests := []struct {
		server int
		metric Metric
		want   string
	}{
		{0, metricNARs(4), "1.500 (1.000–2.000)"},
		{1, metricNARs(4), "2.250 (1.500–3.000) ×1.50"},
		{1, metricStart, "2250.0 (1500.0–3000.0)"}, // a ratio would say nothing
		{2, metricNARs(4), "–"},
	}
	for _, tt := range tests {
		if got := r.cell(r.Servers[tt.server].Spec, tt.metric); got != tt.want {
			t.Errorf("%s, %s: %q, want %q", r.Servers[tt.server].Name, tt.metric.Title, got, tt.want)
		}
	}
}

func TestBars(t *testing.T) {
	s := make(Samples)
	add := func(server string, m Metric, v float64) { s.add(server, m.Key, v) }
	verdicts := func() map[string]Verdict {
		got := make(map[string]Verdict)
		for _, b := range bars(s) {
			got[b.What] = b.Verdict
		}
		return got
	}
	for what, v := range verdicts() {
		if v != NotMeasured {
			t.Errorf("%s: %s although nothing was measured", what, v)
		}
	}
	for _, server := range []string{nginxPlain, nginxZstd} {
		for _, m := range metrics() {
			add(server, m, 1)
		}
	}
	for _, n := range narConnections {
		add(firnPlain, metricNARs(n), 1.054)
		add(firnZstd, metricNARs(n), 1.004)
	}
	add(firnPlain, metricNARInfos, 1.156)
	add(firnPlain, metricHits, 0.896)
	add(firnPlain, metricMisses, 0.89)
	add(firnPlain, metricRange, 0.0021)
	add(firnPlain, metricCPU, 1.4)
	add(firnPlain, metricAfter, 63.9e6)
	add(firnPlain, metricFlight, 128e6)
	add(firnPlain, metricStart, 0.02)
	add(scaleName(100_000), metricScaleStart, 0.02)
	add(scaleName(1_000_000), metricScaleStart, 0.029)
	add(scaleName(1_000_000), metricScalePeak, 300e6)
	for _, m := range []Metric{metricLookups, metricAbsent} {
		add(catalogName(10_000), m, 1000)
	}
	add(catalogName(1_000_000), metricLookups, 796)
	add(catalogName(1_000_000), metricAbsent, 790)
	want := map[string]Verdict{
		"narinfos, each for the first time, 64 connections: of 1,000,000 pushed paths, to 10,000":       Pass,
		"narinfo misses, each for the first time, 64 connections: of 1,000,000 pushed paths, to 10,000": Fail,
		"all narinfos, 1 connection":                                   Fail,
		"narinfo hits per second, 64 connections":                      Pass,
		"narinfo misses per second, 64 connections":                    Fail,
		"all NARs, 1 connection, uncompressed":                         Pass,
		"all NARs, 4 connections, uncompressed":                        Fail,
		"all NARs, 16 connections, uncompressed":                       Fail,
		"all NARs, 64 connections, uncompressed":                       Fail,
		"all NARs, 1 connection, zstd":                                 Pass,
		"all NARs, 4 connections, zstd":                                Pass,
		"all NARs, 16 connections, zstd":                               Pass,
		"all NARs, 64 connections, zstd":                               Pass,
		"first byte of a range at the end of the largest NAR":          Fail,
		"CPU of the server, one pass":                                  Pass,
		"resident after the passes":                                    Pass,
		"resident at most, 256 NARs in flight":                         Fail,
		"start to first answer":                                        Pass,
		"start to first narinfo over 1,000,000 paths, against 100,000": Pass,
		"resident over 1,000,000 paths, at most":                       Fail,
	}
	if diff := cmp.Diff(want, verdicts()); diff != "" {
		t.Error(diff)
	}
}

// The CSV gives back every sample.
func TestCSV(t *testing.T) {
	r := sampleReport(t)
	var b bytes.Buffer
	if err := r.writeCSV(&b); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if want := 1 + 2*2*len(r.Metrics); len(rows) != want {
		t.Errorf("%d rows, want %d", len(rows), want)
	}
	if diff := cmp.Diff([]string{"server", "metric", "run", "value"}, rows[0]); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"firn", "client_cpu_s", "1", "1.5"}, rows[1]); diff != "" {
		t.Error(diff)
	}
}

// Every row of every table has as many cells as its head, and the notes come last.
func TestPage(t *testing.T) {
	r := sampleReport(t)
	page, err := r.page()
	if err != nil {
		t.Fatal(err)
	}
	cells := 0
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, "|") {
			cells = 0
			continue
		}
		n := strings.Count(line, "|")
		if cells != 0 && n != cells {
			t.Errorf("%d cells below %d: %s", n, cells, line)
		}
		cells = n
	}
	for _, want := range []string{"](benchmarks.svg)", "`go run .`", "## Against nginx\n", "## Against nginx, zstd\n", "MSG_TRUNC", "2.250 (1.500–3.000) ×1.50"} {
		if !bytes.Contains(page, []byte(want)) {
			t.Errorf("no %q in the page", want)
		}
	}
}

// A bar that was missed is listed with what the machine allows and what the notes say; one that was reached is not.
func TestPageSaysWhatStandsInTheWay(t *testing.T) {
	r := sampleReport(t)
	r.Samples.add(bareGo, metricNARs(4).Key, 1.2)
	if err := os.WriteFile(filepath.Join(r.NotesDir, "notes.md"), []byte("Of all.\n\n## nars\n\nMany files.\n\n## depot\n\nNot said.\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	page, err := r.page()
	if err != nil {
		t.Fatal(err)
	}
	_, missed, ok := strings.Cut(string(page), "## What stands in the way\n")
	missed, _, _ = strings.Cut(missed, "\n## ")
	for _, want := range []string{"* all NARs, 4 connections, uncompressed: 1.50 (bar ≤ 1.00 ×; the least 1.20)\n", "\nMany files.\n"} {
		if !ok || !strings.Contains(missed, want) {
			t.Errorf("no %q in %q", want, missed)
		}
	}
	for _, no := range []string{metricHits.Title, "Not said.", "Of all."} {
		if strings.Contains(missed, no) {
			t.Errorf("%q in %q", no, missed)
		}
	}
	if !strings.HasSuffix(string(page), "## Reading the numbers\n\nOf all.\n") {
		t.Error("what is said of all numbers is not at the end")
	}
}

// The notes have a section for every bar that may be missed, and none that no bar names.
func TestNotes(t *testing.T) {
	text, err := os.ReadFile("notes.md")
	if err != nil {
		t.Fatal(err)
	}
	s := make(Samples)
	for _, server := range []string{nixFiles, firnDepot, firnAgain, sshNix, catalogName(catalogPaths[1])} {
		for _, m := range slices.Concat(metrics(), sshMetrics(), []Metric{metricPush, metricKept, metricLookups}) {
			s.add(server, m.Key, 1)
		}
	}
	notes := parseNotes(string(text))
	delete(notes, "")
	named := make(map[string]bool)
	for _, bar := range bars(s) {
		if bar.Note == "" {
			continue
		}
		named[bar.Note] = true
		if notes[bar.Note] == "" {
			t.Errorf("%s: no section %q", bar.What, bar.Note)
		}
	}
	for section := range notes {
		if !named[section] {
			t.Errorf("no bar names the section %q", section)
		}
	}
}

// The plot is well-formed, has a bar for every sample that it should show, and draws nothing outside of itself.
func TestPlot(t *testing.T) {
	r := sampleReport(t)
	bars := map[string]int{}
	d := xml.NewDecoder(bytes.NewReader(r.plot()))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if !ok || e.Name.Local != "rect" {
			continue
		}
		attr := make(map[string]string)
		for _, a := range e.Attr {
			attr[a.Name.Local] = a.Value
		}
		if strings.HasPrefix(attr["height"], "-") || strings.HasPrefix(attr["y"], "-") {
			t.Errorf("a bar is outside of the plot: %v", attr)
		}
		bars[attr["class"]]++
	}
	// Four numbers of connections, narinfos, hits, misses, and the legend.
	if diff := cmp.Diff(map[string]int{"paper": 1, "s0": 8, "s1": 8, "s2": 1, "s3": 1}, bars); diff != "" {
		t.Error(diff)
	}
}

func TestNiceStep(t *testing.T) {
	for v, want := range map[float64]float64{0: 1, 0.3: 0.5, 1: 1, 1.1: 2, 4.2: 5, 6: 10, 23: 50, 30_000: 50_000} {
		if got := niceStep(v); math.Abs(got-want) > 1e-9*want {
			t.Errorf("step for %v: %v, want %v", v, got, want)
		}
	}
}

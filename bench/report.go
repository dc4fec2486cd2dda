//go:build linux

package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"
)

// Report is all that came of a shootout.
type Report struct {
	Machine  Machine
	Command  string
	Date     time.Time
	Took     time.Duration
	Runs     int
	Discard  Discard
	Closure  []Path
	Copied   []Path // the part of it that is pushed and copied over SSH
	Servers  []*Server
	Samples  Samples
	Metrics  []Metric
	Remarks  []string // what was not measured, and why
	NotesDir string   // has notes.md, what people wrote about the numbers
}

// publish prints the tables and writes the CSV, the page and the plot.
func publish(opts Options, r *Report) error {
	fmt.Println()
	if err := r.printTables(os.Stdout); err != nil {
		return err
	}
	var table bytes.Buffer
	if err := r.writeCSV(&table); err != nil {
		return err
	}
	page, err := r.page()
	if err != nil {
		return err
	}
	files := []struct {
		name string
		text []byte
	}{
		{filepath.Join(opts.Results, r.Date.UTC().Format("20060102T150405Z")+".csv"), table.Bytes()},
		{filepath.Join(opts.Docs, "benchmarks.md"), page},
		{filepath.Join(opts.Docs, "benchmarks.svg"), r.plot()},
	}
	fmt.Println()
	for _, f := range files {
		if err := os.WriteFile(f.name, f.text, 0o644); err != nil {
			return err
		}
		fmt.Println("wrote", f.name)
	}
	return nil
}

// baselines are the servers that others are compared with.
func (r *Report) baselines() []*Server {
	return slices.DeleteFunc(slices.Clone(r.Servers), func(s *Server) bool { return s.Baseline != "" })
}

// group is a baseline and all that are compared with it.
func (r *Report) group(base *Server) []*Server {
	return slices.DeleteFunc(slices.Clone(r.Servers), func(s *Server) bool { return s != base && s.Baseline != base.Name })
}

// cell is a server's median of a metric, with its spread and the median ratio to its baseline.
func (r *Report) cell(s Spec, m Metric) string {
	xs := r.Samples.of(s.Name, m.Key)
	if len(xs) == 0 {
		return "–"
	}
	text := m.format(median(xs))
	if low, high := m.format(slices.Min(xs)), m.format(slices.Max(xs)); low != high {
		text += fmt.Sprintf(" (%s–%s)", low, high)
	}
	if s.Baseline != "" && m.Ratio {
		text += fmt.Sprintf(" ×%.2f", medianRatio(xs, r.Samples.of(s.Baseline, m.Key)))
	}
	return text
}

// rows are a group's table.
func (r *Report) rows(base *Server) [][]string {
	var specs []Spec
	for _, s := range r.group(base) {
		specs = append(specs, s.Spec)
	}
	return r.table(specs, r.Metrics)
}

// table has a head, then a row for each metric of which there is a sample.
func (r *Report) table(specs []Spec, metrics []Metric) [][]string {
	head := []string{""}
	for _, spec := range specs {
		head = append(head, spec.Name)
	}
	rows := [][]string{head}
	for _, m := range metrics {
		row := []string{m.Title + ", " + m.Unit}
		measured := false
		for _, spec := range specs {
			row = append(row, r.cell(spec, m))
			measured = measured || len(r.Samples.of(spec.Name, m.Key)) > 0
		}
		if measured {
			rows = append(rows, row)
		}
	}
	return rows
}

// section is a table with a title.
type section struct {
	title string
	rows  [][]string
}

// sections are all tables but that of the bars.
func (r *Report) sections() []section {
	var all []section
	for _, base := range r.baselines() {
		all = append(all, section{"Against " + base.Name, r.rows(base)})
	}
	for _, s := range []section{
		{"Pushes", r.pushRows()},
		{"What is kept", r.keptRows()},
		{"Over SSH", r.sshRows()},
		{"Large catalogs", r.catalogRows()},
		{"Large databases of Nix", r.scaleRows()},
	} {
		if s.rows != nil {
			all = append(all, s)
		}
	}
	return all
}

// barRows are the table of a group of bars.
func barRows(g barGroup) [][]string {
	rows := [][]string{{"what", "bar", "measured", "", "the least"}}
	for _, b := range g.bars {
		rows = append(rows, []string{b.What, b.Limit, b.Value, string(b.Verdict), b.Nearest})
	}
	return rows
}

func (r *Report) printTables(w io.Writer) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	all := r.sections()
	for _, g := range barGroups(r.Samples) {
		all = append(all, section{"What firn must reach: " + g.title, barRows(g)})
	}
	for _, s := range all {
		fmt.Fprintf(w, "%s\n\n", s.title)
		for _, row := range s.rows {
			fmt.Fprintln(tab, strings.Join(row, "\t"))
		}
		if err := tab.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	for _, remark := range r.Remarks {
		fmt.Fprintln(w, remark)
	}
	_, err := fmt.Fprintf(w, "%d runs in %v; %s\n", r.Runs, r.Took.Round(time.Second), r.Machine)
	return err
}

// writeCSV writes every sample: server, metric, run, value in seconds, bytes or requests a second.
func (r *Report) writeCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	out.Write([]string{"server", "metric", "run", "value"})
	for _, server := range sortedKeys(r.Samples) {
		for _, metric := range sortedKeys(r.Samples[server]) {
			for i, v := range r.Samples[server][metric] {
				out.Write([]string{server, metric, strconv.Itoa(i + 1), strconv.FormatFloat(v, 'g', -1, 64)})
			}
		}
	}
	out.Flush()
	return out.Error()
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// writeMarkdown writes a table with columns of equal width, so that the source can be read as well.
func writeMarkdown(b *bytes.Buffer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for i, row := range rows {
		for j, cell := range row {
			fmt.Fprintf(b, "| %s%s ", cell, strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
		if i == 0 {
			for _, w := range widths {
				fmt.Fprintf(b, "|%s", strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
}

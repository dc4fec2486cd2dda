//go:build linux

package main

import (
	"bytes"
	"encoding/csv"
	"errors"
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
	Servers  []*Server
	Targets  map[*Server]*Target
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
func (r *Report) cell(s *Server, m Metric) string {
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

// rows are a group's table: a head, then a row for each metric.
func (r *Report) rows(base *Server) [][]string {
	servers := r.group(base)
	head := []string{""}
	for _, s := range servers {
		head = append(head, s.Name)
	}
	rows := [][]string{head}
	for _, m := range r.Metrics {
		row := []string{m.Title + ", " + m.Unit}
		for _, s := range servers {
			row = append(row, r.cell(s, m))
		}
		rows = append(rows, row)
	}
	return rows
}

// pushRows are the table of pushes, nil where none were measured.
func (r *Report) pushRows() [][]string {
	if len(r.Samples[nixFiles]) == 0 {
		return nil
	}
	rows := [][]string{append([]string{""}, pushers...)}
	for _, m := range pushMetrics() {
		row := []string{m.Title + ", " + m.Unit}
		for _, pusher := range pushers {
			spec := Spec{Name: pusher}
			if pusher != nixFiles {
				spec.Baseline = nixFiles
			}
			row = append(row, r.cell(&Server{Spec: spec}, m))
		}
		rows = append(rows, row)
	}
	return rows
}

// barRows are the table of bars.
func (r *Report) barRows() [][]string {
	rows := [][]string{{"what", "bar", "measured", ""}}
	for _, b := range bars(r.Samples) {
		rows = append(rows, []string{b.What, b.Limit, b.Value, string(b.Verdict)})
	}
	return rows
}

func (r *Report) printTables(w io.Writer) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, base := range r.baselines() {
		for _, row := range r.rows(base) {
			fmt.Fprintln(tab, strings.Join(row, "\t"))
		}
		fmt.Fprintln(tab)
		if err := tab.Flush(); err != nil {
			return err
		}
	}
	if rows := r.pushRows(); rows != nil {
		for _, row := range rows {
			fmt.Fprintln(tab, strings.Join(row, "\t"))
		}
		fmt.Fprintln(tab)
		if err := tab.Flush(); err != nil {
			return err
		}
	}
	for _, rows := range [][][]string{r.sshRows(), r.catalogRows()} {
		if rows == nil {
			continue
		}
		for _, row := range rows {
			fmt.Fprintln(tab, strings.Join(row, "\t"))
		}
		fmt.Fprintln(tab)
		if err := tab.Flush(); err != nil {
			return err
		}
	}
	for _, row := range r.barRows() {
		fmt.Fprintln(tab, strings.Join(row, "\t"))
	}
	if err := tab.Flush(); err != nil {
		return err
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

// page is docs/benchmarks.md.
func (r *Report) page() ([]byte, error) {
	notes, err := os.ReadFile(filepath.Join(r.NotesDir, "notes.md"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var b bytes.Buffer
	var size int64
	for _, p := range r.Closure {
		size += p.NARSize
	}
	fmt.Fprintf(&b, "# Benchmarks\n\n<!-- Written by `make bench`; the notes at the end are bench/notes.md. -->\n\n")
	fmt.Fprintf(&b, "firn serves %d store paths (%.0f MiB of NARs) from a live store, nginx serves the same NARs as flat files that `nix copy` wrote.\n", len(r.Closure), float64(size)/(1<<20))
	fmt.Fprintf(&b, "Median of %d runs, lowest and highest in brackets, × the median of the ratios to nginx in the same run.\n\n", r.Runs)
	fmt.Fprintf(&b, "![Times and rates of all servers](benchmarks.svg)\n\n")
	fmt.Fprintf(&b, "| | |\n|---|---|\n| machine | %s |\n| date | %s |\n| command | `%s` |\n| took | %v |\n\n", r.Machine, r.Date.UTC().Format(time.DateOnly), r.Command, r.Took.Round(time.Second))
	fmt.Fprintf(&b, "## What firn must reach\n\n")
	writeMarkdown(&b, r.barRows())
	for _, base := range r.baselines() {
		fmt.Fprintf(&b, "\n## Against %s\n\n", base.Name)
		writeMarkdown(&b, r.rows(base))
	}
	if rows := r.pushRows(); rows != nil {
		b.WriteString("\n## Pushes\n\n")
		writeMarkdown(&b, rows)
	}
	if rows := r.sshRows(); rows != nil {
		b.WriteString("\n## Over SSH\n\n")
		writeMarkdown(&b, rows)
	}
	if rows := r.catalogRows(); rows != nil {
		b.WriteString("\n## Catalogs\n\n")
		writeMarkdown(&b, rows)
	}
	for _, remark := range r.Remarks {
		fmt.Fprintf(&b, "\n%s\n", remark)
	}
	b.WriteString(method(r.Discard))
	if len(notes) > 0 {
		fmt.Fprintf(&b, "\n## Notes\n\n%s", notes)
	}
	return b.Bytes(), nil
}

// method describes what was done.
func method(d Discard) string {
	discard := "The bodies of NARs are dropped by the kernel (`recv` with `MSG_TRUNC`) instead of being copied, so that nearly all the time measured is the server's own, as if the client were another machine."
	if d == DiscardCopy {
		discard = "The bodies of NARs are read into memory and forgotten, as any program must that wants the bytes."
	}
	return `
## Method

After [cache-shootout](https://github.com/Mic92/cache-shootout): all narinfos in sequence over one kept-alive connection; all NARs over 1, 4, 16 and 64 connections, bodies discarded; everything warm.
Besides: narinfo requests per second on 64 connections, for paths that are there and for paths that are not; the time until the first byte of a range of 4 KiB at the end of the largest NAR;
and what it costs the machine: CPU time (user and system) of the server for all narinfos and all NARs once, and resident memory of its processes.

* The servers take turns, measurement by measurement, in an order that rotates; the others are idle meanwhile.
* Before anything is measured, every NAR is read from every server, decompressed and compared with the NAR hash that Nix knows; every later answer must have the same status and length.
* One client for all: a single thread with an epoll loop that knows as much HTTP as it needs. It shares the machine with the servers. ` + discard + `
* nginx is Debian's, with a worker for each core, ` + "`sendfile` and `tcp_nopush`" + ` on and no logs. Its narinfos are signed like firn's.
* Servers and client have a higher priority than other work of the machine (niceness -10), where the caller may set that.
* *bare Go* is the limit of this machine for a program in Go: a loop that sends the flat files with ` + "`sendfile`" + `, one goroutine a connection, and no HTTP library.
* *256 NARs in flight* are first held half sent for a second, then sent as fast as it goes.
* Pushes are *nix copy* from the store, to an empty firn and, in turns, to files of its own with zstd and all cores; what firn keeps includes its catalog.
  The depot that firn serves from afterwards has two generations of the closure. *Rebuilt* is the second, which differs in its path hashes, and in the references to them inside files.
* Over SSH the same Nix copies to and from firn, and to and from itself behind Debian's sshd, where it writes the paths to an empty store and registers them;
  both with their own defaults, so with the cipher that their server and OpenSSH's client agree on.
  Beside everything else this is done with the smaller closure of a quick run; ` + "`go run ./bench --only ssh`" + ` takes the whole.
* Catalogs are filled with paths as if these had been pushed. After each start, 10,000 narinfos from all over the catalog are asked for, each once,
  so that none is in firn's memory; then as many that are not there. The files of the database are in the memory of the machine.
* Ratios are judged with the two digits that are printed.
`
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

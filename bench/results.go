//go:build linux

package main

import (
	"fmt"
	"math"
	"slices"
)

// A Column names what a value was measured of.
type Column string

// The columns, in the order of the tables.
const (
	nginx    Column = "nginx"
	nixFiles Column = "Nix's files"
	openSSH  Column = "OpenSSH and Nix"
	least    Column = "the least"
	before   Column = "before"
	firn     Column = "firn"
)

var columns = []Column{nginx, nixFiles, openSSH, least, before, firn}

// A Unit says how values are printed. Values are in SI units: seconds, bytes, a second.
type Unit struct {
	Name   string
	Scale  float64 // a value times Scale is in the unit
	Digits int     // after the point
}

var (
	seconds      = Unit{"s", 1, 3}
	milliseconds = Unit{"ms", 1e3, 1}
	microseconds = Unit{"µs", 1e6, 1}
	megabytes    = Unit{"MB", 1e-6, 1}
	perSecond    = Unit{"1/s", 1, 0}
	percent      = Unit{"%", 100, 2}
	times        = Unit{"×", 1, 2}
)

func (u Unit) format(v float64) string { return fmt.Sprintf("%.*f", u.Digits, v*u.Scale) }

// A Bar is what firn must reach. The zero Bar is reached by everything.
type Bar struct {
	Limit   float64
	To      Column // the limit is for the ratio of firn to this column; "": for firn's own value
	AtLeast bool   // the limit is the lowest good value, and not the highest
}

func atMost(limit float64, to Column) Bar  { return Bar{Limit: limit, To: to} }
func atLeast(limit float64, to Column) Bar { return Bar{Limit: limit, To: to, AtLeast: true} }

// A Row is one thing that is measured. Each column has a value for each round, or none.
type Row struct {
	What   string
	Unit   Unit
	Bar    Bar
	Values map[Column][]float64
}

func (r *Row) add(c Column, v float64) { r.Values[c] = append(r.Values[c], v) }

// ratio returns the median of the ratios of firn to a column, each of values of the same round. It
// is NaN if one of them was not measured.
func (r *Row) ratio(to Column) float64 {
	xs, base := r.Values[firn], r.Values[to]
	ratios := make([]float64, min(len(xs), len(base)))
	for i := range ratios {
		ratios[i] = xs[i] / base[i]
	}
	return median(ratios)
}

// judged returns what the bar is about, as it is printed, and whether it is reached.
// It counts what the reader sees: ratios have two digits.
func (r *Row) judged() (limit, value string, reached bool) {
	v, unit := median(r.Values[firn]), r.Unit
	if r.Bar.To != "" {
		v, unit = r.ratio(r.Bar.To), times
	}
	shown := math.Round(v*unit.Scale*math.Pow10(unit.Digits)) / math.Pow10(unit.Digits)
	sign, reached := "≤", shown <= r.Bar.Limit*unit.Scale
	if r.Bar.AtLeast {
		sign, reached = "≥", shown >= r.Bar.Limit*unit.Scale
	}
	limit = fmt.Sprintf("%s %s %s", sign, unit.format(r.Bar.Limit), unit.Name)
	if r.Bar.To != "" {
		limit += " " + string(r.Bar.To)
	}
	return limit, unit.format(v), reached
}

// titles are the sections in the order of the page.
var titles = []string{
	"Narinfos of a live store", "Narinfos of a depot",
	"NARs of a live store", "NARs of a live store, with zstd", "NARs of a depot, uncompressed", "NARs of a depot, with zstd", "NARs of a rebuild in a depot, with zstd",
	pushing, overSSH, kept, takes, million,
}

// A Section is a table of the page.
type Section struct {
	Title string
	Rows  []*Row
}

// Results are all values that were measured.
type Results struct {
	Machine  string
	Date     string
	Command  string
	Took     string
	Before   string // what the column "before" is; "": there is none
	Closure  string // what was served
	Copied   string // what was pushed, and copied over SSH
	Sections []*Section
}

// row returns the row of that title, which it makes if this is its first value: so rows are in the
// order in which things are measured.
func (r *Results) row(section, what string, unit Unit, bar Bar) *Row {
	i := slices.IndexFunc(r.Sections, func(s *Section) bool { return s.Title == section })
	if i < 0 {
		i = len(r.Sections)
		r.Sections = append(r.Sections, &Section{Title: section})
	}
	s := r.Sections[i]
	j := slices.IndexFunc(s.Rows, func(row *Row) bool { return row.What == what })
	if j < 0 {
		j = len(s.Rows)
		s.Rows = append(s.Rows, &Row{What: what, Unit: unit, Bar: bar, Values: make(map[Column][]float64)})
	}
	return s.Rows[j]
}

// bars returns how many bars firn reaches, and how many there are.
func (r *Results) bars() (reached, all int) {
	for _, s := range r.Sections {
		for _, row := range s.Rows {
			if row.Bar == (Bar{}) {
				continue
			}
			all++
			if _, _, ok := row.judged(); ok {
				reached++
			}
		}
	}
	return reached, all
}

// table returns the section as a table with a head. Columns of which nothing was measured are left
// out.
func (s *Section) table() [][]string {
	has := func(c Column) bool {
		return slices.ContainsFunc(s.Rows, func(r *Row) bool { return len(r.Values[c]) > 0 })
	}
	shown := slices.DeleteFunc(slices.Clone(columns), func(c Column) bool { return !has(c) })
	ratios := slices.DeleteFunc(slices.Clone(shown), func(c Column) bool { return c == firn })
	barred := slices.ContainsFunc(s.Rows, func(r *Row) bool { return r.Bar != (Bar{}) })
	head := []string{""}
	for _, c := range shown {
		head = append(head, string(c))
	}
	for _, c := range ratios {
		head = append(head, "firn / "+string(c))
	}
	if barred {
		head = append(head, "bar", "")
	}
	rows := [][]string{head}
	for _, r := range s.Rows {
		line := []string{r.What + ", " + r.Unit.Name}
		for _, c := range shown {
			line = append(line, spread(r.Unit, r.Values[c]))
		}
		for _, c := range ratios {
			cell := ""
			if v := r.ratio(c); !math.IsNaN(v) {
				cell = times.format(v)
			}
			line = append(line, cell)
		}
		if barred {
			limit, verdict := "", ""
			if r.Bar != (Bar{}) {
				var reached bool
				limit, _, reached = r.judged()
				if verdict = "missed"; reached {
					verdict = "reached"
				}
			}
			line = append(line, limit, verdict)
		}
		rows = append(rows, line)
	}
	return rows
}

// spread returns the median, with the lowest and the highest value behind it if they are not the
// same.
func spread(u Unit, xs []float64) string {
	if len(xs) == 0 {
		return ""
	}
	text := u.format(median(xs))
	if low, high := u.format(slices.Min(xs)), u.format(slices.Max(xs)); low != high {
		text += fmt.Sprintf(" (%s–%s)", low, high)
	}
	return text
}

// median returns the middle of xs; NaN if there are none.
func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(xs))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

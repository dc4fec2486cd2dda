//go:build linux

package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"image/color"
	"math"
	"strings"
	"text/tabwriter"
	"text/template"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

//go:embed page.md
var pageText string

// page returns docs/benchmarks.md: the template page.md with the tables.
func (r *Results) page() ([]byte, error) {
	reached, all := r.bars()
	funcs := template.FuncMap{
		"table":   func(s *Section) string { return markdown(s.table()) },
		"reached": func() string { return fmt.Sprintf("%d of %d", reached, all) },
	}
	t, err := template.New("page.md").Funcs(funcs).Parse(pageText)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, r)
	return b.Bytes(), err
}

// markdown formats a table with columns of equal width, so that the source can be read as well.
func markdown(rows [][]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	for i, row := range rows {
		fmt.Fprintln(w, "| "+strings.Join(row, "\t| ")+"\t|")
		if i == 0 {
			fmt.Fprintln(w, strings.Repeat("|---\t", len(row))+"|")
		}
	}
	_ = w.Flush() // to memory
	return b.String()
}

// plot draws the time of everything that has a bar against the least: nginx and firn as ratios to
// it, and the bars.
func (r *Results) plot() ([]byte, error) {
	var titles []string
	var ofNginx, ofFirn plotter.Values
	var limits plotter.XYs
	for i := len(r.Sections) - 1; i >= 0; i-- { // the first section is drawn at the top
		s := r.Sections[i]
		for j := len(s.Rows) - 1; j >= 0; j-- {
			row := s.Rows[j]
			if row.Bar.To != least {
				continue
			}
			other := median(row.Values[nginx]) / median(row.Values[least])
			if math.IsNaN(other) {
				other = 0
			}
			y := float64(len(titles))
			limits = append(limits, plotter.XY{X: row.Bar.Limit, Y: y})
			titles = append(titles, s.Title+": "+strings.TrimPrefix(row.What, "all NARs, "))
			ofNginx, ofFirn = append(ofNginx, other), append(ofFirn, row.ratio(least))
		}
	}
	p := plot.New()
	p.Title.Text = "Time as a multiple of the least that a program in Go needs (shorter is better)"
	p.X.Min = 0
	p.Legend.Top, p.Legend.YOffs = true, -vg.Centimeter
	p.BackgroundColor = color.White
	p.Y.Padding = 2 * vg.Centimeter // fonts of readers are wider than the one that is measured here
	canvas := vgsvg.New(26*vg.Centimeter, vg.Length(len(titles)+3)*0.9*vg.Centimeter)
	if len(titles) > 0 {
		const width = 8
		for i, v := range []struct {
			name   string
			values plotter.Values
			color  color.Color
		}{{"nginx", ofNginx, color.RGBA{150, 150, 150, 255}}, {"firn", ofFirn, color.RGBA{40, 110, 180, 255}}} {
			bars, err := plotter.NewBarChart(v.values, width)
			if err != nil {
				return nil, err
			}
			bars.Horizontal, bars.Color, bars.LineStyle.Width = true, v.color, 0
			bars.Offset = vg.Length(width * (0.5 - float64(i)))
			p.Add(bars)
			p.Legend.Add(v.name, bars)
		}
		marks, err := plotter.NewScatter(limits)
		if err != nil {
			return nil, err
		}
		marks.GlyphStyle = draw.GlyphStyle{Color: color.RGBA{200, 30, 30, 255}, Radius: 5, Shape: draw.PlusGlyph{}}
		p.Add(marks)
		p.Legend.Add("bar for firn", marks)
		p.NominalY(titles...)
	}
	p.Draw(draw.New(canvas))
	var b bytes.Buffer
	_, err := canvas.WriteTo(&b)
	return b.Bytes(), err
}

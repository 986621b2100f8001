package main

import (
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
)

// markdown writes the rows as a table: the median of each runtime with the least and the most, and ratios.
func (r *Report) markdown(w io.Writer) error {
	head, line := "| figure | unit |", "|---|---|"
	for _, t := range r.Targets {
		head, line = head+" "+t+" |", line+"---|"
	}
	subject, others := r.compared()
	for _, o := range others {
		head, line = head+fmt.Sprintf(" %s / %s |", subject, o), line+"---|"
	}
	if _, err := fmt.Fprintf(w, "%s\n%s\n", head, line); err != nil {
		return err
	}
	for _, row := range r.Rows {
		text := fmt.Sprintf("| %s | %s |", row.Key, row.Unit)
		for _, t := range r.Targets {
			text += " " + row.spread(t) + " |"
		}
		for _, o := range others {
			text += " " + row.ratioText(o, subject) + " |"
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}

// compared names the runtime that is compared, the last one, and those that it is compared with.
func (r *Report) compared() (subject string, others []string) {
	last := len(r.Targets) - 1
	return r.Targets[last], r.Targets[:last]
}

// spread is the median with the least and the most.
func (r *Row) spread(target string) string {
	values := r.Values[target]
	if len(values) == 0 {
		return "-"
	}
	text := number(median(values))
	if len(values) > 1 {
		text += fmt.Sprintf(" (%s-%s)", number(slices.Min(values)), number(slices.Max(values)))
	}
	return text
}

func (r *Row) ratioText(first, second string) string {
	ratio, ok := r.ratio(first, second)
	switch {
	case !ok:
		return ""
	case ratio < 0.1:
		return fmt.Sprintf("%.3f", ratio)
	}
	return fmt.Sprintf("%.2f", ratio)
}

// bar is one bar of the picture.
type bar struct {
	Label, Value string
	X, Y, Width  float64
	Color        string
}

// group is a figure of the picture: a bar for each runtime, the longest as long as there is room.
type group struct {
	Title string
	Y     float64
	Bars  []bar
}

var picture = template.Must(template.New("svg").Parse(`<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{{.Height}}" viewBox="0 0 760 {{.Height}}" font-family="sans-serif" font-size="12">
<rect width="760" height="{{.Height}}" fill="#ffffff"/>
{{range .Groups}}<text x="20" y="{{.Y}}" font-weight="bold" fill="#222222">{{.Title}}</text>
{{range .Bars}}<text x="20" y="{{.Y}}" fill="#444444">{{.Label}}</text><rect x="{{.X}}" y="{{.Y}}" width="{{.Width}}" height="11" transform="translate(0,-10)" fill="{{.Color}}"/><text x="{{.X}}" dx="{{.Width}}" y="{{.Y}}" fill="#222222">&#160;{{.Value}}</text>
{{end}}{{end}}</svg>
`))

// svg draws the medians of the figures whose names begin with one of keys, as horizontal bars.
func (r *Report) svg(w io.Writer, keys []string) error {
	colors := []string{"#9aa5b1", "#6b7d8f", "#2f7de1"}
	y := 10.0
	var groups []group
	for _, row := range r.Rows {
		if !slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(row.Key, key) }) {
			continue
		}
		most := 0.0
		for _, t := range r.Targets {
			most = max(most, median(row.Values[t]))
		}
		y += 22
		g := group{Title: row.Key + ", " + row.Unit, Y: y}
		for i, t := range r.Targets {
			if len(row.Values[t]) == 0 || most == 0 {
				continue
			}
			y += 16
			value := median(row.Values[t])
			g.Bars = append(g.Bars, bar{
				Label: t, Value: number(value), X: 120, Y: y, Width: max(1, 540*value/most),
				Color: colors[max(0, len(colors)-len(r.Targets)+i)],
			})
		}
		groups = append(groups, g)
	}
	return picture.Execute(w, map[string]any{"Height": y + 20, "Groups": groups})
}

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// Report is the result of a run.
type Report struct {
	// Targets are the names of the runtimes, in the order of the columns.
	Targets []string `json:"targets"`
	// Rows are in the order in which they were measured.
	Rows []*Row `json:"rows"`
	// Errors tell what could not be measured.
	Errors []string `json:"errors,omitempty"`
}

// Row is one figure of every runtime: all its values, one of each round.
type Row struct {
	Key    string               `json:"key"`
	Unit   string               `json:"unit"`
	Values map[string][]float64 `json:"values"`
}

func (r *Report) add(target string, figures []Figure) {
	for _, f := range figures {
		i := slices.IndexFunc(r.Rows, func(row *Row) bool { return row.Key == f.Key })
		if i < 0 {
			r.Rows, i = append(r.Rows, &Row{Key: f.Key, Unit: f.Unit, Values: map[string][]float64{}}), len(r.Rows)
		}
		r.Rows[i].Values[target] = append(r.Rows[i].Values[target], f.Value)
	}
}

// ratio is the median, over the rounds, of the second runtime's value divided by the first's of the same round; ok says
// that there is one.
func (r *Row) ratio(first, second string) (ratio float64, ok bool) {
	var ratios []float64
	a, b := r.Values[first], r.Values[second]
	for i := range min(len(a), len(b)) {
		if a[i] != 0 {
			ratios = append(ratios, b[i]/a[i])
		}
	}
	return median(ratios), len(ratios) > 0
}

// print writes the table: the medians, and the ratios of the last runtime to the others.
func (r *Report) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "figure\tunit")
	for _, t := range r.Targets {
		fmt.Fprint(table, "\t", t)
	}
	subject, others := r.compared()
	for _, o := range others {
		fmt.Fprintf(table, "\t%s / %s", subject, o)
	}
	fmt.Fprintln(table)
	for _, row := range r.Rows {
		fmt.Fprintf(table, "%s\t%s", row.Key, row.Unit)
		for _, t := range r.Targets {
			if values := row.Values[t]; len(values) > 0 {
				fmt.Fprintf(table, "\t%s", number(median(values)))
			} else {
				fmt.Fprint(table, "\t-")
			}
		}
		for _, o := range others {
			fmt.Fprint(table, "\t", row.ratioText(o, subject))
		}
		fmt.Fprintln(table)
	}
	for _, e := range r.Errors {
		fmt.Fprintln(table, "error:", e)
	}
	return table.Flush()
}

func (r *Report) json(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", " ")
	return encoder.Encode(r)
}

// number writes three digits of what is small.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

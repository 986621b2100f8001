package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/gantry-cri/gantry/cri/operator"
)

// tracedPod is the timeline of a pod as `trace pod -o json` prints it.
type tracedPod struct {
	ID    string       `json:"id"`
	Pod   string       `json:"pod"` // namespace/name
	Calls []tracedCall `json:"calls"`
}

// tracedCall is one call of the CRI.
type tracedCall struct {
	Method      string       `json:"method"`
	ContainerID string       `json:"containerID,omitempty"`
	Container   string       `json:"container,omitempty"`
	Begin       time.Time    `json:"begin"`
	Nanoseconds int64        `json:"nanoseconds"`
	Error       string       `json:"error,omitempty"`
	Steps       []tracedStep `json:"steps"`
	Dropped     int32        `json:"dropped,omitempty"` // how many steps are not there
}

// tracedStep is a part of a call, or of another step.
type tracedStep struct {
	Name        string       `json:"name"`
	Start       int64        `json:"start"`       // nanoseconds since the beginning of the call
	Nanoseconds int64        `json:"nanoseconds"` // -1 while it goes on
	Steps       []tracedStep `json:"steps,omitempty"`
}

// traceFormat is how a timeline is printed.
type traceFormat string

// The formats of timelines.
const (
	traceText traceFormat = "text"
	traceSVG  traceFormat = "svg"
	traceJSON traceFormat = "json"
)

// String implements pflag.Value.
func (f *traceFormat) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *traceFormat) Type() string { return "text|svg|json" }

// Set implements pflag.Value.
func (f *traceFormat) Set(value string) error {
	switch traceFormat(value) {
	case traceText, traceSVG, traceJSON:
		*f = traceFormat(value)
		return nil
	}
	return fmt.Errorf("expected %s, %s or %s", traceText, traceSVG, traceJSON)
}

// newTraceCommand makes `gantry trace`.
func newTraceCommand(c *connector) *cobra.Command {
	cmd := &cobra.Command{Use: "trace", Short: "Show how long each step of a start took"}
	pod := &cobra.Command{
		Use:   "pod ID|NAMESPACE/NAME",
		Short: "Show the timeline of a pod's start",
		Long: "Show the timeline of a pod's start: each call of the kubelet and each step in it, with its beginning, its " +
			"duration and a bar. Time between calls, which is the kubelet's, is left out of the bars. The daemon keeps the " +
			"timelines of its last pods in memory, also of those that could not be started.",
		Args: cobra.ExactArgs(1),
	}
	format := traceText
	pod.Flags().VarP(&format, "output", "o", "format of the output")
	pod.RunE = func(cmd *cobra.Command, args []string) error {
		return c.with(cmd.Context(), func(d *daemonClient) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			response, err := d.operator.Trace(ctx, &operator.TraceRequest{Pod: args[0]})
			if err != nil {
				return err
			}
			return printTrace(cmd.OutOrStdout(), tracedPodOf(response), format)
		})
	}
	cmd.AddCommand(pod)
	return cmd
}

func printTrace(w io.Writer, pod *tracedPod, format traceFormat) error {
	switch format {
	case traceJSON:
		return printJSON(w, pod)
	case traceSVG:
		return printTraceSVG(w, pod)
	}
	return printTraceText(w, pod)
}

// tracedPodOf makes trees of the steps.
func tracedPodOf(r *operator.TraceResponse) *tracedPod {
	pod := &tracedPod{ID: r.GetId(), Pod: r.GetPod(), Calls: []tracedCall{}}
	for _, c := range r.GetCalls() {
		parts := map[int32][]int32{} // of a step, by its index plus one; 0 is the call
		for i, s := range c.GetSteps() {
			parts[s.GetParent()] = append(parts[s.GetParent()], int32(i))
		}
		pod.Calls = append(pod.Calls, tracedCall{
			Method: c.GetMethod(), ContainerID: c.GetContainerId(), Container: c.GetContainer(),
			Begin: time.Unix(0, c.GetBegin()), Nanoseconds: c.GetDuration(), Error: c.GetError(),
			Steps: stepTree(c.GetSteps(), parts, 0), Dropped: c.GetDropped(),
		})
	}
	return pod
}

func stepTree(all []*operator.TraceStep, parts map[int32][]int32, of int32) []tracedStep {
	tree := []tracedStep{}
	for _, i := range parts[of] {
		if i+1 <= of {
			continue // a part comes after its whole
		}
		tree = append(tree, tracedStep{
			Name: all[i].GetName(), Start: all[i].GetStart(), Nanoseconds: all[i].GetDuration(),
			Steps: stepTree(all, parts, i+1),
		})
	}
	return tree
}

// traceRow is a line of a timeline: a call or a step.
type traceRow struct {
	name  string
	depth int
	// since is from the beginning of the pod's first call.
	since time.Duration
	took  time.Duration
	// at is where its bar begins, when nothing is between the calls.
	at      time.Duration
	running bool
	failed  string
}

// rows lays the calls end to end; total is how long all of them took.
func (p *tracedPod) rows() (rows []traceRow, total time.Duration) {
	for _, c := range p.Calls {
		call := traceRow{
			name: strings.TrimSpace(c.Method + " " + c.Container), since: c.Begin.Sub(p.Calls[0].Begin),
			took: time.Duration(c.Nanoseconds), at: total, failed: c.Error,
		}
		rows = append(append(rows, call), stepRows(c.Steps, call, 1)...)
		total += call.took
	}
	return rows, total
}

func stepRows(steps []tracedStep, call traceRow, depth int) (rows []traceRow) {
	for _, s := range steps {
		start, took := time.Duration(s.Start), time.Duration(s.Nanoseconds)
		row := traceRow{name: s.Name, depth: depth, since: call.since + start, took: took, at: call.at + start}
		if s.Nanoseconds < 0 {
			row.took, row.running = max(0, call.took-start), true
		}
		rows = append(append(rows, row), stepRows(s.Steps, call, depth+1)...)
	}
	return rows
}

// barWidth is how many characters all calls together are wide.
const barWidth = 50

// printTraceText writes a line for each row.
func printTraceText(w io.Writer, pod *tracedPod) error {
	rows, total := pod.rows()
	width := 0
	for _, r := range rows {
		width = max(width, 2*r.depth+utf8.RuneCountInString(r.name))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s  %d calls, %s ms in them\n", pod.Pod, shortID(pod.ID), len(pod.Calls), milliseconds(total))
	fmt.Fprintf(&b, "%-*s  %9s  %9s\n", width, "", "at ms", "took ms")
	for _, r := range rows {
		took := milliseconds(r.took)
		if r.running {
			took += "+"
		}
		name := strings.Repeat("  ", r.depth) + r.name
		name += strings.Repeat(" ", width-utf8.RuneCountInString(name))
		line := fmt.Sprintf("%s  %9s  %9s  %s", name, milliseconds(r.since), took, timeBar(r.at, r.took, total))
		fmt.Fprintln(&b, strings.TrimRight(line, " "))
		if r.failed != "" {
			fmt.Fprintf(&b, "  failed: %s\n", r.failed)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond))
}

// timeBar draws from at to at+took of total. What is too short for a block is a thin one.
func timeBar(at, took, total time.Duration) string {
	if total <= 0 {
		return ""
	}
	column := func(d time.Duration) int { return min(int(int64(barWidth)*int64(d)/int64(total)), barWidth) }
	from, to := min(column(at), barWidth-1), column(at+took)
	if to <= from {
		return strings.Repeat(" ", from) + "▏"
	}
	return strings.Repeat(" ", from) + strings.Repeat("█", to-from)
}

// Command bench measures CRI runtimes through their sockets: how long a pod takes to start, an exec to run, a pod to stop
// and go; what each costs in CPU time; what a runtime weighs and how long its lists take with so many pods; how fast a log
// is written; how soon everything is there again after kill -9. It prints a table and writes JSON; people judge.
//
// Without -endpoint it starts the runtimes itself, in namespaces of its own (as root, from the top of the tree, after make
// build tools, and make peers for others than gantry):
//
//	gantry-bench -runtimes gantry
//	gantry-bench -runtimes containerd,gantry -rounds 5
//
// Of two runtimes every scenario is run in turn, pair by pair, so that what else the machine does hits both alike; the
// table has the ratio of the second to the first. With -endpoint it is a client of a runtime that runs:
//
//	gantry-bench -endpoint unix:///run/gantry/gantry.sock -image registry.test/gantry/busybox:1
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// options are the flags.
type options struct {
	runtimes, endpoint, image, parent, processes string
	concurrency, levels, only                    string
	json, markdown, svg                          string
	rounds                                       int
	embedded                                     bool
	sizes                                        sizes
}

func main() {
	var o options
	flag.StringVar(&o.runtimes, "runtimes", "gantry", "runtimes to start, with commas: gantry, containerd, crio, or NAME=DIRECTORY of gantry's programs; the last is compared")
	flag.StringVar(&o.endpoint, "endpoint", "", "socket of a runtime that runs, as a URL; none is started then")
	flag.StringVar(&o.image, "image", "", "with -endpoint: image with sh, sleep, true, yes and head in it")
	flag.StringVar(&o.parent, "cgroup-parent", "/gantry-bench", "with -endpoint: cgroup that the pods are made in")
	flag.StringVar(&o.processes, "processes", "gantryd,gantry-keeper,gantry-reaper,pause", "with -endpoint: names of the runtime's processes")
	flag.IntVar(&o.rounds, "rounds", 1, "how often everything is measured; the table has medians")
	flag.IntVar(&o.sizes.pods, "pods", 32, "pods of each scenario")
	flag.IntVar(&o.sizes.execs, "execs", 100, "execs of each scenario")
	flag.StringVar(&o.concurrency, "concurrency", "1,4,16", "how many at a time: a scenario for each")
	flag.StringVar(&o.levels, "levels", "50,200", "numbers of pods for the density scenario; empty for none")
	flag.DurationVar(&o.sizes.idle, "idle", 0, "how long the runtime is left alone at each level of density, to see what that costs")
	flag.BoolVar(&o.embedded, "embedded", false, "gantry makes the pods' networks itself, and the pods of density have them")
	flag.IntVar(&o.sizes.logBytes, "log-bytes", 200<<20, "what a container writes to its log; 0 for no such scenario")
	flag.BoolVar(&o.sizes.network, "network", true, "measure pods with networks of their own, too")
	flag.StringVar(&o.only, "only", "", "regular expression: scenarios to run")
	flag.StringVar(&o.json, "json", "", "file for all values as JSON")
	flag.StringVar(&o.markdown, "markdown", "", "file for the table with the spread of the rounds")
	flag.StringVar(&o.svg, "svg", "", "file for a picture of some figures")
	flag.Parse()
	if o.endpoint == "" {
		if inner, code := node.Isolate(); !inner {
			os.Exit(code)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) (err error) {
	if o.sizes.concurrency, err = numbers("concurrency", o.concurrency); err != nil {
		return err
	}
	if o.sizes.levels, err = numbers("levels", o.levels); err != nil {
		return err
	}
	o.sizes.densityNetwork = o.embedded
	only, err := regexp.Compile(o.only)
	if err != nil || len(o.sizes.concurrency) == 0 || o.sizes.pods < 1 || o.sizes.execs < 1 || o.rounds < 1 {
		return errors.Join(err, errors.New("-concurrency, -pods, -execs and -rounds: expected numbers from 1"))
	}
	targets := []*target{o.attached()}
	if o.endpoint == "" {
		l, started, err := launch(ctx, strings.Split(o.runtimes, ","), o.embedded)
		defer func() {
			if closed := l.close(); closed != nil {
				fmt.Fprintln(os.Stderr, "bench:", closed)
			}
		}()
		if err != nil {
			return err
		}
		targets = started
	}
	for _, t := range targets {
		if err := t.connect(ctx); err != nil {
			return err
		}
	}
	list := slices.DeleteFunc(scenarios(o.sizes), func(s scenario) bool { return !only.MatchString(s.name) })
	return o.report(measure(ctx, list, targets, o.rounds))
}

// attached is the runtime that runs already.
func (o *options) attached() *target {
	names := strings.Split(o.processes, ",")
	return &target{
		name: "runtime", endpoint: o.endpoint, image: o.image, parent: o.parent, names: names,
		account: account{names: names, cgroups: []string{accounts() + o.parent}}, logs: os.TempDir(),
	}
}

// measure runs the scenarios on the targets in turn. The order within a pair changes from round to round. A scenario that
// fails is told of and the others are run.
func measure(ctx context.Context, list []scenario, targets []*target, rounds int) *Report {
	r := &Report{}
	for _, t := range targets {
		r.Targets = append(r.Targets, t.name)
	}
	for round := range rounds {
		for _, s := range list {
			turn := slices.Clone(targets)
			if round%2 == 1 {
				slices.Reverse(turn)
			}
			for _, t := range turn {
				if ctx.Err() != nil {
					return r
				}
				fmt.Fprintf(os.Stderr, "round %d: %s: %s\n", round+1, t.name, s.name)
				figures, err := s.run(ctx, t)
				r.add(t.name, figures)
				if err != nil {
					r.Errors = append(r.Errors, fmt.Sprintf("round %d: %s: %s: %v", round+1, t.name, s.name, err))
				}
			}
		}
	}
	return r
}

// drawn are the beginnings of the names of the figures that are drawn.
var drawn = []string{
	"pods, host network, 1 at a time: start p50", "pods, host network, 1 at a time: start, CPU of the runtime",
	"pods, host network, 16 at a time: start, rate", "pods, pod network, 1 at a time: start p50",
	"pods, host network, 1 at a time: stop and remove p50", "execs, 1 at a time: ExecSync p50",
	"execs, 1 at a time: ExecSync, CPU of the runtime", "log: CPU of the runtime's processes",
	"density, 200 pods: memory, growth per pod", "density, 200 pods: ListContainerStats p50",
	"density, 200 pods: all ready after kill -9",
}

func (o *options) report(r *Report) error {
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	for path, write := range map[string]func(io.Writer) error{
		o.json: r.json, o.markdown: r.markdown, o.svg: func(w io.Writer) error { return r.svg(w, drawn) },
	} {
		if path == "" {
			continue
		}
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := errors.Join(write(file), file.Close()); err != nil {
			return err
		}
	}
	if len(r.Errors) > 0 {
		return fmt.Errorf("%d scenarios failed", len(r.Errors))
	}
	return nil
}

// numbers reads a list of numbers above 0, ascending.
func numbers(name, text string) (list []int, err error) {
	for field := range strings.SplitSeq(text, ",") {
		if field == "" {
			continue
		}
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 || len(list) > 0 && n <= list[len(list)-1] {
			return nil, fmt.Errorf("-%s %q: expected ascending numbers with commas", name, text)
		}
		list = append(list, n)
	}
	return list, nil
}

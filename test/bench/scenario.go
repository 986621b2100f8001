package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// sizes say how much is done.
type sizes struct {
	pods        int   // started in each scenario of pods
	execs       int   // in each scenario of execs
	concurrency []int // how many at a time
	levels      []int // numbers of pods at which lists, memory and restart are measured; none for no such scenario
	// idle is how long the runtime is left alone at each level; 0 for not at all.
	idle time.Duration
	// densityNetwork gives the pods of that scenario networks of their own.
	densityNetwork bool
	logBytes       int  // that a container writes; 0 for no such scenario
	network        bool // pods with networks of their own, too
}

// scenario is one thing that is measured. What it makes it removes, also when it fails.
type scenario struct {
	name string
	run  func(ctx context.Context, t *target) ([]Figure, error)
}

// scenarios are those of a size, in the order in which they are run. Each begins with a pod that warms caches.
func scenarios(s sizes) []scenario {
	var list []scenario
	add := func(name string, run func(context.Context, *target) ([]Figure, error)) {
		list = append(list, scenario{name, run})
	}
	for _, host := range []bool{true, false} {
		if !host && !s.network {
			continue
		}
		for _, c := range s.concurrency {
			name := fmt.Sprintf("pods, %s network, %d at a time", networkName(host), c)
			add(name, func(ctx context.Context, t *target) ([]Figure, error) {
				return podScenario(ctx, t, load{name, s.pods, c}, podOptions{host: host})
			})
		}
	}
	for _, c := range s.concurrency {
		name := fmt.Sprintf("execs, %d at a time", c)
		add(name, func(ctx context.Context, t *target) ([]Figure, error) {
			return execScenario(ctx, t, load{name, s.execs, c}, 1)
		})
	}
	storm := s.concurrency[len(s.concurrency)-1]
	add("exec storm", func(ctx context.Context, t *target) ([]Figure, error) {
		name := fmt.Sprintf("exec storm, %d at a time in as many pods", storm)
		return execScenario(ctx, t, load{name, s.execs, storm}, storm)
	})
	if s.logBytes > 0 {
		add("log", func(ctx context.Context, t *target) ([]Figure, error) { return logScenario(ctx, t, s.logBytes) })
	}
	if len(s.levels) > 0 {
		add("density", func(ctx context.Context, t *target) ([]Figure, error) { return densityScenario(ctx, t, s) })
	}
	return list
}

// load is how much a scenario does, so many at a time, and the beginning of its figures' keys.
type load struct {
	key            string
	n, concurrency int
}

func networkName(host bool) string {
	if host {
		return "host"
	}
	return "pod"
}

// warm starts and ends a pod that is not counted.
func warm(ctx context.Context, t *target, o podOptions) error {
	p, err := t.startPod(ctx, o, &steps{})
	if err != nil {
		return err
	}
	return t.end(ctx, []pod{p}, 1, &latencies{})
}

// podScenario starts n pods and ends them.
func podScenario(ctx context.Context, t *target, l load, o podOptions) (figures []Figure, err error) {
	if err := warm(ctx, t, o); err != nil {
		return nil, err
	}
	var s steps
	var ends latencies
	var pods []pod
	started, err := t.account.measure(func() (err error) {
		pods, err = t.pods(ctx, l.n, l.concurrency, o, &s)
		return err
	})
	ended, endErr := t.account.measure(func() error { return t.end(ctx, pods, l.concurrency, &ends) })
	if err := errors.Join(err, endErr); err != nil {
		return nil, err
	}
	figures = append(figures, s.total.figures(l.key+": start")...)
	figures = append(figures, s.run.figures(l.key+": RunPodSandbox")...)
	figures = append(figures, s.create.figures(l.key+": CreateContainer")...)
	figures = append(figures, s.start.figures(l.key+": StartContainer")...)
	figures = append(figures, started.figures(l.key+": start", l.n)...)
	figures = append(figures, ends.figures(l.key+": stop and remove")...)
	return append(figures, ended.figures(l.key+": stop and remove", l.n)...), nil
}

// figures are the rate of n actions and what each took of the CPUs.
func (s spent) figures(key string, n int) []Figure {
	return []Figure{
		{key + ", rate", float64(n) / s.wall.Seconds(), "1/s"},
		{key + ", CPU of the runtime", milliseconds(s.cpu) / float64(n), "CPU-ms"},
		{key + ", CPU of the machine", milliseconds(s.machine) / float64(n), "CPU-ms"},
	}
}

// execScenario runs n execs in so many pods.
func execScenario(ctx context.Context, t *target, l load, inPods int) (figures []Figure, err error) {
	pods, err := t.pods(ctx, inPods, 4, podOptions{host: true}, &steps{})
	defer func() { err = errors.Join(err, t.end(ctx, pods, 4, &latencies{})) }()
	if err != nil {
		return nil, err
	}
	for _, p := range pods {
		if err := t.exec(ctx, p); err != nil { // not counted
			return nil, err
		}
	}
	var execs latencies
	used, err := t.account.measure(func() error {
		return parallel(l.n, l.concurrency, func(i int) error {
			return execs.time(func() error { return t.exec(ctx, pods[i%len(pods)]) })
		})
	})
	if err != nil {
		return nil, err
	}
	return append(execs.figures(l.key+": ExecSync"), used.figures(l.key+": ExecSync", l.n)...), nil
}

// sleep waits, but not longer than ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

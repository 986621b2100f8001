package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// lists is how often each list is asked for.
	lists = 100
	// leastMemory is the part of the machine's memory that has to be available: the rule by which a density run stops.
	leastMemory = 0.08
	// slowStart is how much longer than at first the starting of a pod may take: the other rule.
	slowStart = 20
	// twoProcesses is the command of a pod's container: a shell that waits for another process.
	twoProcesses = "sleep 1000000; true"
)

// densityScenario starts pods up to each level in turn and measures there. It stops before a level that would take the
// machine down, and says so by a figure.
func densityScenario(ctx context.Context, t *target, s sizes) (figures []Figure, err error) {
	d := density{sizes: s, options: podOptions{host: !s.densityNetwork, command: []string{"sh", "-c", twoProcesses}}}
	var pods []pod
	defer func() { err = errors.Join(err, t.end(ctx, pods, 4, &latencies{})) }()
	if err := warm(ctx, t, d.options); err != nil {
		return nil, err
	}
	if d.empty, err = t.weighAll(); err != nil {
		return nil, err
	}
	figures = weights("density: memory with no pods", d.empty.processes)
	more, err := d.more(ctx, t, "density, 0 pods")
	if err != nil {
		return figures, err
	}
	figures = append(figures, more...)
	first := time.Duration(0)
	for _, level := range s.levels {
		var s steps
		n := level - len(pods)
		used, err := t.account.measure(func() error {
			more, err := t.pods(ctx, n, 4, d.options, &s)
			pods = append(pods, slices.DeleteFunc(more, func(p pod) bool { return p.sandbox == "" })...)
			return err
		})
		if err != nil {
			return append(figures, Figure{"density: pods when it stopped", float64(len(pods)), "pods"}), err
		}
		key := fmt.Sprintf("density, %d pods", level)
		figures = append(figures, used.figures(key+": start", n)...)
		figures = append(figures, s.total.figures(key+": start")...)
		at, err := d.atLevel(ctx, t, key, len(pods))
		if err != nil {
			return figures, err
		}
		figures = append(figures, at...)
		p50 := quantile(s.total.values, 0.5)
		if first == 0 {
			first = p50
		}
		if _, available, err := availableMemory(); err != nil || available < leastMemory || p50 > slowStart*first {
			break
		}
	}
	return append(figures, Figure{"density: pods when it stopped", float64(len(pods)), "pods"}), nil
}

// density is what all levels have in common.
type density struct {
	sizes   sizes
	options podOptions
	empty   weight
}

// more measures what one more pod costs: so many are started one after the other and ended again.
func (d *density) more(ctx context.Context, t *target, key string) ([]Figure, error) {
	return podScenario(ctx, t, load{key + ": one more", d.sizes.pods, 1}, d.options)
}

// idle measures what the runtime does while nobody asks for anything, in parts of a CPU.
func (d *density) idle(ctx context.Context, t *target, key string) ([]Figure, error) {
	if d.sizes.idle == 0 {
		return nil, nil
	}
	used, err := t.account.measure(func() error { return sleep(ctx, d.sizes.idle) })
	if err != nil {
		return nil, err
	}
	return []Figure{{key + ": idle, CPU of the runtime", 100 * float64(used.cpu) / float64(used.wall), "% of a CPU"}}, nil
}

// atLevel measures lists, memory, idleness, one more pod, and a restart with n pods.
func (d *density) atLevel(ctx context.Context, t *target, key string, n int) ([]Figure, error) {
	if err := sleep(ctx, 3*time.Second); err != nil { // for the garbage of the starts
		return nil, err
	}
	full, err := t.weighAll()
	if err != nil {
		return nil, err
	}
	figures := append(weights(key+": memory", full.processes),
		Figure{key + ": memory, growth per pod", (full.total() - d.empty.total()) / float64(n), "KiB"},
		Figure{key + ": memory of the machine, growth per pod", (d.empty.available - full.available) / float64(n), "KiB"})
	holdings, err := t.holdings(key)
	if err != nil {
		return nil, err
	}
	figures = append(figures, holdings...)
	for _, measure := range []func(context.Context, *target, string) ([]Figure, error){
		d.idle, d.more, func(ctx context.Context, t *target, key string) ([]Figure, error) { return t.askLists(ctx, key) },
	} {
		measured, err := measure(ctx, t, key)
		if err != nil {
			return nil, err
		}
		figures = append(figures, measured...)
	}
	if t.restart == nil {
		return figures, nil
	}
	start := time.Now()
	if err := t.restart(ctx); err != nil {
		return nil, fmt.Errorf("%s: start again after SIGKILL: %w", t.name, err)
	}
	if err := t.allReady(ctx, n); err != nil {
		return nil, err
	}
	return append(figures, Figure{key + ": all ready after kill -9", milliseconds(time.Since(start)), "ms"}), nil
}

// holdings counts what there is only so much of: mounts in the table of this program, which is the one that the runtime was
// started with, and descriptors and threads of the runtime's processes.
func (t *target) holdings(key string) ([]Figure, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	figures := []Figure{{key + ": mounts of the host", float64(bytes.Count(table, []byte{'\n'})), "mounts"}}
	processes, err := processesNamed(t.names)
	if err != nil {
		return nil, err
	}
	for _, of := range []struct{ dir, unit string }{{"fd", "descriptors"}, {"task", "threads"}} {
		most := map[string]int{}
		for _, p := range processes {
			entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/%s", p.pid, of.dir))
			most[p.name] = max(most[p.name], len(entries))
		}
		for _, name := range sortedKeys(most) {
			figures = append(figures, Figure{fmt.Sprintf("%s: %s, %s", key, of.unit, name), float64(most[name]), of.unit})
		}
	}
	return figures, nil
}

// weight is the memory of the runtime's processes by their names, and what the machine has left: the pods' own processes
// and the kernel's memory count there too, and so does all that others do. Both in KiB.
type weight struct {
	processes map[string]float64
	available float64
}

func (w weight) total() (sum float64) {
	for _, size := range w.processes {
		sum += size
	}
	return sum
}

func (t *target) weighAll() (w weight, err error) {
	if w.processes, err = weigh(t.names); err != nil {
		return w, err
	}
	w.available, _, err = availableMemory()
	return w, err
}

// weights are the memory of all processes of each name, and of all together.
func weights(key string, sizes map[string]float64) (figures []Figure) {
	total := 0.0
	for _, name := range sortedKeys(sizes) {
		figures = append(figures, Figure{key + ", " + name, sizes[name], "KiB"})
		total += sizes[name]
	}
	return append(figures, Figure{key + ", all", total, "KiB"})
}

// askLists times the lists that the kubelet asks for all the time.
func (t *target) askLists(ctx context.Context, key string) (figures []Figure, err error) {
	for _, list := range []struct {
		name string
		ask  func() error
	}{
		{"ListContainerStats", func() error {
			_, err := t.runtime.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
			return err
		}},
		{"ListPodSandboxStats", func() error {
			_, err := t.runtime.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
			return err
		}},
		{"ListContainers", func() error {
			_, err := t.runtime.ListContainers(ctx, &runtime.ListContainersRequest{})
			return err
		}},
		{"ListPodSandbox", func() error {
			_, err := t.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
			return err
		}},
	} {
		var l latencies
		used, err := t.account.measure(func() error {
			return parallel(lists, 1, func(int) error { return l.time(list.ask) })
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", t.name, list.name, err)
		}
		figures = append(figures, l.figures(key+": "+list.name)...)
		figures = append(figures, Figure{key + ": " + list.name + ", CPU of the runtime", milliseconds(used.cpu) / lists, "CPU-ms"})
	}
	return figures, nil
}

// allReady waits until n pods are listed as ready and as many containers as running.
func (t *target) allReady(ctx context.Context, n int) error {
	for {
		sandboxes, err := t.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{
			State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY},
		}})
		if err == nil && len(sandboxes.GetItems()) >= n {
			containers, err := t.runtime.ListContainers(ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{
				State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING},
			}})
			if err == nil && len(containers.GetContainers()) >= n {
				return nil
			}
		}
		t.conn.ResetConnectBackoff()
		if wait := sleep(ctx, 5*time.Millisecond); wait != nil {
			return fmt.Errorf("%s: wait for %d pods: %w: %w", t.name, n, wait, errors.Join(err))
		}
	}
}

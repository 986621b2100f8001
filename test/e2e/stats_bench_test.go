//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// BenchmarkStats measures the lists of statistics and what sampling costs, with many pods on the host's network.
func BenchmarkStats(b *testing.B) {
	for _, pods := range []int{50, 200} {
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			n, err := newNode(fmt.Sprintf("bench%d", pods), func(o *node.Options) {
				o.Config, o.Verbosity = "[stats]\nperiod = '1s'\n", 0
			})
			if err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			if err := n.Start(ctx); err != nil {
				b.Fatal(err)
			}
			defer n.Close()
			defer n.RemoveAll(ctx)
			if err := benchPods(ctx, n, pods); err != nil {
				b.Fatal(err)
			}
			benchSampling(b, n)
			benchLists(ctx, b, n)
		})
	}
}

// benchPods runs pods of one container that does nothing.
func benchPods(ctx context.Context, n *node.Node, count int) error {
	image, err := n.Images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: images.Busybox}})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	host := &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}
	for i := range count {
		group.Go(func() error {
			name := fmt.Sprintf("bench-%d", i)
			config := &runtime.PodSandboxConfig{
				Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: "uid-" + name},
				Linux: &runtime.LinuxPodSandboxConfig{
					SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: host},
				},
			}
			pod, err := n.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config})
			if err != nil {
				return err
			}
			c, err := n.Runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{
				PodSandboxId: pod.PodSandboxId, SandboxConfig: config, Config: &runtime.ContainerConfig{
					Metadata: &runtime.ContainerMetadata{Name: "idle"}, Image: &runtime.ImageSpec{Image: image.ImageRef},
					Command: []string{"sleep", "100000"},
					Linux: &runtime.LinuxContainerConfig{
						SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: host},
					},
				},
			})
			if err != nil {
				return err
			}
			_, err = n.Runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ContainerId})
			return err
		})
	}
	return group.Wait()
}

// benchSampling reports what the daemon uses per round while nobody asks.
func benchSampling(b *testing.B, n *node.Node) {
	const rounds = 20
	time.Sleep(3 * time.Second)
	before, err := processorTime(n.PID())
	if err != nil {
		b.Fatal(err)
	}
	time.Sleep(rounds * time.Second)
	after, err := processorTime(n.PID())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64((after-before).Microseconds())/rounds/1000, "cpu-ms/round")
}

// processorTime is what a process has used: the sum of its threads, each of which has its time in nanoseconds first.
func processorTime(pid int) (time.Duration, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	total := time.Duration(0)
	for _, thread := range threads {
		content, err := os.ReadFile(dir + "/" + thread.Name() + "/schedstat")
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(content))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}

// benchLists reports the median and the worst of each list.
func benchLists(ctx context.Context, b *testing.B, n *node.Node) {
	for name, list := range map[string]func() error{
		"containers": func() error {
			_, err := n.Runtime.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
			return err
		},
		"sandboxes": func() error {
			_, err := n.Runtime.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
			return err
		},
		"metrics": func() error {
			_, err := n.Runtime.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
			return err
		},
	} {
		var times []time.Duration
		for range 100 {
			begin := time.Now()
			if err := list(); err != nil {
				b.Fatal(err)
			}
			times = append(times, time.Since(begin))
			time.Sleep(20 * time.Millisecond)
		}
		slices.Sort(times)
		b.ReportMetric(float64(times[50].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(times[99].Microseconds())/1000, name+"-max-ms")
	}
}

//go:build e2e

package kubelet

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
	"github.com/gantry-cri/gantry/test/peers"
)

// What a kubelet with its default gates says of a pod, in /stats/summary and /metrics/cadvisor, comes from cAdvisor. The
// kept list is what it says with containerd and runc (make peers), on the machine of the tests:
//
//	go test -tags e2e -count=1 -v -run TestStatistics ./test/kubelet/ -record
//
// With the gate PodAndContainerStatsFromCRI it comes from the runtime, and there is a list of its own.
var record = flag.Bool("record", false, "write the kept list of statistics anew, with containerd")

func keptList() string {
	if shared.Gates["PodAndContainerStatsFromCRI"] {
		return "testdata/statistics_cri.txt"
	}
	return "testdata/statistics.txt"
}

// statsPod has limits, several processes, traffic, and writes to its disk.
const statsPod = `
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "dd if=/dev/zero of=/file bs=1M count=4 conv=fsync 2>/dev/null; sleep 10000 & while :; do ping -c1 -W1 GATEWAY >/dev/null; sleep 1; done"]
  resources: {limits: {cpu: 500m, memory: 50Mi}, requests: {cpu: 100m, memory: 20Mi}}
- {name: side, image: BUSYBOX, command: [sleep, "10000"]}`

// noPause is what the kubelet tells of a pause container's process, which Gantry does not have: its CPU time, its limits,
// its controllers' settings. The pod's network, which hangs on it too, is not among it.
var noPause = regexp.MustCompile(`^sandbox container_(cpu_usage_seconds_total|ulimits_soft|spec_|blkio_|fs_)`)

// notMeant is what containerd tells by the CRI and should not: a pod's default interface a second time, which the CRI says
// the list of interfaces leaves out; and that a pod without a limit has no memory available.
var notMeant = regexp.MustCompile(`^summary (network\.interfaces\[\]|memory\.availableBytes$)`)

func TestStatisticsAreThoseOfContainerd(t *testing.T) {
	if *record {
		recordStatistics(t)
		return
	}
	t.Parallel()
	kept := strings.Split(strings.TrimSpace(readFile(t, keptList())), "\n")
	kept = slices.DeleteFunc(kept, func(line string) bool {
		return strings.HasPrefix(line, "#") || noPause.MatchString(line) ||
			shared.Gates["PodAndContainerStatsFromCRI"] && notMeant.MatchString(line)
	})
	if len(kept) < 90 {
		t.Fatalf("the kept list has %d lines", len(kept))
	}
	p := startOn(t, shared, Manifest{Spec: strings.ReplaceAll(statsPod, "GATEWAY", "10.78.1.1")})
	p.running(t)
	t.Cleanup(func() { // before the pod is removed
		if t.Failed() {
			t.Log(standins(t))
		}
	})
	all := func() error { return told(t, p.Name, kept) }
	eventually(t, "all statistics", all)
	time.Sleep(70 * time.Second) // once a minute cAdvisor forgets what it does not find in its own list of cgroups
	eventually(t, "all statistics a minute later", all)
}

// told is nil when all of the kept list is told of a pod.
func told(t *testing.T, pod string, kept []string) error {
	got, err := statistics(timeout(t), shared, pod)
	if err != nil {
		return err
	}
	var missing []string
	for _, line := range kept {
		if !covered(got, line) {
			missing = append(missing, line)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("of %d there are missing:\n  %s", len(kept), strings.Join(missing, "\n  "))
	}
	return nil
}

// standins shows the cgroups that stand for pods, and what cAdvisor says of them.
func standins(t *testing.T) string {
	var said strings.Builder
	for _, pattern := range []string{"/sys/fs/cgroup/gantry/sandboxes/*", "/sys/fs/cgroup/*/gantry/sandboxes/*"} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			fmt.Fprintln(&said, dir)
		}
	}
	b, err := shared.Get(timeout(t), "/metrics/cadvisor")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "container_last_seen{") && strings.Contains(line, "sandboxes/") {
			said.WriteString(line)
		}
	}
	return said.String()
}

// covered reports whether a line is told, or by the CRI the same series with more labels: containerd's has no name of a
// container, and none of a sandbox.
func covered(got map[string]bool, line string) bool {
	if got[line] || !shared.Gates["PodAndContainerStatsFromCRI"] || strings.HasPrefix(line, "summary ") {
		return got[line]
	}
	want := strings.Fields(line)
	for told := range got {
		have := strings.Fields(told)
		if len(have) != 3 || have[1] != want[1] || (have[0] == "container") != (want[0] == "container") {
			continue
		}
		labels := strings.Split(have[2], ",")
		if !slices.ContainsFunc(strings.Split(want[2], ","), func(l string) bool { return !slices.Contains(labels, l) }) {
			return true
		}
	}
	return false
}

// recordStatistics runs the pod on containerd, in the place of the daemon and its kubelet.
func recordStatistics(t *testing.T) {
	ctx := timeout(t)
	for _, stop := range []func() error{shared.Stop, gantry.Stop} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	daemon, err := peers.Containerd(peers.Options{
		Dir: filepath.Join(node.Dir(), "containerd"), Peers: filepath.Join(filepath.Dir(toolsDir), "peers"),
		CNIConf: gantry.CNIConf, CNIBin: gantry.CNIBin, Mirror: registry.Address, SandboxImage: images.Pause,
		Address: "/run/containerd/containerd.sock",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Stop() }) // after the pod is gone
	clients, err := newNode("containerd-node", func(o *node.Options) { o.Address = daemon.Endpoint })
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKubelet("containerd-kubelet", clients, Options{Gates: shared.Gates})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Stop() })
	p := startOn(t, k, Manifest{Name: "statistics", Spec: strings.ReplaceAll(statsPod, "GATEWAY", "10.78.1.1")})
	p.running(t)
	time.Sleep(time.Minute) // two samples of everything
	got, err := statistics(ctx, k, p.Name)
	if err != nil {
		t.Fatal(err)
	}
	text := "# What kubelet 1.37.0 tells of a pod with containerd 2.4.2 and runc 1.5.2, cgroup v1: fields of /stats/summary, series\n" +
		"# of /metrics/cadvisor with the labels that have a value. Written by the test with -record.\n" +
		strings.Join(slices.Sorted(maps.Keys(got)), "\n") + "\n"
	if err := os.WriteFile(keptList(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// statistics lists what the kubelet tells of a pod: "summary FIELD" with the path of each field of /stats/summary, and
// "KIND METRIC LABELS" for each series of /metrics/cadvisor with the labels that have a value, where KIND is container,
// sandbox (which has no container's name) or pod (which has no name of its own).
func statistics(ctx context.Context, k *Kubelet, pod string) (map[string]bool, error) {
	b, err := k.Get(ctx, "/stats/summary")
	if err != nil {
		return nil, err
	}
	var summary struct{ Pods []map[string]any }
	if err := json.Unmarshal(b, &summary); err != nil {
		return nil, err
	}
	told := make(map[string]bool)
	for _, p := range summary.Pods {
		if ref, _ := p["podRef"].(map[string]any); ref["name"] == pod {
			addFields(told, "summary ", p)
		}
	}
	if b, err = k.Get(ctx, "/metrics/cadvisor"); err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, "{")
		if !ok || strings.HasPrefix(line, "#") || !strings.Contains(rest, fmt.Sprintf("pod=%q", pod)) {
			continue
		}
		told[seriesKind(rest)+" "+name+" "+strings.Join(labelNames(rest), ",")] = true
	}
	return told, nil
}

// addFields adds the paths of the fields that are not null.
func addFields(told map[string]bool, path string, value any) {
	switch value := value.(type) {
	case map[string]any:
		for name, field := range value {
			addFields(told, strings.TrimSuffix(path, " ")+separator(path)+name, field)
		}
	case []any:
		for _, element := range value {
			addFields(told, path+"[]", element)
		}
	case nil:
	default:
		told[path] = true
	}
}

func separator(path string) string {
	if strings.HasSuffix(path, " ") {
		return " "
	}
	return "."
}

var label = regexp.MustCompile(`(\w+)="([^"]*)"`)

// labelNames are the names of the labels that have a value.
func labelNames(series string) (names []string) {
	for _, m := range label.FindAllStringSubmatch(series, -1) {
		if m[2] != "" {
			names = append(names, m[1])
		}
	}
	slices.Sort(names)
	return names
}

func seriesKind(series string) string {
	names := labelNames(series)
	switch {
	case slices.Contains(names, "container"):
		return "container"
	case slices.Contains(names, "name"):
		return "sandbox"
	}
	return "pod"
}

// A sandbox is read by the process of one of its containers: of another when that ends.
func TestNetworkStatisticsOutliveAContainer(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, "sleep 20"]}`)
	again := p.wait(t, "a restart", func(s *Status) bool {
		return s.Container("main").RestartCount >= 1 && s.Container("main").State.Running != nil
	})
	since := again.Container("main").State.Running.StartedAt
	eventually(t, "the network's statistics of after the restart", func() error {
		b, err := shared.Get(timeout(t), "/stats/summary")
		if err != nil {
			return err
		}
		var summary struct {
			Pods []struct {
				PodRef  struct{ Name string }
				Network struct {
					Time    time.Time
					RxBytes int64
				}
			}
		}
		if err := json.Unmarshal(b, &summary); err != nil {
			return err
		}
		for _, pod := range summary.Pods {
			if pod.PodRef.Name == p.Name && pod.Network.RxBytes > 0 && pod.Network.Time.After(since) {
				return nil
			}
		}
		return fmt.Errorf("since %v there is none: %s", since, b)
	})
}

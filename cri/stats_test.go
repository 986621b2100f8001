package cri

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

func ptr[T any](v T) *T { return &v }

// fullSample has every part.
func fullSample() *stats.Sample {
	pressure := &stats.Pressure{Some: stats.Stall{Avg10: 1.5, Total: 7e9}, Full: stats.Stall{Avg300: 0.5, Total: 3e9}}
	return &stats.Sample{
		Time: time.Unix(100, 5),
		CPU: &stats.CPU{
			Usage: 5e9, User: 3e9, System: 2e9, NanoCores: ptr(uint64(5e8)), Periods: 10, ThrottledPeriods: 4, Throttled: 2e9,
			Period: 100000, Quota: 20000, Shares: 1024, Pressure: pressure,
		},
		Memory: &stats.Memory{
			Usage: 10 << 20, WorkingSet: 8 << 20, RSS: 4 << 20, Limit: 64 << 20, PageFaults: 60, MajorPageFaults: 2,
			Swap: &stats.Swap{Usage: 1 << 20, Limit: ptr(uint64(4 << 20))}, Pressure: pressure,
		},
		IO: &stats.IO{
			Devices:  []stats.Device{{Major: 8, Name: "/dev/sda", ReadBytes: 4096}, {Major: 8, Minor: 16}},
			Pressure: pressure,
		},
		Tasks:     &stats.Tasks{Threads: 7},
		HugePages: []stats.HugePages{{Size: "2MB", Usage: 1, Max: 2}},
		Processes: 3,
		Layer:     &stats.Layer{Time: time.Unix(90, 0), Mountpoint: "/images", Device: "/dev/sda", Bytes: 8192, InodesUsed: 2},
		Files:     &stats.Files{Open: 5, Sockets: 1, Limit: 1024},
		Interfaces: []stats.Interface{
			{Name: "net1", RxBytes: 1}, {Name: "eth0", RxBytes: 2, RxErrors: 3, TxBytes: 4, TxErrors: 5},
		},
	}
}

// statsNode has samples of the running container ca1 and its ready sandbox aaa1.
func statsNode(t *testing.T) *node {
	n := listNode(t)
	n.stats.samples["ca1"], n.stats.samples["aaa1"] = fullSample(), fullSample()
	n.runtime.sandboxes[0].Containers = []string{"ca1", "ca2"}
	return n
}

func TestContainerStatsSayWhatTheSampleSays(t *testing.T) {
	n := statsNode(t)
	resp, err := n.ContainerStats(testContext(t), &runtime.ContainerStatsRequest{ContainerId: "ca1"})
	if err != nil {
		t.Fatal(err)
	}
	const now = 100_000_000_005
	psi := &runtime.PsiStats{
		Some: &runtime.PsiData{Avg10: 1.5, Total: 7e9}, Full: &runtime.PsiData{Avg300: 0.5, Total: 3e9},
	}
	wantMessage(t, resp.Stats, &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{
			Id: "ca1", Metadata: &runtime.ContainerMetadata{Name: "main"}, Labels: map[string]string{"in": "aaa1", "c": "main"},
		},
		Cpu: &runtime.CpuUsage{
			Timestamp: now, UsageCoreNanoSeconds: number(5e9), UsageNanoCores: number(5e8), Psi: psi,
		},
		Memory: &runtime.MemoryUsage{
			Timestamp: now, WorkingSetBytes: number(8 << 20), AvailableBytes: number(56 << 20), UsageBytes: number(10 << 20),
			RssBytes: number(4 << 20), PageFaults: number(60), MajorPageFaults: number(2), Psi: psi,
		},
		Swap: &runtime.SwapUsage{
			Timestamp: now, SwapAvailableBytes: number(3 << 20), SwapUsageBytes: number(1 << 20),
		},
		Io: &runtime.IoUsage{Timestamp: now, Psi: psi},
		WritableLayer: &runtime.FilesystemUsage{
			Timestamp: 90e9, FsId: &runtime.FilesystemIdentifier{Mountpoint: "/images"},
			UsedBytes: number(8192), InodesUsed: number(2),
		},
	})
	if n.stats.maxAge != freshness {
		t.Errorf("a sample of the age %s was taken, want at most %s", n.stats.maxAge, freshness)
	}
}

// Who gave up is told that, and not that the container does not run.
func TestStatsForWhoGaveUp(t *testing.T) {
	n := listNode(t)
	clear(n.stats.samples)
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if _, err := n.ContainerStats(ctx, &runtime.ContainerStatsRequest{ContainerId: "ca1"}); status.Code(err) != codes.Canceled {
		t.Errorf("container: %v", err)
	}
	if _, err := n.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: "aaa1"}); status.Code(err) != codes.Canceled {
		t.Errorf("sandbox: %v", err)
	}
	if _, err := n.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("list: %v", err)
	}
}

// A kubelet evicts a pod by a list, whichever of the two it asks for.
func TestListsOfStatsCatchUpWithTheDisk(t *testing.T) {
	n, ctx := statsNode(t), testContext(t)
	if _, err := n.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{}); err != nil || n.stats.caughtUp != 1 {
		t.Errorf("containers: %v after %d", err, n.stats.caughtUp)
	}
	if _, err := n.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{}); err != nil || n.stats.caughtUp != 2 {
		t.Errorf("sandboxes: %v after %d", err, n.stats.caughtUp)
	}
}

// CPU and memory always have a time: a client drops the container without.
func TestStatsOfASampleWithoutAnything(t *testing.T) {
	n := listNode(t)
	n.stats.samples["ca1"] = &stats.Sample{Time: time.Unix(1, 0)}
	resp, err := n.ContainerStats(testContext(t), &runtime.ContainerStatsRequest{ContainerId: "ca1"})
	if err != nil {
		t.Fatal(err)
	}
	got := resp.Stats
	if got.Cpu.GetTimestamp() != 1e9 || got.Memory.GetTimestamp() != 1e9 || got.WritableLayer != nil || got.Swap != nil {
		t.Errorf("got %v", got)
	}
}

func TestSandboxStatsHaveTheContainersAndTheNetwork(t *testing.T) {
	n := statsNode(t)
	resp, err := n.PodSandboxStats(testContext(t), &runtime.PodSandboxStatsRequest{PodSandboxId: "aaa1"})
	if err != nil {
		t.Fatal(err)
	}
	linux := resp.Stats.Linux
	if len(linux.Containers) != 1 || linux.Containers[0].Attributes.Id != "ca1" {
		t.Errorf("got the containers %v, want the running one", linux.Containers)
	}
	if linux.Process.GetProcessCount().GetValue() != 3 || linux.Process.Timestamp == 0 || linux.Io.GetPsi() == nil {
		t.Errorf("got %v", linux)
	}
	wantMessage(t, linux.Network, &runtime.NetworkUsage{
		Timestamp: 100_000_000_005,
		DefaultInterface: &runtime.NetworkInterfaceUsage{
			Name: "eth0", RxBytes: number(2), RxErrors: number(3), TxBytes: number(4), TxErrors: number(5),
		},
		Interfaces: []*runtime.NetworkInterfaceUsage{{
			Name: "net1", RxBytes: number(1), RxErrors: number(0), TxBytes: number(0), TxErrors: number(0),
		}},
	})
	n.stats.samples["aaa1"].Interfaces = nil
	resp, err = n.PodSandboxStats(testContext(t), &runtime.PodSandboxStatsRequest{PodSandboxId: "aaa1"})
	if err != nil || resp.Stats.Linux.Network != nil {
		t.Errorf("got the network %v (%v) on the host's network", resp.GetStats().GetLinux().GetNetwork(), err)
	}
}

func TestStatsOfWhatIsNotThereOrDoesNotRun(t *testing.T) {
	n := statsNode(t)
	for id, want := range map[string]codes.Code{
		"": codes.InvalidArgument, "unknown": codes.NotFound, "ca2": codes.FailedPrecondition,
	} {
		_, err := n.ContainerStats(testContext(t), &runtime.ContainerStatsRequest{ContainerId: id})
		wantCode(t, err, want)
	}
	for id, want := range map[string]codes.Code{
		"": codes.InvalidArgument, "unknown": codes.NotFound, "aab2": codes.FailedPrecondition,
	} {
		_, err := n.PodSandboxStats(testContext(t), &runtime.PodSandboxStatsRequest{PodSandboxId: id})
		wantCode(t, err, want)
	}
}

func TestListContainerStatsFilters(t *testing.T) {
	n := statsNode(t)
	n.runtime.containers = append(n.runtime.containers, &sandbox.ContainerStatus{
		ID: "cd1", SandboxID: "ab", State: sandbox.ContainerRunning,
		Config: &runtime.ContainerConfig{Labels: map[string]string{"c": "main"}},
	})
	n.stats.samples["cd1"] = fullSample()
	label := func(value string) map[string]string { return map[string]string{"c": value} }
	for _, test := range []struct {
		name   string
		filter *runtime.ContainerStatsFilter
		want   []string
		code   codes.Code
	}{
		{"nil", nil, []string{"ca1", "cd1"}, codes.OK},
		{"id", &runtime.ContainerStatsFilter{Id: "ca1"}, []string{"ca1"}, codes.OK},
		{"id of one that does not run", &runtime.ContainerStatsFilter{Id: "ca2"}, nil, codes.OK},
		{"sandbox", &runtime.ContainerStatsFilter{PodSandboxId: "ab"}, []string{"cd1"}, codes.OK},
		{"labels", &runtime.ContainerStatsFilter{LabelSelector: label("main")}, []string{"ca1", "cd1"}, codes.OK},
		{"other labels", &runtime.ContainerStatsFilter{LabelSelector: label("x")}, nil, codes.OK},
		{"all of them", &runtime.ContainerStatsFilter{Id: "cd1", PodSandboxId: "ab", LabelSelector: label("main")},
			[]string{"cd1"}, codes.OK},
		{"that contradict", &runtime.ContainerStatsFilter{Id: "cd1", PodSandboxId: "aaa1"}, nil, codes.OK},
		{"ambiguous", &runtime.ContainerStatsFilter{Id: "c"}, nil, codes.InvalidArgument},
	} {
		resp, err := n.ListContainerStats(testContext(t), &runtime.ListContainerStatsRequest{Filter: test.filter})
		wantCode(t, err, test.code)
		var ids []string
		for _, s := range resp.GetStats() {
			ids = append(ids, s.Attributes.Id)
		}
		if !slices.Equal(ids, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, ids, test.want)
		}
	}
	if n.stats.maxAge != stats.AnyAge {
		t.Errorf("a list wanted samples of the age %s", n.stats.maxAge)
	}
}

func TestListSandboxStatsFilters(t *testing.T) {
	n := statsNode(t)
	for _, test := range []struct {
		name   string
		filter *runtime.PodSandboxStatsFilter
		want   []string
	}{
		{"nil is all that are ready", nil, []string{"aaa1"}},
		{"id", &runtime.PodSandboxStatsFilter{Id: "aaa"}, []string{"aaa1"}},
		{"not ready", &runtime.PodSandboxStatsFilter{Id: "aab2"}, nil},
		{"labels", &runtime.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "one"}}, []string{"aaa1"}},
		{"other labels", &runtime.PodSandboxStatsFilter{Id: "aaa1", LabelSelector: map[string]string{"app": "two"}}, nil},
	} {
		resp, err := n.ListPodSandboxStats(testContext(t), &runtime.ListPodSandboxStatsRequest{Filter: test.filter})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		var ids []string
		for _, s := range resp.GetStats() {
			ids = append(ids, s.Attributes.Id)
			if len(s.Linux.Containers) != 1 {
				t.Errorf("%s: sandbox %s has %d containers", test.name, s.Attributes.Id, len(s.Linux.Containers))
			}
		}
		if !slices.Equal(ids, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, ids, test.want)
		}
	}
}

// Lists send a form of each sample. To a client it is the message, whether the sample brings it or not.
func TestListsSendTheMessages(t *testing.T) {
	n := statsNode(t)
	ctx := testContext(t)
	pod, container := n.runtime.sandboxes[0], n.runtime.containers[0]
	for _, brings := range []bool{false, true} {
		ofPod, ofContainer := fullSample(), fullSample()
		if brings { // another than its own, to tell which one was sent
			ofContainer.CPU.Usage++
			ofPod.Processes++
			ofContainer.Form, ofPod.Form = ContainerForm(container, ofContainer, stats.Form{}), SandboxForm(pod, ofPod, stats.Form{})
		}
		wantContainer := containerStats(container, ofContainer)
		wantPod := sandboxStats(pod, ofPod, []*runtime.ContainerStats{wantContainer})
		if brings {
			ofContainer.CPU.Usage--
			ofPod.Processes--
		}
		n.stats.samples[container.ID], n.stats.samples[pod.ID] = ofContainer, ofPod
		containers, err := n.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		wantMessage(t, containers, &runtime.ListContainerStatsResponse{Stats: []*runtime.ContainerStats{wantContainer}})
		pods, err := n.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		wantMessage(t, pods, &runtime.ListPodSandboxStatsResponse{Stats: []*runtime.PodSandboxStats{wantPod}})
		stream, err := n.StreamPodSandboxStats(ctx, &runtime.StreamPodSandboxStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		batch, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		wantMessage(t, batch, &runtime.StreamPodSandboxStatsResponse{PodSandboxStats: pods.Stats})
	}
}

func TestStreamedStatsGiveEachItemOnce(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	const count = 40
	large := strings.Repeat("x", batchBytes/10)
	for i := range count {
		id := strconv.Itoa(1000 + i)
		config := sandboxConfig(id)
		config.Metadata.Name = id + large // metrics carry it in every label
		config.Annotations = map[string]string{"large": large}
		n.runtime.sandboxes = append(n.runtime.sandboxes, &sandbox.SandboxStatus{
			ID: id, Config: config, State: sandbox.SandboxReady,
		})
		n.runtime.containers = append(n.runtime.containers, &sandbox.ContainerStatus{
			ID: id, SandboxID: id, State: sandbox.ContainerRunning,
			Config: &runtime.ContainerConfig{Annotations: config.Annotations},
		})
		n.stats.samples[id] = &stats.Sample{Time: time.Unix(1, 0), Tasks: &stats.Tasks{}}
	}
	containers, err := n.StreamContainerStats(ctx, &runtime.StreamContainerStatsRequest{})
	checkStream(t, count, err, func() (ids []string, err error) {
		resp, err := containers.Recv()
		for _, item := range resp.GetContainerStats() {
			ids = append(ids, item.Attributes.Id)
		}
		return ids, err
	})
	sandboxes, err := n.StreamPodSandboxStats(ctx, &runtime.StreamPodSandboxStatsRequest{})
	checkStream(t, count, err, func() (ids []string, err error) {
		resp, err := sandboxes.Recv()
		for _, item := range resp.GetPodSandboxStats() {
			ids = append(ids, item.Attributes.Id)
		}
		return ids, err
	})
	metrics, err := n.StreamPodSandboxMetrics(ctx, &runtime.StreamPodSandboxMetricsRequest{})
	checkStream(t, count, err, func() (ids []string, err error) {
		resp, err := metrics.Recv()
		for _, item := range resp.GetPodSandboxMetrics() {
			ids = append(ids, item.PodSandboxId)
		}
		return ids, err
	})
}

package cri

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/stats"
)

func TestMetricsFitTheirDescriptions(t *testing.T) {
	n := statsNode(t)
	described, err := n.ListMetricDescriptors(testContext(t), &runtime.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range described.Descriptors {
		if d.Help == "" || keys[d.Name] != nil {
			t.Errorf("%s has no help, or is there twice", d.Name)
		}
		keys[d.Name] = d.LabelKeys
		sorted := slices.Sorted(slices.Values(d.LabelKeys))
		if len(slices.Compact(sorted)) != len(d.LabelKeys) {
			t.Errorf("%s has a label twice: %v", d.Name, d.LabelKeys)
		}
	}
	if len(keys) != 58 {
		t.Errorf("%d metrics are described, want 58", len(keys))
	}
	resp, err := n.ListPodSandboxMetrics(testContext(t), &runtime.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.PodMetrics) != 1 || len(resp.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("got %v, want one sandbox with one container", resp.PodMetrics)
	}
	pod := resp.PodMetrics[0]
	seen, names := map[string]bool{}, map[string]bool{}
	for _, m := range slices.Concat(pod.Metrics, pod.ContainerMetrics[0].Metrics) {
		series := m.Name + strings.Join(m.LabelValues, "\x00")
		if m.Value == nil || m.Timestamp != 100_000_000_005 || len(m.LabelValues) != len(keys[m.Name]) || seen[series] {
			t.Errorf("metric %v does not fit %v, or is there twice", m, keys[m.Name])
		}
		seen[series], names[m.Name] = true, true
	}
	for name := range keys {
		if !names[name] {
			t.Errorf("%s has no value although the sample has everything", name)
		}
	}
}

// received are the metrics of a subject as a client has them.
func received(t *testing.T, s *subject) []*runtime.Metric {
	t.Helper()
	var m runtime.ContainerMetrics
	if err := new(sentMetrics).of(s, &m); err != nil {
		t.Fatal(err)
	}
	form, err := proto.Marshal(&m)
	if err != nil {
		t.Fatal(err)
	}
	var got runtime.ContainerMetrics
	if err := proto.Unmarshal(form, &got); err != nil || len(got.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("%v, of unknown fields %q", err, got.ProtoReflect().GetUnknown())
	}
	return got.Metrics
}

// What is sent is what the table of metrics says, with every field and in its order.
func TestMetricsAreSentAsMessages(t *testing.T) {
	n := statsNode(t)
	for _, sample := range []*stats.Sample{fullSample(), {}} {
		s := sandboxSubject(n.runtime.sandboxes[0], sample)
		var want []*runtime.Metric
		for _, m := range metrics {
			m.values(s, func(value uint64, labels ...string) {
				want = append(want, &runtime.Metric{
					Name: m.name, Timestamp: s.Time.UnixNano(), MetricType: m.kind, LabelValues: slices.Concat(s.labels, labels),
					Value: number(value),
				})
			})
		}
		wantMessage(t, &runtime.ContainerMetrics{Metrics: received(t, s)}, &runtime.ContainerMetrics{Metrics: want})
	}
}

func TestMetricsThatCannotBeEncodedFailTheList(t *testing.T) {
	n := statsNode(t)
	n.runtime.sandboxes[0].CgroupParent = "/not\xffUTF-8"
	if resp, err := n.ListPodSandboxMetrics(testContext(t), &runtime.ListPodSandboxMetricsRequest{}); err == nil {
		t.Errorf("got %v", resp)
	}
}

func TestValuesOfMetrics(t *testing.T) {
	n := statsNode(t)
	pod, c := n.runtime.sandboxes[0], n.runtime.containers[0]
	c.Started, c.CgroupPath = time.Unix(42, 0), "/pod/ca1"
	c.Config.Image = &runtime.ImageSpec{Image: "sha256:1", UserSpecifiedImage: "shop/web:1"}
	got := map[string]uint64{}
	for _, m := range received(t, containerSubject(pod, c, fullSample())) {
		if !slices.Equal(m.LabelValues[:6], []string{"main", "/pod/ca1", "shop/web:1", "ca1", "shop", "one"}) {
			t.Fatalf("%s has the labels %v", m.Name, m.LabelValues)
		}
		got[strings.Join(append([]string{m.Name}, m.LabelValues[6:]...), " ")] = m.Value.Value
	}
	for series, want := range map[string]uint64{
		"container_cpu_usage_seconds_total total":              5,
		"container_cpu_cfs_throttled_seconds_total":            2,
		"container_start_time_seconds":                         42,
		"container_last_seen":                                  100,
		"container_pressure_io_waiting_seconds_total":          7,
		"container_pressure_cpu_stalled_seconds_total":         3,
		"container_memory_failures_total pgmajfault hierarchy": 2,
		"container_spec_memory_swap_limit_bytes":               68 << 20,
		"container_fs_usage_bytes /dev/sda":                    8192,
		"container_blkio_device_usage_total /dev/sda 8 0 Read": 4096,
		"container_blkio_device_usage_total 8:16 8 16 Read":    0,
		"container_network_receive_bytes_total eth0":           2,
		"container_ulimits_soft max_open_files":                1024,
		"container_hugetlb_max_usage_bytes 2MB":                2,
	} {
		if value, ok := got[series]; !ok || value != want {
			t.Errorf("%s is %d (%t), want %d", series, value, ok, want)
		}
	}
}

func TestMetricsWithoutFiguresAreLeftOut(t *testing.T) {
	n := statsNode(t)
	empty := &stats.Sample{Time: time.Unix(1, 0), CPU: &stats.CPU{}, Memory: &stats.Memory{}}
	for _, m := range received(t, sandboxSubject(n.runtime.sandboxes[0], empty)) {
		for _, prefix := range []string{
			"container_cpu_cfs", "container_spec_cpu_quota", "container_memory_swap", "container_spec_memory_swap",
			"container_pressure", "container_fs", "container_blkio", "container_network", "container_hugetlb", "container_threads",
		} {
			if strings.HasPrefix(m.Name, prefix) {
				t.Errorf("%s has the value %d of nothing", m.Name, m.Value.Value)
			}
		}
	}
	bare := received(t, sandboxSubject(n.runtime.sandboxes[0], &stats.Sample{}))
	if len(bare) != 3 {
		t.Errorf("got %v of a sample without anything", bare)
	}
}

package spec

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResources(t *testing.T) {
	v2 := Node{CgroupV2: true, SwapAccounting: true, HugePageSizes: []string{"2MB"}}
	for _, tc := range []struct {
		name   string
		limits *runtime.LinuxContainerResources
		node   Node
		want   string
	}{
		{"nil", nil, v2, `{}`},
		{"unlimited quota", &runtime.LinuxContainerResources{CpuQuota: -1}, v2, `{"cpu":{"quota":-1}}`},
		{"few shares", &runtime.LinuxContainerResources{CpuShares: 1}, v2, `{"cpu":{"shares":2}}`},
		{"many shares", &runtime.LinuxContainerResources{CpuShares: 1 << 40}, v2, `{"cpu":{"shares":262144}}`},
		{"cpusets", &runtime.LinuxContainerResources{CpusetCpus: "0-3,7", CpusetMems: "0"}, v2,
			`{"cpu":{"cpus":"0-3,7","mems":"0"}}`},
		{"no swap", &runtime.LinuxContainerResources{MemoryLimitInBytes: 8 << 20, MemorySwapLimitInBytes: 8 << 20}, v2,
			`{"memory":{"limit":8388608,"swap":8388608}}`},
		{"swap unset", &runtime.LinuxContainerResources{MemoryLimitInBytes: 8 << 20}, v2, `{"memory":{"limit":8388608}}`},
		{"swap without accounting", &runtime.LinuxContainerResources{
			MemoryLimitInBytes: 8 << 20, MemorySwapLimitInBytes: 9 << 20,
		}, Node{}, `{"memory":{"limit":8388608}}`},
		{"huge pages", &runtime.LinuxContainerResources{HugepageLimits: []*runtime.HugepageLimit{
			{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 2}, {PageSize: "2MB", Limit: 3},
		}}, v2, `{"hugepageLimits":[{"pageSize":"2MB","limit":3}]}`},
		{"unified", &runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}, v2,
			`{"unified":{"memory.high":"max"}}`},
		{"unified on version 1", &runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}, Node{},
			`{}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resources, err := Resources(tc.limits, tc.node)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := json.Marshal(resources); string(got) != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestMergeResources(t *testing.T) {
	base := &runtime.LinuxContainerResources{
		CpuShares: 100, CpuQuota: 5000, MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 130, CpusetCpus: "0",
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 2}},
		Unified:        map[string]string{"a.b": "1", "c.d": "2"},
	}
	update := &runtime.LinuxContainerResources{
		CpuQuota: -1, MemoryLimitInBytes: 200, CpusetMems: "1",
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 9}},
		Unified:        map[string]string{"c.d": "3", "e.f": "4"},
	}
	want := &runtime.LinuxContainerResources{
		CpuShares: 100, CpuQuota: -1, MemoryLimitInBytes: 200, MemorySwapLimitInBytes: 230, CpusetCpus: "0", CpusetMems: "1",
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "1GB", Limit: 2}, {PageSize: "2MB", Limit: 9}},
		Unified:        map[string]string{"a.b": "1", "c.d": "3", "e.f": "4"},
	}
	baseBefore, updateBefore := proto.Clone(base), proto.Clone(update)
	got := MergeResources(base, update)
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if !proto.Equal(MergeResources(got, update), got) {
		t.Errorf("the same update again changes %v to %v", got, MergeResources(got, update))
	}
	if !proto.Equal(base, baseBefore) || !proto.Equal(update, updateBefore) {
		t.Error("the arguments were changed")
	}
	got.Unified["x"], got.HugepageLimits[1].Limit = "y", 77
	if !proto.Equal(base, baseBefore) || !proto.Equal(update, updateBefore) {
		t.Error("the result shares memory with the arguments")
	}
	if !proto.Equal(MergeResources(nil, base), base) || !proto.Equal(MergeResources(base, nil), base) {
		t.Error("nil is not neutral")
	}
	if MergeResources(nil, nil) == nil {
		t.Error("nothing merged is nil")
	}
}

func TestOOMScoreIsNotBelowTheNodesFloor(t *testing.T) {
	for _, tc := range []struct{ asked, floor, want int64 }{
		{-997, -1000, -997}, {-997, 0, 0}, {0, 200, 200}, {1000, 0, 1000},
	} {
		in := minimal()
		in.Node.OOMScoreFloor = int(tc.floor)
		in.Config.Linux = &runtime.LinuxContainerConfig{Resources: &runtime.LinuxContainerResources{OomScoreAdj: tc.asked}}
		if spec, _ := mustBuild(t, in); int64(*spec.Process.OOMScoreAdj) != tc.want {
			t.Errorf("%d above %d: got %d, want %d", tc.asked, tc.floor, *spec.Process.OOMScoreAdj, tc.want)
		}
	}
}

package sandbox

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRunRefusesBadConfigurations(t *testing.T) {
	r := newRig(t)
	linux := func(change func(*runtime.LinuxPodSandboxConfig)) func(*runtime.PodSandboxConfig) {
		return func(c *runtime.PodSandboxConfig) {
			c.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{}}
			change(c.Linux)
		}
	}
	for field, change := range map[string]func(*runtime.PodSandboxConfig){
		"config.metadata.name":      func(c *runtime.PodSandboxConfig) { c.Metadata = nil },
		"config.metadata.namespace": func(c *runtime.PodSandboxConfig) { c.Metadata.Namespace = "" },
		"config.metadata.uid":       func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = "" },
		"config.hostname":           func(c *runtime.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) },
		`config.hostname "a\n"`:     func(c *runtime.PodSandboxConfig) { c.Hostname = "a\n" },
		"config.log_directory":      func(c *runtime.PodSandboxConfig) { c.LogDirectory = "logs" },
		"config.port_mappings[0].host_port is -1": func(c *runtime.PodSandboxConfig) {
			c.PortMappings = []*runtime.PortMapping{{HostPort: -1}}
		},
		"config.port_mappings[1].container_port is 65536": func(c *runtime.PodSandboxConfig) {
			c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80}, {ContainerPort: 65536}}
		},
		"config.linux.overhead.cpu_shares": linux(func(l *runtime.LinuxPodSandboxConfig) {
			l.Overhead = &runtime.LinuxContainerResources{CpuShares: -1}
		}),
		"config.linux.resources.memory_swap_limit_in_bytes": linux(func(l *runtime.LinuxPodSandboxConfig) {
			l.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 9}
		}),
		"run_as_group": linux(func(l *runtime.LinuxPodSandboxConfig) {
			l.SecurityContext.RunAsGroup = &runtime.Int64Value{Value: 1}
		}),
		"namespace_options.ipc": linux(func(l *runtime.LinuxPodSandboxConfig) {
			l.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Ipc: runtime.NamespaceMode_CONTAINER}
		}),
		"namespace_options.pid": linux(func(l *runtime.LinuxPodSandboxConfig) {
			l.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET}
		}),
	} {
		config := podConfig("bad")
		change(config)
		_, err := r.m.Run(context.Background(), config, "")
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), field) {
			t.Errorf("got %v, expected it to name %s", err, field)
		}
	}
	r.nothingLeft()
}

func TestUpdateOfASandboxIsKept(t *testing.T) {
	r := newRig(t)
	config := podConfig("a")
	first := &runtime.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}
	overhead := &runtime.LinuxContainerResources{MemoryLimitInBytes: 1}
	config.Linux.Resources, config.Linux.Overhead = first, overhead
	id, err := r.m.Run(context.Background(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	want := func(resources *runtime.LinuxContainerResources) {
		t.Helper()
		st, err := r.m.Sandbox(id)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(st.Resources, resources) || !proto.Equal(st.Overhead, overhead) || !proto.Equal(st.Config, config) {
			t.Errorf("resources %v, overhead %v, expected %v and %v", st.Resources, st.Overhead, resources, overhead)
		}
	}
	update := func(overhead, resources *runtime.LinuxContainerResources) error {
		return r.m.UpdateSandbox(context.Background(), id[:10], overhead, resources)
	}
	want(first)
	second := &runtime.LinuxContainerResources{CpuShares: 2, CpuQuota: 1000, MemoryLimitInBytes: 128 << 20}
	for range 2 { // the same again changes nothing
		if err := update(nil, second); err != nil {
			t.Fatal(err)
		}
		want(second)
	}
	for field, bad := range map[string]*runtime.LinuxContainerResources{
		"resources.memory_limit_in_bytes": {MemoryLimitInBytes: -1},
		"resources.cpu_quota":             {CpuQuota: -2},
		"resources.cpu_period":            {CpuPeriod: 1000001},
		"resources.cpuset_cpus":           {CpusetCpus: "3-1"},
		"resources.oom_score_adj":         {OomScoreAdj: 1001},
	} {
		err := update(nil, bad)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), field) {
			t.Errorf("got %v, expected it to name %s", err, field)
		}
	}
	want(second)
	r.restart()
	want(second)
	// The old values, which have no quota, take the new ones back; messages without a value change nothing.
	if err := update(&runtime.LinuxContainerResources{}, first); err != nil {
		t.Fatal(err)
	}
	want(first)
	if err := update(nil, &runtime.LinuxContainerResources{}); err != nil {
		t.Fatal(err)
	}
	want(first)
}

// An update writes the record that the stop mark is in.
func TestUpdatesDoNotUndoAStop(t *testing.T) {
	for range 20 {
		r := newRig(t)
		id := r.run("a")
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				resources := &runtime.LinuxContainerResources{CpuShares: int64(2 + i)}
				if err := r.m.UpdateSandbox(context.Background(), id, nil, resources); err != nil && !errdefs.IsFailedPrecondition(err) {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if err := r.m.Stop(context.Background(), id); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if err := r.m.UpdateSandbox(context.Background(), id, nil, nil); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("update of a stopped sandbox: %v", err)
		}
		rec, _, err := loadSandboxRecord(r.m.sandboxDir(id))
		if err != nil || !rec.Stopped {
			t.Fatalf("record %+v, %v: the stop mark is lost", rec, err)
		}
	}
}

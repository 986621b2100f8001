//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// limitMemory does what the kubelet does in a resize: it writes the limit of the pod's cgroup.
func (p *pod) limitMemory(t *testing.T, bytes int) {
	t.Helper()
	file := filepath.Join(cgroupTop, "memory", p.config.Linux.CgroupParent, "memory.limit_in_bytes")
	if cgroupV2() {
		file = filepath.Join(cgroupTop, p.config.Linux.CgroupParent, "memory.max")
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(bytes)), 0); err != nil {
		t.Fatal(err)
	}
}

// verbose is what a verbose status says of the pod.
func (p *pod) verbose(t *testing.T) string {
	t.Helper()
	status, err := p.node.Runtime.PodSandboxStatus(timeout(t), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return status.Info["info"]
}

// A resize as the kubelet does it: the runtime is asked first, then the cgroup is written; what it refuses is taken back
// with the old values.
func TestResizeOfAPod(t *testing.T) {
	const mi = 1 << 20
	p := runPod(t)
	eater := p.start(t, "eater", "head -c 40000000 /dev/zero > /dev/shm/f && echo full > /tmp/full; sleep 1000")
	eventually(t, "the memory is in use", func() bool { return eater.execSync(t, 20, "test", "-e", "/tmp/full").ExitCode == 0 })
	resize := func(limit int64) error {
		_, err := p.node.Runtime.UpdatePodSandboxResources(timeout(t), &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.id, Overhead: &runtime.LinuxContainerResources{},
			Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: limit, CpuShares: 2},
		})
		return err
	}
	noted := func(limit int) {
		t.Helper()
		want := `"resources":{"cpu_shares":"2","memory_limit_in_bytes":"` + strconv.Itoa(limit) + `"}`
		if info := p.verbose(t); !strings.Contains(info, want) {
			t.Errorf("verbose status is %s, expected %s in it", info, want)
		}
	}
	// There is no limit in force, so the sum that is sent is not one either.
	if err := resize(8 * mi); err != nil {
		t.Error(err)
	}
	noted(8 * mi)
	if err := resize(96 * mi); err != nil {
		t.Error(err)
	}
	p.limitMemory(t, 96*mi)
	wantCode(t, resize(16*mi), codes.FailedPrecondition, "memory_limit_in_bytes is "+strconv.Itoa(16*mi))
	noted(96 * mi)
	wantCode(t, resize(-1), codes.InvalidArgument, "resources.memory_limit_in_bytes")
	for range 2 {
		if err := resize(64 * mi); err != nil {
			t.Error(err)
		}
		noted(64 * mi)
	}
	if err := resize(96 * mi); err != nil { // the kubelet could not write the cgroup
		t.Error(err)
	}
	shared.Kill()
	restart(t)
	noted(96 * mi)
	eater.exec(t, "rm /dev/shm/f")
	eventually(t, "a resize to less", func() bool { return resize(16*mi) == nil })
	noted(16 * mi)
}

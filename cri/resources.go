package cri

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// UpdateContainerResources changes the limits of a container; fields that are zero stay as they are.
func (s *Server) UpdateContainerResources(
	ctx context.Context, req *runtime.UpdateContainerResourcesRequest,
) (*runtime.UpdateContainerResourcesResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	resources := req.GetLinux()
	if resources == nil {
		resources = &runtime.LinuxContainerResources{}
	}
	if err := s.runtime.UpdateContainer(ctx, req.GetContainerId(), resources); err != nil {
		return nil, err
	}
	return &runtime.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources notes the new size of a pod. The kubelet asks before it writes the pod's cgroup, which is
// its own; an error rejects the resize, and the call is made again with the old values to take it back. So it says no
// only to what cannot be meant or cannot work, and never to a size that is in force.
func (s *Server) UpdatePodSandboxResources(
	ctx context.Context, req *runtime.UpdatePodSandboxResourcesRequest,
) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	status, err := s.readySandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := s.checkPodMemory(ctx, status, req.GetOverhead(), req.GetResources()); err != nil {
		return nil, err
	}
	if err := s.runtime.UpdateSandbox(ctx, status.ID, req.GetOverhead(), req.GetResources()); err != nil {
		return nil, err
	}
	return &runtime.UpdatePodSandboxResourcesResponse{}, nil
}

// checkPodMemory refuses a limit below what the pod uses just now and cannot give back, which would have processes of
// it killed. Only a pod whose cgroup has a limit is meant, and only a lower one: the sum that is sent leaves out
// containers without a limit, and if there is one the pod has none either. A cgroup that several sandboxes share says
// nothing of one.
func (s *Server) checkPodMemory(
	ctx context.Context, status *sandbox.SandboxStatus, overhead, resources *runtime.LinuxContainerResources,
) error {
	if overhead.GetMemoryLimitInBytes() == 0 {
		overhead = status.Overhead
	}
	want := uint64(max(resources.GetMemoryLimitInBytes(), 0))
	if want == 0 || s.sharesCgroup(status) {
		return nil
	}
	want += uint64(max(overhead.GetMemoryLimitInBytes(), 0))
	sample := s.stats.Sandbox(ctx, status, 0)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("look at what the pod uses: %w", err)
	}
	if sample == nil || sample.Memory == nil || want >= sample.Memory.Limit || want >= sample.Memory.WorkingSet {
		return nil
	}
	return fmt.Errorf("resources.memory_limit_in_bytes is %d, with overhead %d, expected at least the %d bytes that the "+
		"pod's working set has now: %w", resources.GetMemoryLimitInBytes(), want, sample.Memory.WorkingSet,
		errdefs.ErrFailedPrecondition)
}

// sharesCgroup reports whether another ready sandbox is in the same cgroup.
func (s *Server) sharesCgroup(status *sandbox.SandboxStatus) bool {
	return slices.ContainsFunc(s.runtime.Sandboxes(), func(other *sandbox.SandboxStatus) bool {
		return other.ID != status.ID && other.State == sandbox.SandboxReady && other.CgroupParent == status.CgroupParent
	})
}

// readySandbox returns the sandbox with that id, or an error if it is not ready.
func (s *Server) readySandbox(id string) (*sandbox.SandboxStatus, error) {
	if err := required("pod_sandbox_id", id); err != nil {
		return nil, err
	}
	status, err := s.runtime.Sandbox(id)
	if err != nil {
		return nil, err
	}
	if status.State != sandbox.SandboxReady {
		return nil, fmt.Errorf("sandbox %s is %s, expected %s: %w",
			status.ID, status.State, sandbox.SandboxReady, errdefs.ErrFailedPrecondition)
	}
	return status, nil
}

// runningContainer returns the container with that id, or an error if it is not running.
func (s *Server) runningContainer(id string) (*sandbox.ContainerStatus, error) {
	if err := required("container_id", id); err != nil {
		return nil, err
	}
	status, err := s.runtime.Container(id)
	if err != nil {
		return nil, err
	}
	if status.State != sandbox.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, expected %s: %w",
			status.ID, status.State, sandbox.ContainerRunning, errdefs.ErrFailedPrecondition)
	}
	return status, nil
}

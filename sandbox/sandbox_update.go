package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// UpdateSandbox notes what a ready sandbox is to use from now on: its overhead and the sum of its containers' limits.
// Each replaces what was noted before, so that the old values undo the new ones; one that is nil or has no field set
// leaves it. Nothing is limited by them: the sandbox's cgroup is the kubelet's.
func (m *Manager) UpdateSandbox(
	ctx context.Context, id string, overhead, resources *runtime.LinuxContainerResources,
) error {
	s, err := m.findSandbox(id)
	if err != nil {
		return err
	}
	if err := spec.CheckPodResources("overhead", overhead); err != nil {
		return err
	}
	if err := spec.CheckPodResources("resources", resources); err != nil {
		return err
	}
	if err := s.updating.next(ctx, func() error { return s.update(overhead, resources) }); err != nil {
		return fmt.Errorf("update sandbox %s: %w", s.id, err)
	}
	return nil
}

func (s *Sandbox) update(overhead, resources *runtime.LinuxContainerResources) error {
	st := *s.Status()
	if st.State != SandboxReady {
		return fmt.Errorf("it is %s, expected ready: %w", st.State, errdefs.ErrFailedPrecondition)
	}
	if isSet(overhead) {
		st.Overhead = overhead
	}
	if isSet(resources) {
		st.Resources = resources
	}
	// A stop that begins now waits for this before it writes its mark.
	if err := s.save(&st, true, false); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setLocked(func(now *SandboxStatus) { now.Overhead, now.Resources = st.Overhead, st.Resources })
	return nil
}

// isSet reports whether a message has any field.
func isSet(r *runtime.LinuxContainerResources) bool {
	return r != nil && proto.Size(r) > 0
}

package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/spec"
)

// UpdateContainer changes the limits of a created or running container; fields that are zero stay as they are. When it
// fails the limits are as before.
func (m *Manager) UpdateContainer(ctx context.Context, id string, resources *runtime.LinuxContainerResources) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	if resources == nil {
		return fmt.Errorf("linux: expected the resources to set: %w", errdefs.ErrInvalidArgument)
	}
	if err := c.updating.next(ctx, func() error { return c.update(resources) }); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}

func (c *Container) update(resources *runtime.LinuxContainerResources) error {
	ctx, cancel := background(startTimeout)
	defer cancel()
	_ = c.starting.wait(ctx)
	st := *c.Status()
	if st.State != ContainerCreated && st.State != ContainerRunning {
		return fmt.Errorf("it is %s, expected created or running: %w", st.State, errdefs.ErrFailedPrecondition)
	}
	before, score := st.Resources, resources.GetOomScoreAdj() != 0
	st.Resources = spec.MergeResources(before, resources)
	limits, err := spec.Resources(st.Resources, c.m.node)
	if err != nil {
		return err
	}
	if st.State == ContainerRunning {
		if err := c.m.keeper.update(ctx, c.updateRequest(limits, st.Resources, score)); err != nil {
			return err
		}
	}
	if err := c.save(&st, true); err != nil {
		return errors.Join(err, c.undoUpdate(ctx, st.State, before, score))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.built = nil
	c.setLocked(func(now *ContainerStatus) { now.Resources = st.Resources })
	return nil
}

// updateRequest asks for limits, which are resources translated. The OOM score is set only where the update has one:
// processes may have changed their own since.
func (c *Container) updateRequest(
	limits *specs.LinuxResources, resources *runtime.LinuxContainerResources, score bool,
) keeper.UpdateRequest {
	req := keeper.UpdateRequest{ID: c.id, Resources: limits}
	if score {
		adj := max(int(resources.GetOomScoreAdj()), c.m.node.OOMScoreFloor)
		req.OOMScoreAdj = &adj
	}
	return req
}

// undoUpdate puts the limits of before back when the new ones could not be written down.
func (c *Container) undoUpdate(
	ctx context.Context, state ContainerState, before *runtime.LinuxContainerResources, score bool,
) error {
	if state != ContainerRunning {
		return nil
	}
	limits, err := spec.Resources(before, c.m.node)
	if err != nil {
		return err
	}
	if err := c.m.keeper.update(ctx, c.updateRequest(limits, before, score)); err != nil {
		return fmt.Errorf("put the limits back: %w", err)
	}
	return nil
}

// ReopenLog makes the container's output go to a new file at its log path.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	if st := c.Status(); st.State != ContainerRunning {
		return fmt.Errorf("reopen the log of container %s: it is %s, expected running: %w", c.id, st.State,
			errdefs.ErrFailedPrecondition)
	}
	if err := m.keeper.reopen(ctx, keeper.ReopenRequest{ID: c.id}); err != nil {
		return fmt.Errorf("reopen the log of container %s: %w", c.id, err)
	}
	return nil
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/trace"
)

// startTimeout bounds the start of a process: mounts from a slow disk are the longest part.
const startTimeout = 2 * time.Minute

// exitCodeStartError is the exit code of a container whose process could not be started.
const exitCodeStartError = 128

// StartContainer starts the container's process. A start that fails leaves the container exited with code 128 and
// reason StartError.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	trace.About(ctx, c.subject())
	if st := c.Status(); st.State != ContainerCreated {
		return fmt.Errorf("start container %s: it is %s, expected created: %w", c.id, st.State, errdefs.ErrFailedPrecondition)
	}
	if err := c.starting.do(ctx, func() error { return c.start(ctx) }); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	return nil
}

// start does what StartContainer asked for, once. Of caller it takes the timeline only.
func (c *Container) start(caller context.Context) error {
	if st := c.Status(); st.State != ContainerCreated {
		if st.State == ContainerRunning {
			return nil // a joined call was quicker
		}
		return fmt.Errorf("it is %s, expected created: %w", st.State, errdefs.ErrFailedPrecondition)
	}
	if st := c.s.Status(); st.State != SandboxReady {
		return fmt.Errorf("sandbox %s is %s, expected ready: %w", st.ID, st.State, errdefs.ErrFailedPrecondition)
	}
	ctx, done := c.work(caller, startTimeout)
	defer done()
	reply, err := c.startSteps(ctx)
	if err == nil {
		err := c.processStarted(reply.PID, reply.Started, containerUser(reply.User))
		if c.Status().State != ContainerRunning {
			c.m.keeper.drop(c.id) // it was quicker than the answer to its start
		}
		return err
	}
	if errors.Is(err, errdefs.ErrUnavailable) {
		// The keeper died in the middle. Whether the process runs is what the next keeper finds on disk.
		return err
	}
	if ctx.Err() != nil && c.startTried.Load() {
		// The keeper was left in the middle of it. What it made goes before a stop is told that nothing runs.
		undo, cancel := background(teardownTimeout)
		err = errors.Join(err, c.deleteProcess(undo))
		cancel()
	}
	return errors.Join(err, c.startFailed(err))
}

func (c *Container) startSteps(ctx context.Context) (keeper.StartReply, error) {
	c.mu.Lock()
	b := c.built
	c.mu.Unlock()
	if b == nil {
		var err error
		if b, _, err = c.prepare(ctx); err != nil {
			return keeper.StartReply{}, err
		}
	}
	steps := trace.Steps(ctx)
	defer steps.End()
	st := c.Status()
	if st.LogPath != "" {
		steps.Next("make log directory")
		// The kubelet makes the directory; for others it is made here.
		if err := os.MkdirAll(filepath.Dir(st.LogPath), 0o755); err != nil {
			return keeper.StartReply{}, fmt.Errorf("make log directory: %w", err)
		}
	}
	c.startTried.Store(true)
	start := keeper.StartRequest{
		ID: c.id, Dir: c.dir(), Spec: b.spec, Rootfs: b.rootfs,
		User:          keeper.User{User: b.user.User, Group: b.user.Group, Groups: b.user.Groups, Strict: b.user.Strict},
		SystemdCgroup: c.m.config.CgroupDriver == DriverSystemd,
		LogPath:       st.LogPath,
		Stdin:         st.Config.GetStdin(),
		StdinOnce:     st.Config.GetStdinOnce(),
	}
	ctx = steps.Next("ask the keeper")
	if c.restores() {
		return c.resume(ctx, start)
	}
	return c.m.keeper.start(ctx, start)
}

// startFailed makes the container exited. The keeper tells why in status.json, unless the start ended before it.
func (c *Container) startFailed(cause error) error {
	k, err := keeper.ReadStatus(c.dir())
	if err != nil || !k.Exited() {
		k = &keeper.Status{ExitCode: exitCodeStartError, Finished: time.Now(), Error: cause.Error()}
	}
	failed := *c.Status()
	applyExit(&failed, k)
	if err := c.save(&failed, true); err != nil {
		klog.ErrorS(err, "Record of a failed start could not be written", "container", c.id)
	}
	return c.transition(ContainerExited, func(st *ContainerStatus) { applyExit(st, k) })
}

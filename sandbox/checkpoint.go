package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/checkpoint"
	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// checkpointTimeout bounds a checkpoint for which the caller names no timeout.
const checkpointTimeout = 10 * time.Minute

// checkpointsDir, below the root, is where a container is captured to before it is made an archive. What is there at
// start is of a daemon that was killed.
const checkpointsDir = "checkpoints"

// CheckpointContainer writes the state of a running container as a tar (see package checkpoint) to location, an
// absolute path in a directory that exists. The container is frozen while it is captured and then goes on, also after
// an error, which leaves no file. timeout 0 means ten minutes.
//
// Errors: errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition when the container does not run or cannot be
// captured, or CRIU is missing; context.DeadlineExceeded when ctx or timeout ended.
func (m *Manager) CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	if err := checkLocation(location); err != nil {
		return err
	}
	if timeout == 0 {
		timeout = checkpointTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := c.checkpoint(ctx, location); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", c.id, err)
	}
	return nil
}

// checkLocation refuses what cannot become an archive before anything is frozen.
func checkLocation(location string) error {
	invalid := func(expected string) error {
		return fmt.Errorf("location %q: expected %s: %w", location, expected, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(location) {
		return invalid("an absolute path")
	}
	if info, err := os.Stat(filepath.Dir(location)); err != nil || !info.IsDir() {
		return invalid("a path in a directory that exists")
	}
	if info, err := os.Stat(location); err == nil && !info.Mode().IsRegular() {
		return invalid("the path of a file")
	}
	return nil
}

// findCRIU returns the path of the program that captures and restores processes.
func findCRIU() (string, error) {
	path, err := exec.LookPath("criu")
	if err != nil {
		return "", fmt.Errorf("criu not found in PATH: install the criu package: %w", errdefs.ErrFailedPrecondition)
	}
	return filepath.Abs(path)
}

func (c *Container) checkpoint(ctx context.Context, location string) error {
	if err := c.checkRunning(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.m.checkpointsDir(), "container-")
	if err != nil {
		return err
	}
	defer func() {
		if err := removeAll(dir); err != nil {
			klog.ErrorS(err, "Directory of a checkpoint could not be removed", "container", c.id)
		}
	}()
	if err := c.m.capture(ctx, map[*Container]string{c: dir}); err != nil {
		return err
	}
	return checkpoint.WriteArchive(ctx, location, dir)
}

func (c *Container) checkRunning() error {
	if st := c.Status(); st.State != ContainerRunning {
		return fmt.Errorf("container %s is %s, expected running: %w", c.id, st.State, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (m *Manager) checkpointsDir() string { return filepath.Join(m.config.Root, checkpointsDir) }

// discardCheckpoints removes what a daemon that was killed in the middle of a checkpoint has left.
func (m *Manager) discardCheckpoints() error {
	if err := os.MkdirAll(m.checkpointsDir(), 0o700); err != nil {
		return fmt.Errorf("make checkpoint directory: %w", err)
	}
	entries, err := os.ReadDir(m.checkpointsDir())
	if err != nil {
		return fmt.Errorf("discard checkpoints: %w", err)
	}
	undoing := m.undoPodCheckpoints()
	for _, e := range entries {
		if undoing[e.Name()] {
			continue
		}
		if err := removeAll(filepath.Join(m.checkpointsDir(), e.Name())); err != nil {
			return fmt.Errorf("discard checkpoints: %w", err)
		}
	}
	return nil
}

// capture freezes containers, captures each to its directory, and lets them go on, whatever happens. What they changed
// of their images is copied while they are frozen: it has to fit what their processes know of it.
func (m *Manager) capture(ctx context.Context, dirs map[*Container]string) error {
	criu, err := findCRIU()
	if err != nil {
		return err
	}
	request := keeper.CheckpointRequest{CRIU: criu}
	for c, dir := range dirs {
		request.Containers = append(request.Containers, keeper.CheckpointTarget{ID: c.id, Dir: dir})
	}
	session, err := m.keeper.checkpoint(ctx, request)
	if err != nil {
		return err
	}
	at := time.Now()
	for c, dir := range dirs {
		if err = m.writeLayer(ctx, c, dir); err != nil {
			break
		}
	}
	frozen, resumeErr := session.Resume()
	if err = errors.Join(err, resumeErr); err != nil {
		return err
	}
	klog.V(2).InfoS("Containers were captured", "containers", len(dirs), "frozen", frozen)
	for c, dir := range dirs {
		if err := c.describe(dir, at); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) writeLayer(ctx context.Context, c *Container, dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, checkpoint.LayerFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(m.config.Layers.WriteLayer(ctx, c.id, f), f.Close())
}

// describe says in a checkpoint what it is of.
func (c *Container) describe(dir string, at time.Time) error {
	st, sandbox := c.Status(), c.s.Status().Config.GetMetadata()
	return checkpoint.Describe(dir, &checkpoint.Container{
		ID: c.id, Name: st.Config.GetMetadata().GetName(), ImageName: imageName(st), ImageID: st.ImageID,
		ImageRef: st.ImageRef, Runtime: "gantry", Created: st.Created, Checkpointed: at,
	}, &checkpoint.Status{
		CreatedAt: st.Created.UnixNano(), StartedAt: st.Started.UnixNano(), Pid: uint32(st.PID),
	}, checkpoint.Sandbox{ID: c.s.id, Name: sandbox.GetName(), Namespace: sandbox.GetNamespace(), UID: sandbox.GetUid()})
}

// imageName is the image as the user named it.
func imageName(st *ContainerStatus) string {
	if name := st.Config.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	return st.Config.GetImage().GetImage()
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/checkpoint"
	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/trace"
)

// restoreDir, in a container's record directory, holds CRIU's images from the restore of the pod until the container's
// start: the caller may do what it likes with the checkpoint meanwhile.
const restoreDir = "restore"

// RestoreRequest says what to restore as what.
type RestoreRequest struct {
	// Path is the directory that CheckpointPod wrote.
	Path string
	// Config and Handler are as of Run.
	Config  *runtime.PodSandboxConfig
	Handler string
	// Containers are to be those of the checkpoint, by their names.
	Containers []RestoreContainer
}

// RestoreContainer is a container as of CreateContainer.
type RestoreContainer struct {
	Config            *runtime.ContainerConfig
	ImageID, ImageRef string
}

// Restored is a pod that was restored. Containers are the ids, in the order of the request.
type Restored struct {
	SandboxID  string
	Containers []string
}

// RestorePod makes a sandbox and its containers of a checkpoint, which it does not change. The containers are created;
// StartContainer resumes their processes where they were. After an error there is nothing left.
//
// Errors: errdefs.ErrInvalidArgument; errdefs.ErrFailedPrecondition when a configuration does not describe what was
// captured, or CRIU is missing; errdefs.ErrAlreadyExists when there is a sandbox with the metadata.
func (m *Manager) RestorePod(ctx context.Context, r *RestoreRequest) (*Restored, error) {
	if err := checkSandboxConfig(r.Config); err != nil {
		return nil, err
	}
	if err := m.checkHandler(r.Handler); err != nil {
		return nil, err
	}
	pod, err := r.match()
	if err != nil {
		return nil, err
	}
	if _, err := findCRIU(); err != nil {
		return nil, err
	}
	s, fresh := m.reserve(r.Config, r.Handler)
	if !fresh {
		return nil, fmt.Errorf("sandbox %s has the same metadata (namespace, name, uid, attempt): %w", s.id,
			errdefs.ErrAlreadyExists)
	}
	trace.About(ctx, s.subject())
	restored, err := s.restore(ctx, r, pod)
	if err == nil {
		return restored, nil
	}
	undo, cancel := background(teardownTimeout)
	defer cancel()
	if rmErr := m.Remove(undo, s.id); rmErr != nil {
		err = errors.Join(err, fmt.Errorf("undo: %w", rmErr))
	}
	return nil, fmt.Errorf("restore sandbox %s/%s: %w", r.Config.GetMetadata().GetNamespace(),
		r.Config.GetMetadata().GetName(), err)
}

// match reads the checkpoint and compares it with what is asked for.
func (r *RestoreRequest) match() (*checkpoint.Pod, error) {
	if !filepath.IsAbs(r.Path) {
		return nil, fmt.Errorf("checkpoint_path %q: expected an absolute path: %w", r.Path, errdefs.ErrInvalidArgument)
	}
	pod, err := checkpoint.ReadPod(r.Path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range r.Containers {
		names = append(names, c.Config.GetMetadata().GetName())
	}
	slices.Sort(names)
	if !slices.Equal(names, pod.Names()) {
		return nil, fmt.Errorf("container_configs are of %q, the checkpoint's are %q: %w", names, pod.Names(),
			errdefs.ErrInvalidArgument)
	}
	if err := pod.MatchSandbox(r.Config); err != nil {
		return nil, err
	}
	for _, c := range r.Containers {
		name := c.Config.GetMetadata().GetName()
		if err := pod.Container(name).Match(c.Config, c.ImageID); err != nil {
			return nil, fmt.Errorf("container_configs: %s: %w", name, err)
		}
	}
	return pod, nil
}

// restore makes the sandbox and the containers. The caller removes what it leaves after an error.
func (s *Sandbox) restore(ctx context.Context, r *RestoreRequest, pod *checkpoint.Pod) (*Restored, error) {
	if err := s.making.do(ctx, func() error { return s.make(ctx) }); err != nil {
		return nil, err
	}
	restored := &Restored{SandboxID: s.id}
	for _, rc := range r.Containers {
		was := pod.Container(rc.Config.GetMetadata().GetName())
		c, err := s.restoreContainer(ctx, rc, filepath.Join(r.Path, was.ID))
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", rc.Config.GetMetadata().GetName(), err)
		}
		restored.Containers = append(restored.Containers, c.id)
	}
	return restored, ctx.Err()
}

func (s *Sandbox) restoreContainer(ctx context.Context, rc RestoreContainer, dir string) (*Container, error) {
	c := s.newContainer(newID(), rc.Config, time.Now())
	c.restoreFrom = dir
	if err := c.setUp(rc.ImageID, rc.ImageRef); err != nil {
		return nil, err
	}
	existing, err := s.addContainer(c)
	if err != nil {
		return nil, err
	}
	if existing != nil {
		return nil, fmt.Errorf("container %s has the same name and attempt: %w", existing.id, errdefs.ErrAlreadyExists)
	}
	return c, c.making.do(ctx, func() error { return c.make(ctx) })
}

// takeCheckpoint copies what the container's start will need, and gives its snapshot what it had. It comes after
// prepare.
func (c *Container) takeCheckpoint(ctx context.Context) error {
	if c.restoreFrom == "" {
		return nil
	}
	layer, err := os.Open(filepath.Join(c.restoreFrom, checkpoint.LayerFile))
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	defer layer.Close()
	if err := c.m.config.Layers.ReadLayer(ctx, c.id, layer); err != nil {
		return err
	}
	to := filepath.Join(c.dir(), restoreDir)
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return copyFiles(ctx, filepath.Join(c.restoreFrom, keeper.CheckpointImages), to)
}

// copyFiles copies the regular files of a directory. The kernel copies, or shares the blocks where it can.
func copyFiles(ctx context.Context, from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			continue
		}
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return fmt.Errorf("copy checkpoint: %w", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// restores reports whether the container's start resumes a process.
func (c *Container) restores() bool {
	_, err := os.Stat(filepath.Join(c.dir(), restoreDir))
	return err == nil
}

// resume starts the container's process from the checkpoint, whose copy is of no use after that.
func (c *Container) resume(ctx context.Context, start keeper.StartRequest) (keeper.StartReply, error) {
	criu, err := findCRIU()
	if err != nil {
		return keeper.StartReply{}, err
	}
	images := filepath.Join(c.dir(), restoreDir)
	reply, err := c.m.keeper.restore(ctx, keeper.RestoreRequest{CRIU: criu, Start: start, Images: images})
	if err == nil {
		_ = os.RemoveAll(images)
	}
	return reply, err
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/checkpoint"
)

// podIntents are the files in the checkpoint directory that say which directory of a caller's is being written to.
const podIntents = "pod-"

// podIntent is on disk while the checkpoint of a pod is written, for the next daemon to remove what a killed one left.
type podIntent struct {
	Path       string   `json:"path"`
	Containers []string `json:"containers"`
}

// CheckpointPod captures running containers of a sandbox as they are at one moment into path, the absolute path of an
// empty directory: all are frozen until all are captured, and then go on, also after an error, which leaves nothing in
// the directory. See package checkpoint for what is written.
//
// Errors: as of CheckpointContainer.
func (m *Manager) CheckpointPod(ctx context.Context, id, path string, containerIDs []string) error {
	s, err := m.findSandbox(id)
	if err != nil {
		return err
	}
	if st := s.Status(); st.State != SandboxReady {
		return fmt.Errorf("sandbox %s is %s, expected ready: %w", s.id, st.State, errdefs.ErrFailedPrecondition)
	}
	containers, err := s.chosen(containerIDs)
	if err != nil {
		return err
	}
	if err := checkOutput(path); err != nil {
		return err
	}
	if err := s.checkpoint(ctx, path, containers); err != nil {
		return fmt.Errorf("checkpoint sandbox %s: %w", s.id, err)
	}
	return nil
}

// chosen finds the containers that a checkpoint is to have.
func (s *Sandbox) chosen(ids []string) (containers []*Container, err error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("container_ids is empty, expected at least one: %w", errdefs.ErrInvalidArgument)
	}
	seen := map[*Container]bool{}
	for _, id := range ids {
		c, err := s.m.findContainer(id)
		if err != nil {
			return nil, fmt.Errorf("container_ids: %w", err)
		}
		if c.s != s {
			return nil, fmt.Errorf("container_ids: container %s is not of sandbox %s: %w", c.id, s.id,
				errdefs.ErrInvalidArgument)
		}
		if seen[c] {
			return nil, fmt.Errorf("container_ids: container %s is there twice: %w", c.id, errdefs.ErrInvalidArgument)
		}
		seen[c] = true
		if err := c.checkRunning(); err != nil {
			return nil, fmt.Errorf("container_ids: %w", err)
		}
		containers = append(containers, c)
	}
	return containers, nil
}

// checkOutput accepts an empty directory.
func checkOutput(path string) error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("output_path %q: "+format+": %w",
			append(append([]any{path}, args...), errdefs.ErrInvalidArgument)...)
	}
	if !filepath.IsAbs(path) {
		return invalid("expected an absolute path")
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return invalid("expected a directory that exists: %v", err)
	}
	if len(entries) > 0 {
		return invalid("expected an empty directory, it has %s", entries[0].Name())
	}
	return nil
}

func (s *Sandbox) checkpoint(ctx context.Context, path string, containers []*Container) (err error) {
	intent := podIntent{Path: path}
	dirs := map[*Container]string{}
	for _, c := range containers {
		dirs[c] = filepath.Join(path, c.id)
		intent.Containers = append(intent.Containers, c.id)
	}
	name := podIntents + newID()
	if err := writeRecord(s.m.checkpointsDir(), name, &intent); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, intent.undo())
		}
		_ = os.Remove(filepath.Join(s.m.checkpointsDir(), name))
	}()
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := s.m.capture(ctx, dirs); err != nil {
		return err
	}
	if err := s.writePod(path, containers); err != nil {
		return err
	}
	return ctx.Err()
}

// writePod writes what completes the checkpoint.
func (s *Sandbox) writePod(path string, containers []*Container) error {
	st := s.Status()
	pod, err := checkpoint.NewPod(s.id, st.Handler, st.Config)
	if err != nil {
		return err
	}
	for _, c := range containers {
		st := c.Status()
		if err := pod.Add(c.id, st.ImageID, st.ImageRef, st.Config); err != nil {
			return err
		}
	}
	return pod.Write(path)
}

// undo removes what a checkpoint has written to the caller's directory, the file that makes it complete first.
func (i *podIntent) undo() error {
	err := os.Remove(filepath.Join(i.Path, checkpoint.PodFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, id := range i.Containers {
		err = errors.Join(err, removeAll(filepath.Join(i.Path, id)))
	}
	return err
}

// removePatience is how long is waited for what writes to a directory to notice that it is to stop.
const removePatience = 20 * time.Second

// removeAll removes a directory that a CRIU which is being ended may still write to.
func removeAll(dir string) error {
	for end := time.Now().Add(removePatience); ; time.Sleep(50 * time.Millisecond) {
		err := os.RemoveAll(dir)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// undoPodCheckpoints removes what a daemon that was killed in the middle has written to callers' directories. It does
// so in the background: such a directory may be on a dead disk. The returned intents go when that is done, so that it
// is begun again by the next daemon if this one is killed meanwhile.
func (m *Manager) undoPodCheckpoints() (undoing map[string]bool) {
	undoing = map[string]bool{}
	files, _ := filepath.Glob(filepath.Join(m.checkpointsDir(), podIntents+"*"))
	for _, file := range files {
		var intent podIntent
		if err := readRecord(m.checkpointsDir(), filepath.Base(file), &intent); err != nil {
			klog.ErrorS(err, "Record of a checkpoint cannot be read")
			continue
		}
		undoing[filepath.Base(file)] = true
		go func() {
			if err := intent.undo(); err != nil {
				klog.ErrorS(err, "Checkpoint that an earlier run began could not be removed", "path", intent.Path)
			}
			_ = os.Remove(file)
		}()
	}
	return undoing
}

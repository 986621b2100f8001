package keeperd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// cgroupRef says where a container's cgroup is to be found when the keeper does not know the container.
type cgroupRef struct {
	path    string
	systemd bool
}

func (r *record) cgroup() cgroupRef {
	if r.PodInit != nil {
		return cgroupRef{r.PodInit.CgroupsPath, r.PodInit.SystemdCgroup}
	}
	return cgroupRef{systemd: r.Start.SystemdCgroup} // the path is in config.json
}

func (k *Keeper) handleDelete(ctx context.Context, call *keeper.Call) error {
	var req keeper.DeleteRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	if err := checkID(req.ID); err != nil {
		return err
	}
	if err := k.remove(ctx, req.ID, cgroupRef{req.CgroupsPath, req.SystemdCgroup}); err != nil {
		return fmt.Errorf("delete %s: %w", req.ID, err)
	}
	return call.Reply(struct{}{})
}

// remove ends a container and removes all that the keeper has of it. It is idempotent and safe on half-made and unknown
// ones. It is final: a start that comes after it is refused, also one that was sent before.
func (k *Keeper) remove(ctx context.Context, id string, ref cgroupRef) error {
	c := k.seal(id)
	if c != nil {
		if err := k.end(ctx, c); err != nil {
			return err
		}
	}
	if err := k.removeRemains(id, ref); err != nil {
		return err
	}
	if c != nil {
		k.forget(c)
	}
	return nil
}

// end kills a container and waits until its exit is recorded.
func (k *Keeper) end(ctx context.Context, c *container) error {
	c.give()
	if err := waitFor(ctx, c.enrolled, killPatience, "give up the start"); err != nil {
		return err
	}
	switch k.stateOf(c) {
	case stateLost:
		k.bury(c, nil)
	case stateRunning:
		if err := k.killAll(c, killPatience); err != nil {
			return err
		}
	}
	return waitFor(ctx, c.gone, 2*killPatience, "wait for the exit")
}

// killAll kills every process of a container and waits for their end.
func (k *Keeper) killAll(c *container, timeout time.Duration) error {
	if c.pidfd != nil {
		// Also an init that was moved out of the cgroup.
		_ = signalPIDFD(c.pidfd, unix.SIGKILL)
	}
	return killTree(c.cgroup.tree(), timeout)
}

// removeRemains removes what is on disk and in cgroupfs of a container that has no process that the keeper knows, after
// killing those that it does not know. The record goes last.
func (k *Keeper) removeRemains(id string, ref cgroupRef) error {
	var errs []error
	stateDir := filepath.Join(k.layout.libcontainer(), id)
	if _, err := os.Stat(stateDir); err == nil {
		errs = append(errs, k.destroyLoaded(id))
	}
	if ref.path == "" {
		if spec, err := k.layout.readSpec(id); err == nil && spec.Linux != nil {
			ref.path = spec.Linux.CgroupsPath
			if r, err := k.layout.readRecord(id); err == nil && r.Start != nil {
				ref.systemd = r.Start.SystemdCgroup
			}
		}
	}
	if ref.path != "" {
		errs = append(errs, removeCgroup(id, ref))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(stateDir); err != nil {
		return fmt.Errorf("remove libcontainer state: %w", err)
	}
	return k.layout.removeFiles(id)
}

// destroyLoaded removes a container by libcontainer's state on disk, where that can be read.
func (k *Keeper) destroyLoaded(id string) error {
	handle, err := libcontainer.Load(k.layout.libcontainer(), id)
	if err != nil {
		return nil // half-made: the cgroup is removed by its path, the directory by the caller
	}
	state, err := handle.State()
	if err != nil {
		return err
	}
	g := cgroup{paths: state.CgroupPaths}
	if err := killTree(g.tree(), killPatience); err != nil {
		return err
	}
	if err := removeBelow(g); err != nil {
		return err
	}
	return handle.Destroy()
}

// removeCgroup kills what is in a cgroup and removes it, whoever made it.
func removeCgroup(id string, ref cgroupRef) error {
	m, err := newManager(id, ref.path, ref.systemd)
	if err != nil {
		return err
	}
	g := cgroup{paths: m.GetPaths()}
	if err := killTree(g.tree(), killPatience); err != nil {
		return err
	}
	if ref.systemd {
		return m.Destroy()
	}
	return g.removeTree()
}

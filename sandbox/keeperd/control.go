package keeperd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// handleKill sends a signal. A container that has exited, or is about to, is no error: the signal had its way.
func (k *Keeper) handleKill(_ context.Context, call *keeper.Call) error {
	var req keeper.KillRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	c, err := k.find(req.ID)
	if err != nil {
		return err
	}
	switch k.stateOf(c) {
	case stateStarting:
		return keeper.Errorf(keeper.KindState, "container %s is starting", req.ID)
	case stateRunning:
		if err := k.kill(c, &req); err != nil {
			return fmt.Errorf("kill %s: %w", req.ID, err)
		}
	}
	return call.Reply(struct{}{})
}

func (k *Keeper) kill(c *container, req *keeper.KillRequest) error {
	if req.All {
		return k.killAll(c, killPatience)
	}
	if req.Signal < 1 || req.Signal > 64 {
		return keeper.Errorf(keeper.KindInvalid, "signal %d: expected 1 to 64", req.Signal)
	}
	err := signalPIDFD(c.pidfd, unix.Signal(req.Signal))
	if err != nil && !awaitable(c) {
		return nil // the pidfd was closed by the exit meanwhile
	}
	return err
}

// awaitable reports whether the container's pidfd is still open.
func awaitable(c *container) bool {
	fd, err := dup(c.pidfd)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

func (k *Keeper) handleReopen(_ context.Context, call *keeper.Call) error {
	var req keeper.ReopenRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	c, err := k.running(req.ID)
	if err != nil {
		return err
	}
	if c.out == nil {
		return keeper.Errorf(keeper.KindInvalid, "reopen: %s is a pod init", req.ID)
	}
	if err := c.out.log.Reopen(); err != nil {
		return err
	}
	return call.Reply(struct{}{})
}

func (k *Keeper) handleCloseStdin(_ context.Context, call *keeper.Call) error {
	var req keeper.CloseStdinRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	c, err := k.running(req.ID)
	if err != nil {
		return err
	}
	k.endStdin(c)
	return call.Reply(struct{}{})
}

// endStdin ends the input of a container that was started with StdinOnce; of another one it keeps it from new clients.
func (k *Keeper) endStdin(c *container) {
	if c.out != nil {
		// Without the name no keeper opens it again.
		_ = os.Remove(k.layout.fifo(c.id, "stdin"))
		c.out.closeStdin()
	}
}

func (k *Keeper) handleUpdate(_ context.Context, call *keeper.Call) error {
	var req keeper.UpdateRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	if req.Resources == nil {
		return keeper.Errorf(keeper.KindInvalid, "update: resources is missing")
	}
	c, err := k.running(req.ID)
	if err != nil {
		return err
	}
	if err := k.update(c, req.Resources); err != nil {
		return fmt.Errorf("update %s: %w", req.ID, err)
	}
	if req.OOMScoreAdj != nil {
		if err := k.setOOMScore(c, max(*req.OOMScoreAdj, k.host.minOOMScore)); err != nil {
			return fmt.Errorf("update oom_score_adj of %s: %w", req.ID, err)
		}
	}
	return call.Reply(struct{}{})
}

// setOOMScore sets oom_score_adj of every process of the container, those of later execs first: so an exec at the same
// time has it, unless the process is in none of the container's cgroups yet. One that ends meanwhile is no error, and
// one that may not be set, since the keeper lacks the privilege to lower it, stays as it is: that is what a start does
// too.
func (k *Keeper) setOOMScore(c *container, score int) error {
	if err := k.setExecOOMScore(c, score); err != nil {
		return err
	}
	value := []byte(strconv.Itoa(score))
	seen := map[int]bool{}
	// Again until nothing is new: a process that had the old score may have forked after it was listed.
	for range oomScoreRounds {
		before := len(seen)
		for _, pid := range treePIDs(c.cgroup.tree()) {
			if seen[pid] {
				continue
			}
			seen[pid] = true
			err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), value, 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				k.log.printf("set oom_score_adj of %d in %s: %v", pid, c.id, err)
			}
		}
		if len(seen) == before {
			break
		}
	}
	return nil
}

// setExecOOMScore makes execs have the score, also those of a later keeper.
func (k *Keeper) setExecOOMScore(c *container, score int) error {
	c.execs.mu.Lock()
	defer c.execs.mu.Unlock()
	spec, err := k.layout.readSpec(c.id)
	if err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	if old := spec.Process.OOMScoreAdj; old != nil && *old == score {
		return nil
	}
	spec.Process.OOMScoreAdj = &score
	c.execs.made, c.execs.template = false, nil
	return k.layout.writeSpec(c.id, spec)
}

// oomScoreRounds bounds the listings of a container whose processes fork without end.
const oomScoreRounds = 10

// update sets limits. The device rules stay as they are: they are not part of an update, and on v2 setting them anew
// would replace a program that is in force.
func (k *Keeper) update(c *container, r *specs.LinuxResources) error {
	resources := *r
	resources.Devices = nil
	translated, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: c.id, Spec: &specs.Spec{Linux: &specs.Linux{Resources: &resources}},
	}, nil)
	if err != nil {
		return keeper.Errorf(keeper.KindInvalid, "%v", err)
	}
	c.handleMu.Lock()
	defer c.handleMu.Unlock()
	// An object of its own: SkipDevices must not stay set in the one that execs use.
	handle, err := libcontainer.Load(k.layout.libcontainer(), c.id)
	if err != nil {
		return err
	}
	config := handle.Config()
	next := *config.Cgroups
	next.Resources = translated.Resources
	next.Resources.Devices = config.Cgroups.Resources.Devices
	next.Resources.SkipDevices = true
	config.Cgroups = &next
	if err := handle.Set(config); err != nil {
		return err
	}
	fresh, err := libcontainer.Load(k.layout.libcontainer(), c.id)
	if err != nil {
		return err
	}
	c.handle = fresh
	return nil
}

// watcher is one client that watches.
type watcher struct {
	events chan keeper.WatchEvent
	// overflow is closed when the client was too slow; it looks at the status files and watches anew.
	overflow chan struct{}
	full     bool // guarded by Keeper.mu
}

// watchQueue is how many events a watcher may be behind.
const watchQueue = 1024

// tellLocked hands an event to every watcher, waiting for none.
func (k *Keeper) tellLocked(event keeper.WatchEvent) {
	for w := range k.watchers {
		select {
		case w.events <- event:
		default:
			if !w.full {
				w.full = true
				close(w.overflow)
			}
		}
	}
}

func (k *Keeper) handleWatch(ctx context.Context, call *keeper.Call) error {
	w := &watcher{events: make(chan keeper.WatchEvent, watchQueue), overflow: make(chan struct{})}
	k.mu.Lock()
	if k.closing {
		k.mu.Unlock()
		return keeper.Errorf(keeper.KindLeaving, "the keeper is shutting down")
	}
	// At one moment: every exit is either not live now or told later.
	k.watchers[w] = struct{}{}
	k.leaving = false // whoever asked for it, this daemon counts on the keeper
	var live []*container
	for _, c := range k.containers {
		if c.state == stateRunning {
			live = append(live, c)
		}
	}
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.watchers, w)
		k.mu.Unlock()
		k.leaveIfAsked()
	}()
	for _, c := range live {
		if err := k.tellLive(call, c); err != nil {
			return err
		}
	}
	if err := call.Reply(keeper.WatchEvent{Synced: true}); err != nil {
		return err
	}
	for {
		select {
		case event := <-w.events:
			if err := call.Reply(event); err != nil {
				return err
			}
		case <-w.overflow:
			return keeper.Errorf(keeper.KindState, "watcher is more than %d events behind", watchQueue)
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *Keeper) tellLive(call *keeper.Call, c *container) error {
	files, own := k.descriptors(c)
	defer keeper.CloseFiles(own)
	sent := duplicateAll(files)
	defer keeper.CloseFiles(sent)
	if len(sent) < len(files) {
		return nil // it exited while we looked; the event follows
	}
	live := &keeper.WatchLive{ID: c.id, PID: c.pid, Terminal: c.out.terminal() != nil}
	return call.Reply(keeper.WatchEvent{Live: live}, sent...)
}

package keeperd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// freezePatience is how long the processes of a container may take to freeze.
const freezePatience = 10 * time.Second

// intent is frozen.json in the bundle: the container is frozen for a checkpoint. It is there before the container is
// frozen and until it is thawed, so that the next keeper thaws what a killed one leaves.
type intent struct {
	CRIU      int    `json:"criu,omitempty"`
	StartTime uint64 `json:"startTime,omitempty"`
}

// capture is one container of a checkpoint.
type capture struct {
	c    *container
	dir  string
	spec *specs.Spec
}

func (k *Keeper) handleCheckpoint(ctx context.Context, call *keeper.Call) error {
	var req keeper.CheckpointRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	targets, err := k.claimTargets(&req)
	defer k.releaseTargets(targets)
	if err != nil {
		return err
	}
	start := time.Now()
	if err = k.captureAll(ctx, req.CRIU, targets); err == nil {
		if err = call.Reply(keeper.CheckpointCaptured{}); err == nil {
			<-ctx.Done() // the client closed its direction, or died
		}
	}
	err = errors.Join(err, k.thawAll(targets))
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return call.Reply(keeper.CheckpointResumed{Frozen: time.Since(start)})
}

// claimTargets finds the containers, keeps other checkpoints from them, and refuses those that cannot be captured. It
// returns those claimed also on error.
func (k *Keeper) claimTargets(req *keeper.CheckpointRequest) (targets []*capture, err error) {
	if len(req.Containers) == 0 {
		return nil, keeper.Errorf(keeper.KindState, "checkpoint: containers is empty")
	}
	for _, t := range req.Containers {
		c, err := k.running(t.ID)
		if err != nil {
			return targets, err
		}
		if !c.capturing.CompareAndSwap(false, true) {
			return targets, keeper.Errorf(keeper.KindState, "checkpoint: container %s is being captured already", t.ID)
		}
		target := &capture{c: c, dir: t.Dir}
		targets = append(targets, target)
		if target.spec, err = k.layout.readSpec(t.ID); err != nil {
			return targets, fmt.Errorf("checkpoint: %w", err)
		}
		if err := target.check(); err != nil {
			return targets, err
		}
	}
	return targets, nil
}

func (k *Keeper) releaseTargets(targets []*capture) {
	for _, t := range targets {
		t.c.capturing.Store(false)
	}
}

// check refuses what CRIU cannot do, or not in a way that a restore could undo.
func (t *capture) check() error {
	refuse := func(format string, args ...any) error {
		return keeper.Errorf(keeper.KindState, "checkpoint: container %s "+format, append([]any{t.c.id}, args...)...)
	}
	switch info, err := os.Stat(t.dir); {
	case err != nil:
		return fmt.Errorf("checkpoint: %w", err)
	case !info.IsDir():
		return refuse("goes to %s: expected a directory", t.dir)
	case t.c.out == nil:
		return refuse("is a pod init")
	case t.c.terminal:
		return refuse("has a terminal: that is not supported")
	case t.freezer() == "":
		return refuse("has no freezer cgroup")
	}
	for _, ns := range t.spec.Linux.Namespaces {
		if ns.Type == specs.UserNamespace {
			return refuse("has a user namespace: that is not supported")
		}
	}
	return nil
}

// freezer is the cgroup directory that is frozen.
func (t *capture) freezer() string {
	if cgroups.IsCgroup2UnifiedMode() {
		return t.c.cgroup.paths[""]
	}
	return t.c.cgroup.paths["freezer"]
}

// captureAll freezes all containers and then captures each. It leaves them frozen, also on error.
func (k *Keeper) captureAll(ctx context.Context, program string, targets []*capture) error {
	for _, t := range targets { // before any is frozen: none is to stand still while another starts
		if err := t.c.awaitCommand(ctx); err != nil {
			return err
		}
	}
	for _, t := range targets {
		if err := k.layout.writeIntent(t.c.id, intent{}); err != nil {
			return err
		}
		if err := freezeTree(ctx, t.freezer()); err != nil {
			return fmt.Errorf("freeze %s: %w", t.c.id, err)
		}
	}
	// Several at once, as many as there are turns: all wait for the last.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, t := range targets {
		wg.Go(func() {
			if err := k.captures.do(ctx, func() error { return k.capture(ctx, program, t) }); err != nil {
				cancel(fmt.Errorf("capture %s: %w", t.c.id, err)) // the first one counts
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// thawAll thaws all containers, whatever happens. One that has exited meanwhile has no cgroup any more.
func (k *Keeper) thawAll(targets []*capture) error {
	var errs []error
	for _, t := range targets {
		thaw(t.freezer())
		err := thawed(t.freezer())
		if err == nil || os.IsNotExist(err) {
			err = k.layout.removeIntent(t.c.id)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("thaw %s: %w", t.c.id, err))
		}
	}
	return errors.Join(errs...)
}

// thawAbandoned thaws what a keeper of before left frozen, without waiting for it: the daemon gives a keeper less time to
// listen than several of CRIU's runs may take to end.
func (k *Keeper) thawAbandoned(c *container) {
	abandoned, err := k.layout.readIntent(c.id)
	if err != nil {
		return
	}
	k.log.printf("%s was left frozen by a checkpoint: it is thawed", c.id)
	c.capturing.Store(true)
	go func() {
		defer c.capturing.Store(false)
		if abandoned.CRIU != 0 {
			endCRIU(abandoned.CRIU, abandoned.StartTime)
		}
		if err := k.thawAll([]*capture{{c: c}}); err != nil {
			k.log.printf("%v", err)
		}
	}()
}

func (l layout) intentFile(id string) string { return filepath.Join(l.bundle(id), "frozen.json") }

func (l layout) writeIntent(id string, i intent) error { return writeJSON(l.intentFile(id), i) }

func (l layout) readIntent(id string) (i intent, err error) {
	err = readJSON(l.intentFile(id), &i)
	if err != nil && !os.IsNotExist(err) {
		err = nil // torn: frozen, and nobody knows by whom
	}
	return i, err
}

func (l layout) removeIntent(id string) error {
	if err := os.Remove(l.intentFile(id)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// awaitCommand waits until the process of a container that was just started executes its command. Before, it is the
// keeper's program, which CRIU cannot capture; and while its threads end for the execution it cannot be frozen.
func (c *container) awaitCommand(ctx context.Context) error {
	for deadline := time.Now().Add(freezePatience); c.isInit(); {
		if time.Now().After(deadline) {
			return keeper.Errorf(keeper.KindState, "container %s has not begun to execute its command after %v", c.id, freezePatience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// isInit reports whether the process has executed nothing since it was forked and is the keeper's program, or
// libcontainer's copy of it. What CRIU restored has executed nothing either.
func (c *container) isInit() bool {
	const forkNoExec = 0x40 // PF_FORKNOEXEC
	s, err := readStat(c.pid)
	if err != nil || s.flags&forkNoExec == 0 {
		return false
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.pid))
	own, ownErr := os.Executable()
	return err == nil && ownErr == nil &&
		(strings.TrimSuffix(filepath.Base(program), " (deleted)") == filepath.Base(own) || strings.HasPrefix(program, "/memfd:"))
}

// freezeTree freezes a cgroup with all below it and returns when it is frozen.
func freezeTree(ctx context.Context, dir string) error {
	deadline := time.Now().Add(freezePatience)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		// Again: on v1 a process that forks while it is frozen may leave the cgroup half frozen until the next write.
		if frozen, err := tryFreeze(dir); err != nil || frozen {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w after %v", errTimeout, freezePatience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// tryFreeze tells a cgroup to freeze and reports whether it is frozen whole by now.
func tryFreeze(dir string) (bool, error) {
	file, value := "freezer.state", string(cgroups.Frozen)
	if cgroups.IsCgroup2UnifiedMode() {
		file, value = "cgroup.freeze", "1"
	}
	if err := cgroups.WriteFile(dir, file, value); err != nil {
		return false, err
	}
	return isFrozen(dir)
}

// isFrozen reports whether a cgroup is frozen whole.
func isFrozen(dir string) (bool, error) {
	if !cgroups.IsCgroup2UnifiedMode() {
		state, err := cgroups.ReadFile(dir, "freezer.state")
		return strings.TrimSpace(state) == string(cgroups.Frozen), err
	}
	events, err := cgroups.ReadFile(dir, "cgroup.events")
	return strings.Contains(events, "frozen 1"), err
}

// thawed returns an error if a cgroup is not told to be thawed.
func thawed(dir string) error {
	file, want := "freezer.state", string(cgroups.Thawed)
	if cgroups.IsCgroup2UnifiedMode() {
		file, want = "cgroup.freeze", "0"
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(b)); got != want {
		return fmt.Errorf("%s is %s, expected %s", file, got, want)
	}
	return nil
}

// capture runs CRIU on one frozen container.
func (k *Keeper) capture(ctx context.Context, program string, t *capture) error {
	images := filepath.Join(t.dir, keeper.CheckpointImages)
	if err := os.Mkdir(images, 0o700); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(t.dir, keeper.CheckpointSpec), t.spec); err != nil {
		return err
	}
	out, err := k.findOutside(t)
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(images, keeper.OutsideFile), out); err != nil {
		return err
	}
	r := criu{path: program, command: "dump", images: images, work: images, args: append(out.dumpArgs(),
		"-t", strconv.Itoa(t.c.pid), "--root", fmt.Sprintf("/proc/%d/root", t.c.pid), "--leave-running",
		"--freeze-cgroup", t.freezer())}
	r.attend = func(pid int) error {
		s, err := readStat(pid)
		if err != nil {
			return err
		}
		return k.layout.writeIntent(t.c.id, intent{CRIU: pid, StartTime: s.startTime})
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go watchTarget(ctx, t.c, cancel)
	return r.run(ctx)
}

// targetPause is how often it is looked whether the container's first process still lives.
const targetPause = 20 * time.Millisecond

// watchTarget cancels with errTargetExited when the first process of a container has begun to exit. It cannot end
// before CRIU lets go of those that it traces in the PID namespace, and CRIU waits for it: a pidfd would tell nothing.
func watchTarget(ctx context.Context, c *container, cancel context.CancelCauseFunc) {
	for {
		s, err := readStat(c.pid)
		if err != nil || s.startTime != c.startTime || s.exiting() {
			cancel(errTargetExited)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(targetPause):
		}
	}
}

package sandbox

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/spec"
	"github.com/gantry-cri/gantry/trace"
)

// Container is one container of a sandbox.
//
//	creating ──▶ (gone)            make failed
//	   │ made
//	   ▼      start        the process exits
//	created ──────▶ running ────────────────▶ exited
//	   │  │ start failed: 128, StartError        ▲ │
//	   │  └──────────────────────────────────────┘ │
//	   └─────────────▶ removing ◀──────────────────┘ ◀── unknown
//
// transition is the one place where the state changes; exited never goes back. Persisted are the configuration, what
// the image resolved to and the limits in force (containerRecordV1), and by the keeper what became of the process
// (keeper.Status); running or exited is derived from the latter.
//
// A Container may be used from several goroutines.
type Container struct {
	id string
	s  *Sandbox
	m  *Manager

	making, starting, updating, removing flight

	status atomic.Pointer[ContainerStatus]
	// exited is closed when no process of the container's is left: at exit, or when it is removed before it started.
	exited chan struct{}
	// restoreFrom is the directory of the checkpoint that the container is made of, or "". It is used by the making.
	restoreFrom string
	// startTried is set before the keeper is asked for a process.
	startTried atomic.Bool
	// inputs are the clients' ends of the container's input.
	inputs attachInputs

	mu sync.Mutex
	// built is what the start needs; it is dropped by the start, and made again when the daemon was restarted between.
	built *build
	// early is the exit of a process that was quicker than the answer to its start.
	early *keeper.Status
	// ending is the stop that is going on; nil when there is none.
	ending *ending
	// cancelWork ends the making or the start that is going on; nil when there is none.
	cancelWork context.CancelFunc
}

// build is a container ready to start.
type build struct {
	spec   *specs.Spec
	user   spec.User
	rootfs []specs.Mount
	// volumeRefs are the images of volumes, by digest.
	volumeRefs map[string]string
}

var containerTransitions = map[ContainerState][]ContainerState{
	ContainerCreating: {ContainerCreated},
	ContainerCreated:  {ContainerRunning, ContainerExited, ContainerRemoving},
	ContainerRunning:  {ContainerExited},
	ContainerExited:   {ContainerRemoving},
	ContainerRemoving: {ContainerRemoving},
	ContainerUnknown:  {ContainerExited, ContainerRemoving},
}

// Status returns the container's status at this moment.
func (c *Container) Status() *ContainerStatus { return c.status.Load() }

func (c *Container) key() containerKey {
	md := c.Status().Config.GetMetadata()
	return containerKey{md.GetName(), md.GetAttempt()}
}

// subject is what the container's calls are about, for their timelines.
func (c *Container) subject() trace.Subject {
	subject := c.s.subject()
	subject.ContainerID, subject.Container = c.id, c.Status().Config.GetMetadata().GetName()
	return subject
}

func (c *Container) dir() string { return c.m.containerDir(c.s.id, c.id) }

// transition changes the state, with whatever else change sets on the copy that becomes the status.
func (c *Container) transition(to ContainerState, change func(*ContainerStatus)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.transitionLocked(to, change)
}

func (c *Container) transitionLocked(to ContainerState, change func(*ContainerStatus)) error {
	from := c.status.Load().State
	if !slices.Contains(containerTransitions[from], to) {
		return fmt.Errorf("container %s is %s, which cannot become %s: %w", c.id, from, to, errdefs.ErrFailedPrecondition)
	}
	c.setLocked(func(st *ContainerStatus) {
		st.State = to
		if change != nil {
			change(st)
		}
	})
	if to == ContainerExited || to == ContainerRemoving {
		c.closeExitedLocked()
	}
	c.publishLocked()
	return nil
}

func (c *Container) closeExitedLocked() {
	select {
	case <-c.exited:
	default:
		close(c.exited)
	}
}

func (c *Container) setLocked(change func(*ContainerStatus)) {
	st := *c.status.Load()
	change(&st)
	c.status.Store(&st)
}

// save writes the record.
func (c *Container) save(st *ContainerStatus, complete bool) error {
	config, err := encodeMessage(st.Config)
	if err != nil {
		return err
	}
	resources, err := encodeMessage(st.Resources)
	if err != nil {
		return err
	}
	rec := &containerRecordV1{
		Version: recordVersion, BootID: c.m.bootID, ID: c.id, SandboxID: c.s.id, Created: st.Created, Complete: complete,
		ImageID: st.ImageID, ImageRef: st.ImageRef, StopSignal: st.StopSignal, CgroupPath: st.CgroupPath,
		VolumeRefs: st.VolumeRefs, Config: config, Resources: resources,
	}
	if st.Reason == reasonStartError {
		rec.StartFailed, rec.StartError = st.Finished, st.Message
	}
	return writeRecord(c.dir(), containerRecord, rec)
}

// Reasons of an exit, as the kubelet knows them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "Unknown"
)

// exitCodeUnknown is the code of a process whose exit nobody could learn.
const exitCodeUnknown = 255

// applyExit puts what the keeper knows of an ended process into a status.
func applyExit(st *ContainerStatus, k *keeper.Status) {
	st.PID = 0
	st.Started, st.Finished, st.ExitCode, st.Message = k.Started, k.Finished, k.ExitCode, k.Error
	if k.PID != 0 {
		st.User = containerUser(k.User)
	}
	switch {
	case k.PID == 0:
		st.Reason = reasonStartError
	case k.OOMKilled:
		st.Reason = reasonOOMKilled
	case k.ExitCode == exitCodeUnknown && k.Error != "":
		st.Reason = reasonUnknown
	case k.ExitCode == 0:
		st.Reason = reasonCompleted
	default:
		st.Reason = reasonError
	}
}

func containerUser(u keeper.ResolvedUser) *runtime.ContainerUser {
	linux := &runtime.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.Groups {
		linux.SupplementalGroups = append(linux.SupplementalGroups, int64(g))
	}
	return &runtime.ContainerUser{Linux: linux}
}

// processExited takes in that the process ended. It may come before the answer to the start that began it, twice, or
// never; the last is what reconcile is for.
func (c *Container) processExited(k *keeper.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.status.Load().State {
	case ContainerCreated:
		c.early = k
	case ContainerRunning:
		_ = c.transitionLocked(ContainerExited, func(st *ContainerStatus) { applyExit(st, k) })
	}
}

// processStarted takes in that the process runs.
func (c *Container) processStarted(pid int, started time.Time, user *runtime.ContainerUser) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.built = nil
	err := c.transitionLocked(ContainerRunning, func(st *ContainerStatus) {
		st.PID, st.Started, st.User = pid, started, user
	})
	if err == nil && c.early != nil {
		early := c.early
		c.early = nil
		err = c.transitionLocked(ContainerExited, func(st *ContainerStatus) { applyExit(st, early) })
	}
	return err
}

// work returns the context of the making or the start, with caller's timeline, which cancel ends; the caller calls done
// at the end.
func (c *Container) work(caller context.Context, timeout time.Duration) (ctx context.Context, done func()) {
	ctx, cancel := background(timeout)
	ctx = trace.With(ctx, caller)
	c.mu.Lock()
	c.cancelWork = cancel
	c.mu.Unlock()
	return ctx, func() {
		c.mu.Lock()
		c.cancelWork = nil
		c.mu.Unlock()
		cancel()
	}
}

// cancel ends the making or the start that is going on.
func (c *Container) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancelWork != nil {
		c.cancelWork()
	}
}

func (s *Sandbox) newContainer(id string, config *runtime.ContainerConfig, created time.Time) *Container {
	c := &Container{id: id, s: s, m: s.m, exited: make(chan struct{})}
	c.status.Store(&ContainerStatus{
		ID: id, SandboxID: s.id, Config: config, State: ContainerCreating, Created: created,
		Resources: config.GetLinux().GetResources(),
	})
	return c
}

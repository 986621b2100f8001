package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/host"
	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
	"github.com/gantry-cri/gantry/sandbox/namespace"
	"github.com/gantry-cri/gantry/sandbox/spec"
)

// recover makes the Manager of what is on disk and in the keeper. What cannot be read is listed as unknown, can be
// removed, and stops nothing else. When it returns every sandbox and container is in its right state; what is to be
// undone is undone in the background, since that may take as long as a CNI plugin does.
func (m *Manager) recover(ctx context.Context) error {
	m.bootID = keeper.BootID()
	if err := m.scan(); err != nil {
		return err
	}
	m.keeper = newKeeperLink(m.config)
	m.keeper.onExit = m.processExited
	m.keeper.onSync = m.reconcile
	var err error
	if m.keeper.profile, err = spec.DefaultSeccomp(m.node); err != nil {
		klog.ErrorS(err, "The default seccomp profile is not compiled beforehand")
	}
	if err := m.keeper.open(ctx); err != nil {
		return err
	}
	m.settleSandboxes()
	if err := m.retain(ctx); err != nil {
		klog.ErrorS(err, "Leftovers of an earlier run could not all be removed")
	}
	return nil
}

// scan reads every record.
func (m *Manager) scan() error {
	entries, err := os.ReadDir(filepath.Join(m.config.Root, sandboxesDir))
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			m.scanSandbox(e.Name())
		}
	}
	return nil
}

func (m *Manager) scanSandbox(id string) {
	dir := m.sandboxDir(id)
	rec, config, err := loadSandboxRecord(dir)
	var s *Sandbox
	if err != nil {
		klog.ErrorS(err, "Record of a sandbox cannot be read; it is listed as unknown and can be removed", "sandbox", id)
		s = m.newSandbox(id, unknownSandboxConfig(id), modTime(dir))
		s.setLocked(func(st *SandboxStatus) {
			st.State = SandboxUnknown
			// Where its cgroup is if its configuration named no parent; if it named one there is nothing to remove.
			st.CgroupParent, s.ownCgroup, _ = m.cgroupParent(id, "")
			if netns := m.netns(id); pins.Alive(netns) {
				st.NetNS = netns // so that the plugins can undo what they did in it
			}
		})
	} else {
		s = m.newSandbox(id, config, rec.Created)
		s.ownCgroup = config.GetLinux().GetCgroupParent() == "" && m.config.CgroupDriver == DriverCgroupfs
		s.setLocked(func(st *SandboxStatus) {
			st.Handler, st.IPs, st.NetNS, st.CgroupParent = rec.Handler, rec.IPs, m.recoveredNetNS(rec), rec.CgroupParent
			st.SELinuxLevel = rec.SELinuxLevel
			st.Overhead, st.Resources, _ = rec.resources() // which were read once already
			st.State = m.recoveredState(rec)
		})
	}
	host.ReserveLevel(s.Status().SELinuxLevel)
	m.sandboxes[id] = s
	if s.Status().State == SandboxReady {
		m.running[keyOf(s.Status().Config)] = s
	}
	entries, err := os.ReadDir(filepath.Join(dir, containersDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		klog.ErrorS(err, "Containers of a sandbox cannot be read", "sandbox", id)
	}
	for _, e := range entries {
		s.scanContainer(e.Name())
	}
	// In the order in which they were made, as before the restart, and not in that of their names.
	s.setLocked(func(st *SandboxStatus) {
		slices.SortStableFunc(st.Containers, func(a, b string) int {
			return m.containers[a].Status().Created.Compare(m.containers[b].Status().Created)
		})
	})
}

// recoveredState is a sandbox's state after a restart of the daemon: ready if it was complete, not stopped, of this
// boot, and its namespaces are still pinned; creating if it was never complete; else stopping, which settleSandboxes
// completes.
func (m *Manager) recoveredState(rec *sandboxRecordV1) SandboxState {
	switch {
	case !rec.Ready:
		return SandboxCreating
	case rec.Stopped, rec.BootID != m.bootID, rec.NetNS != "" && !pins.Alive(m.netns(rec.ID)):
		return SandboxStopping
	}
	return SandboxReady
}

// recoveredNetNS is where the network namespace of a record is now, also when there is none any more.
func (m *Manager) recoveredNetNS(rec *sandboxRecordV1) string {
	if rec.NetNS == "" {
		return ""
	}
	return m.netns(rec.ID)
}

func (s *Sandbox) scanContainer(id string) {
	dir := s.m.containerDir(s.id, id)
	rec, config, resources, err := loadContainerRecord(dir)
	if err != nil {
		klog.ErrorS(err, "Record of a container cannot be read; it is listed as unknown and can be removed",
			"container", id, "sandbox", s.id)
		c := s.newContainer(id, unknownContainerConfig(id), modTime(dir))
		c.startTried.Store(true)
		c.setLocked(func(st *ContainerStatus) {
			st.State, st.ImageID, st.ImageRef = ContainerUnknown, "unknown", "unknown"
			st.CgroupPath = s.m.cgroupfsPath(s.Status().CgroupParent, id)
		})
		s.insertLocked(c)
		return
	}
	c := s.newContainer(id, config, rec.Created)
	c.setLocked(func(st *ContainerStatus) {
		st.ImageID, st.ImageRef, st.StopSignal, st.CgroupPath = rec.ImageID, rec.ImageRef, rec.StopSignal, rec.CgroupPath
		st.Resources, st.VolumeRefs = resources, rec.VolumeRefs
		st.LogPath, _ = logPath(s.Status().Config, config)
		if rec.Complete {
			st.State = ContainerCreated
		}
		if rec.StartError != "" {
			st.State = ContainerExited
			applyExit(st, &keeper.Status{ExitCode: exitCodeStartError, Finished: rec.StartFailed, Error: rec.StartError})
			c.closeExitedLocked()
		}
	})
	s.insertLocked(c)
}

// unknownSandboxConfig stands for a configuration that cannot be read. A client refuses a status without these fields.
func unknownSandboxConfig(id string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "unknown-" + shortID(id), Namespace: "unknown", Uid: id},
	}
}

func unknownContainerConfig(id string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "unknown-" + shortID(id)},
		Image:    &runtime.ImageSpec{Image: "unknown"},
	}
}

func shortID(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

func modTime(path string) time.Time {
	if info, err := os.Stat(path); err == nil {
		return info.ModTime()
	}
	return time.Now() // created_at must not be zero
}

// processExited takes in an exit that the keeper tells of.
func (m *Manager) processExited(id string, status *keeper.Status) {
	m.mu.RLock()
	c, s := m.containers[id], m.sandboxes[id]
	m.mu.RUnlock()
	switch {
	case c != nil:
		c.processExited(status)
	case s != nil:
		s.setPodInit(0)
	}
}

// reconcile puts every container into the state that the keeper's files and the list of what lives give. It is called
// whenever the link to the keeper was made anew, so no exit that happened meanwhile is missed.
func (m *Manager) reconcile(live map[string]keeper.WatchLive) {
	m.mu.RLock()
	containers := make([]*Container, 0, len(m.containers))
	for _, c := range m.containers {
		containers = append(containers, c)
	}
	sandboxes := slices.Collect(maps.Values(m.sandboxes))
	m.mu.RUnlock()
	// Without the Manager's lock: who holds a sandbox's waits for it when a container is added.
	for _, s := range sandboxes {
		s.setPodInit(live[s.id].PID)
	}
	for _, c := range containers {
		l, alive := live[c.id]
		c.reconcile(alive, l.PID)
	}
}

func (c *Container) reconcile(alive bool, pid int) {
	st := c.Status()
	if st.State != ContainerCreated && st.State != ContainerRunning {
		return
	}
	k, err := keeper.ReadStatus(c.dir())
	if errors.Is(err, os.ErrNotExist) && !alive && st.State == ContainerCreated {
		return // never started
	}
	if err != nil {
		k = &keeper.Status{PID: pid, Started: st.Created}
		if !errors.Is(err, os.ErrNotExist) {
			klog.ErrorS(err, "Status of a container cannot be read", "container", c.id)
		}
	}
	if !alive && !k.Exited() {
		// Of an earlier boot, or lost together with its keeper: nobody can tell how it ended.
		k.Finished, k.ExitCode, k.Error = time.Now(), exitCodeUnknown, "the process ended while nobody watched it"
		if k.PID == 0 {
			k.PID = -1 // it ran: this is no start that failed
		}
	}
	if st.State == ContainerCreated && k.PID == 0 && k.Exited() {
		_ = c.transition(ContainerExited, func(st *ContainerStatus) { applyExit(st, k) })
		return
	}
	if st.State == ContainerCreated {
		if err := c.processStarted(k.PID, k.Started, containerUser(k.User)); err != nil {
			klog.ErrorS(err, "Running container could not be taken in", "container", c.id)
		}
	}
	if k.Exited() {
		c.processExited(k)
	}
}

// settleSandboxes undoes what was never complete and completes the stops that were begun. That is done in the
// background: a plugin may take its time, and the sandboxes are listed as not ready meanwhile.
func (m *Manager) settleSandboxes() {
	for _, s := range m.sandboxes {
		switch s.Status().State {
		case SandboxCreating:
			_ = s.transition(SandboxStopping, nil)
			go func() {
				if err := m.Remove(context.Background(), s.id); err != nil {
					klog.ErrorS(err, "Half-made sandbox of an earlier run could not be removed", "sandbox", s.id)
				}
			}()
		case SandboxReady:
			if netns := s.Status().NetNS; netns != "" {
				namespace.Announce(s.id, netns)
			}
		case SandboxStopping:
			go func() {
				if err := s.stop(context.Background()); err != nil {
					klog.ErrorS(err, "Stop that an earlier run began could not be completed", "sandbox", s.id)
				}
			}()
		}
		for _, c := range s.members() {
			if c.Status().State == ContainerCreating {
				go func() {
					if err := c.removing.do(context.Background(), c.remove); err != nil {
						klog.ErrorS(err, "Half-made container of an earlier run could not be removed", "container", c.id)
					}
				}()
			}
		}
	}
}

// retainTimeout bounds the collection of network attachments without a record, which keeps the socket closed.
const retainTimeout = 10 * time.Second

// retain removes what has no record: snapshots, network attachments, pins. Processes without a record are the
// keeper's to report; they are killed by id.
func (m *Manager) retain(ctx context.Context) error {
	var sandboxes, containers []string
	for id := range m.sandboxes {
		sandboxes = append(sandboxes, id)
	}
	for id := range m.containers {
		containers = append(containers, id)
	}
	errs := []error{m.config.Images.Retain(ctx, containers)}
	pinned, err := os.ReadDir(m.pinsDir())
	errs = append(errs, err)
	for _, e := range pinned {
		if m.sandboxes[e.Name()] == nil && e.Name() != pins.Anchor {
			errs = append(errs, namespace.Remove(m.pinDir(e.Name())))
		}
	}
	for _, id := range m.keeper.held() {
		if m.containers[id] == nil && m.sandboxes[id] == nil {
			klog.InfoS("Process without a record is removed", "container", id)
			errs = append(errs, m.keeper.delete(ctx, keeper.DeleteRequest{ID: id}))
		}
	}
	// Not in the background: a sandbox made meanwhile would be missing in the list. A plugin that hangs gets this long.
	ctx, cancel := context.WithTimeout(ctx, retainTimeout)
	defer cancel()
	errs = append(errs, m.config.Network.Retain(ctx, sandboxes))
	return errors.Join(errs...)
}

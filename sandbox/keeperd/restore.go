package keeperd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/gantry-cri/gantry/sandbox/crilog"
	"github.com/gantry-cri/gantry/sandbox/keeper"
)

func (k *Keeper) handleRestore(ctx context.Context, call *keeper.Call) error {
	var req keeper.RestoreRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	if err := checkStart(&req.Start); err != nil {
		return keeper.Errorf(keeper.KindStart, "restore: %v", err)
	}
	if req.Start.Spec.Process.Terminal {
		return keeper.Errorf(keeper.KindStart, "restore: a container with a terminal is not supported")
	}
	c := newContainer(req.Start.ID, req.Start.Dir)
	intent := req.Start
	intent.Spec = nil
	return k.launch(ctx, call, c, record{Start: &intent}, func(ctx context.Context) error {
		c.watch.next("make mount namespace")
		return k.onMounts(req.Start.ID, req.Start.Spec, func() error { return k.restore(ctx, c, &req) })
	})
}

// restore makes the container as create does, but has CRIU make its process.
func (k *Keeper) restore(ctx context.Context, c *container, req *keeper.RestoreRequest) error {
	spec, config, err := k.prepare(c, &req.Start)
	if err != nil {
		return err
	}
	var out outsideWorld
	if err := readJSON(filepath.Join(req.Images, keeper.OutsideFile), &out); err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	if out.Version != outsideVersion {
		return fmt.Errorf("read checkpoint: version %d, expected %d", out.Version, outsideVersion)
	}
	user := c.status.User
	stdio, err := k.openChildStdio(&req.Start, [2]int{int(user.UID), int(user.GID)})
	if err != nil {
		return err
	}
	defer stdio.close()
	r := &criu{
		path: req.CRIU, command: "restore", images: req.Images, work: k.layout.bundle(c.id),
		attend: func(pid int) error { return enterCgroup(pid, config) },
	}
	defer func() { keeper.CloseFiles(r.inherit) }()
	if err := k.restoreArgs(r, c, spec, &out); err != nil {
		return err
	}
	if spec.Root.Readonly {
		// CRIU takes the root as it is; libcontainer would remount it.
		if err := unix.Mount("", k.layout.rootfs(c.id), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make root filesystem read-only: %w", err)
		}
	}
	c.watch.next("criu, restore")
	if err := r.run(ctx); err != nil {
		return err
	}
	c.watch.next("take over process")
	if err := k.adoptRestored(c, spec, config); err != nil {
		return err
	}
	return k.watchOver(c, req.Start.LogPath)
}

// enterCgroup puts the process that becomes CRIU, and the container after it, into the container's cgroup.
func enterCgroup(pid int, config *configs.Config) error {
	m, err := manager.New(config.Cgroups)
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if err := m.Apply(pid); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	if err := m.Set(config.Cgroups.Resources); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	return nil
}

// restoreArgs tell CRIU where to put the process and what to give it of the world outside.
func (k *Keeper) restoreArgs(r *criu, c *container, spec *specs.Spec, out *outsideWorld) error {
	rootfs := k.layout.rootfs(c.id)
	r.args = []string{
		"--root", rootfs, "--restore-detached", "--restore-sibling", "--pidfile", k.restoredPIDFile(c.id),
	}
	table := newMountTable(spec, rootfs)
	for _, point := range out.Mounts {
		source, err := table.source(point, c.cgroup)
		if err != nil {
			return err
		}
		r.args = append(r.args, "--external", fmt.Sprintf("mnt[%s]:%s", point, source))
	}
	for name, keys := range out.Streams {
		if !slices.Contains(streamNames, name) {
			return fmt.Errorf("read checkpoint: stream %q: expected one of %q", name, streamNames)
		}
		for _, key := range keys { // CRIU takes a descriptor for one name only
			f, err := openFIFO(k.layout.fifo(c.id, name))
			if err != nil {
				return fmt.Errorf("%s is in the checkpoint and not in the configuration: %w", name, err)
			}
			r.give(f, key)
		}
	}
	return r.joinNamespaces(spec, out)
}

// give hands a file to CRIU under a name of the checkpoint.
func (r *criu) give(f *os.File, key string) {
	r.args = append(r.args, "--inherit-fd", fmt.Sprintf("fd[%d]:%s", inheritedFD+len(r.inherit), key))
	r.inherit = append(r.inherit, f)
}

// joinNamespaces makes the process join the namespaces of the sandbox.
func (r *criu) joinNamespaces(spec *specs.Spec, out *outsideWorld) error {
	had := map[specs.LinuxNamespaceType]bool{specs.NetworkNamespace: out.Net != 0, specs.PIDNamespace: out.PID != 0}
	keys := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: netKey, specs.PIDNamespace: pidKey}
	for _, ns := range spec.Linux.Namespaces {
		key, external := keys[ns.Type]
		switch {
		case external && had[ns.Type] != (ns.Path != ""):
			return fmt.Errorf("%s namespace: the checkpoint and the configuration differ", ns.Type)
		case ns.Path == "":
			// CRIU makes it; but for this one, since it leaves cgroups alone.
			r.cgroupNS = r.cgroupNS || ns.Type == specs.CgroupNamespace
		case external:
			f, err := os.Open(ns.Path)
			if err != nil {
				return fmt.Errorf("open %s namespace: %w", ns.Type, err)
			}
			r.give(f, key)
		case ns.Type == specs.IPCNamespace, ns.Type == specs.UTSNamespace:
			r.args = append(r.args, "--join-ns", string(ns.Type)+":"+ns.Path)
		default:
			return fmt.Errorf("%s namespace: joining one is not supported", ns.Type)
		}
	}
	return nil
}

func (k *Keeper) restoredPIDFile(id string) string {
	return filepath.Join(k.layout.bundle(id), "restored.pid")
}

// adoptRestored takes over the process that CRIU made as a child of ours, and gives libcontainer the state that a start
// would have given it, for execs and updates.
func (k *Keeper) adoptRestored(c *container, spec *specs.Spec, config *configs.Config) error {
	b, err := os.ReadFile(k.restoredPIDFile(c.id))
	if err != nil {
		return fmt.Errorf("find the restored process: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("find the restored process: %w", err)
	}
	c.pid = pid
	k.host.own(pid)
	c.reap = reapByPID(pid)
	state, err := c.handle.State()
	if err != nil {
		return err
	}
	s, err := readStat(pid)
	if err != nil {
		return err
	}
	state.InitProcessPid, state.InitProcessStartTime, state.Created = pid, s.startTime, time.Now()
	if !config.Namespaces.Contains(configs.NEWTIME) && configs.IsNamespaceSupported(configs.NEWTIME) {
		// CRIU gives the process a time namespace, in which the clocks go on from where they were.
		state.Config.Namespaces = append(state.Config.Namespaces, configs.Namespace{Type: configs.NEWTIME})
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		if err := k.layout.writeSpec(c.id, spec); err != nil {
			return err
		}
	}
	for _, t := range configs.NamespaceTypes() {
		if configs.IsNamespaceSupported(t) {
			ns := configs.Namespace{Type: t}
			state.NamespacePaths[t] = ns.GetPath(pid)
		}
	}
	return writeJSON(filepath.Join(k.layout.libcontainer(), c.id, "state.json"), state)
}

// watchOver makes the keeper ready for a process that runs already.
func (k *Keeper) watchOver(c *container, logPath string) error {
	s, err := readStat(c.pid)
	if err != nil {
		return err
	}
	c.startTime = s.startTime
	if c.pidfd, err = openPIDFD(c.pid); err != nil {
		return err
	}
	log, err := crilog.Open(logPath)
	if err != nil {
		return err
	}
	if c.out, err = k.openOutput(c.id, log, nil); err != nil {
		return err
	}
	c.status.PID, c.status.StartTime, c.status.Started = c.pid, c.startTime, time.Now()
	return errors.Join(keeper.WriteStatus(c.dir, &c.status), os.Remove(k.restoredPIDFile(c.id)))
}

package keeperd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"

	"github.com/gantry-cri/gantry/sandbox/crilog"
	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/premount"
)

// releaseTimeout bounds the last step of a start: from the keeper's go-ahead to the execve.
const releaseTimeout = 30 * time.Second

func (k *Keeper) handleStart(ctx context.Context, call *keeper.Call) error {
	var watch stopwatch
	watch.next("decode request")
	var req keeper.StartRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	if err := checkStart(&req); err != nil {
		return keeper.Errorf(keeper.KindInvalid, "start: %v", err)
	}
	c := newContainer(req.ID, req.Dir)
	c.watch = watch
	c.terminal = req.Spec.Process.Terminal
	intent := req
	intent.Spec = nil
	return k.launch(ctx, call, c, record{Start: &intent}, func(ctx context.Context) error {
		c.watch.next("make mount namespace")
		return k.onMounts(req.ID, req.Spec, func() error { return k.create(c, &req) })
	})
}

// launch is what the starts of containers and pod inits have in common: intent on disk before any effect, make, and
// either enrol and reply or remove and record why not.
func (k *Keeper) launch(
	ctx context.Context, call *keeper.Call, c *container, r record, create func(context.Context) error,
) error {
	k.host.poke()
	ctx, c.give = context.WithCancel(ctx)
	defer c.give()
	if err := k.enter(c); err != nil {
		return err
	}
	c.watch.next("write record")
	err := k.layout.writeRecord(c.id, r)
	if err == nil {
		c.watch.next("wait for a turn")
		err = k.slots.do(ctx, func() error {
			stop := k.killWhenGivenUp(ctx, c)
			defer stop()
			return create(ctx)
		})
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("the caller gave up: %w", ctx.Err())
	}
	if err != nil {
		k.failStart(c, r, err)
		return keeper.Errorf(keeper.KindStart, "%s", reason(err))
	}
	c.watch.next("enrol")
	send, own := k.descriptors(c)
	sent := duplicateAll(send)
	keeper.CloseFiles(own)
	defer keeper.CloseFiles(sent)
	c.handle = nil
	status := c.status // the exit writes to it
	k.enrol(c)
	reply := keeper.StartReply{
		PID: c.pid, Started: status.Started, User: status.User,
		Terminal: c.out.terminal() != nil, Steps: c.watch.stop(),
	}
	return call.Reply(reply, sent...)
}

// checkStart rejects a request that cannot be carried out.
func checkStart(req *keeper.StartRequest) error {
	if err := checkID(req.ID); err != nil {
		return err
	}
	if req.Spec == nil || req.Spec.Linux == nil {
		return errors.New("spec.linux is missing")
	}
	if req.Dir == "" || req.Dir[0] != '/' {
		return fmt.Errorf("dir is %q: expected an absolute path", req.Dir)
	}
	if req.LogPath != "" && req.LogPath[0] != '/' {
		return fmt.Errorf("logPath is %q: expected an absolute path", req.LogPath)
	}
	return checkProcess(req.Spec.Process)
}

// onThread runs f on a thread of its own that is thrown away after it: f may change what belongs to a thread. Children
// that f starts inherit it. The runtime clones new threads from a clean one, so nothing of it spreads.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// create makes the container and starts its process. It runs on the thread of onMounts. On error the caller removes what
// there is.
func (k *Keeper) create(c *container, req *keeper.StartRequest) error {
	spec, config, err := k.prepare(c, req)
	if err != nil {
		return err
	}
	if !k.config.PlainMounts {
		c.watch.next("mount beforehand")
		// config is the one that the container has, too: libcontainer.Create keeps the pointer.
		premount.Take(config)
		premount.TakeCgroups(config, c.cgroup.paths, k.layout.cgroupTree())
	}
	c.watch.next("open streams")
	return k.run(c, req, spec, config)
}

// prepare makes the container up to its process. It runs on the thread of onMounts, in whose mount namespace the root
// filesystem is mounted, and from which the container's is made.
func (k *Keeper) prepare(c *container, req *keeper.StartRequest) (*specs.Spec, *configs.Config, error) {
	userns, err := openUserNamespace(req.Spec)
	if err != nil {
		return nil, nil, err
	}
	defer userns.close()
	c.watch.next("mount root filesystem")
	rootfs := k.layout.rootfs(req.ID)
	if err := mountRootfs(req.Rootfs, rootfs, userns); err != nil {
		return nil, nil, err
	}
	if err := userns.mapVolumes(req.Spec, func() (string, error) { return k.layout.makeMountPoint(req.ID) }); err != nil {
		return nil, nil, err
	}
	c.watch.next("look up user")
	user, err := resolveUser(rootfs, req.User)
	if err != nil {
		return nil, nil, err
	}
	c.status.User = user
	c.watch.next("write and translate spec")
	spec := k.complete(req.Spec, rootfs, user)
	if err := k.layout.writeSpec(req.ID, spec); err != nil {
		return nil, nil, err
	}
	config, err := k.configure(req, spec)
	if err != nil {
		return nil, nil, err
	}
	c.watch.next("libcontainer, create")
	c.handle, err = libcontainer.Create(k.layout.libcontainer(), req.ID, config)
	if err != nil {
		return nil, nil, err
	}
	state, err := c.handle.State()
	if err != nil {
		return nil, nil, err
	}
	c.cgroup = cgroup{paths: state.CgroupPaths}
	c.cgroup.inheritCpuset()
	k.oom.open(c.cgroup.counter())
	return spec, config, nil
}

// complete fills in what only the keeper knows.
func (k *Keeper) complete(spec *specs.Spec, rootfs string, user keeper.ResolvedUser) *specs.Spec {
	root := specs.Root{}
	if spec.Root != nil {
		root = *spec.Root
	}
	root.Path = rootfs
	spec.Root = &root
	u := &spec.Process.User
	u.UID, u.GID, u.AdditionalGids, u.Username = user.UID, user.GID, user.Groups, ""
	k.clamp(spec.Process)
	return spec
}

// configure translates the spec, with the short form of its seccomp profile. libcontainer takes the thread's current
// directory for the bundle.
func (k *Keeper) configure(req *keeper.StartRequest, spec *specs.Spec) (*configs.Config, error) {
	if err := os.Chdir(k.layout.bundle(req.ID)); err != nil {
		return nil, fmt.Errorf("enter bundle: %w", err)
	}
	short, linux := *spec, *spec.Linux
	short.Linux = &linux
	linux.Seccomp = k.profiles.Meet(linux.Seccomp)
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       req.ID,
		UseSystemdCgroup: req.SystemdCgroup,
		Spec:             &short,
	})
	if err != nil {
		return nil, fmt.Errorf("translate spec: %w", err)
	}
	if req.SystemdCgroup && countsPIDs() {
		unlimitPIDs(config.Cgroups.Resources)
	}
	return config, nil
}

// countsPIDs tells whether the node has a controller that limits processes; without it there is no file to say so in.
var countsPIDs = sync.OnceValue(func() bool {
	controllers, err := cgroups.GetAllSubsystems()
	return err == nil && slices.Contains(controllers, "pids")
})

// unlimitPIDs says that there is no limit where none is asked for: systemd would set its default, some thousands.
func unlimitPIDs(r *cgroups.Resources) {
	if r.PidsLimit == nil && r.Unified["pids.max"] == "" {
		unlimited := int64(-1)
		r.PidsLimit = &unlimited
	}
}

// run starts the process and fills in the container.
func (k *Keeper) run(c *container, req *keeper.StartRequest, spec *specs.Spec, config *configs.Config) error {
	process, err := newProcess(spec.Process)
	if err != nil {
		return err
	}
	process.Init = true
	uid, err := config.HostRootUID()
	if err != nil {
		return err
	}
	gid, err := config.HostRootGID()
	if err != nil {
		return err
	}
	stdio, err := k.openChildStdio(req, [2]int{uid, gid})
	if err != nil {
		return err
	}
	defer stdio.close()
	var tty *console
	if c.terminal {
		if tty, err = newConsole(); err != nil {
			return err
		}
		defer tty.close()
		process.ConsoleSocket = tty.child
	} else {
		process.Stdin, process.Stdout, process.Stderr = stdio.stdin, stdio.stdout, stdio.stderr
	}
	c.watch.next(stepInit)
	if err := c.handle.Start(process); err != nil {
		return err
	}
	if c.pid, err = process.Pid(); err != nil {
		return err
	}
	c.reap = reapByPID(c.pid)
	c.watch.next("open log")
	if m, ok := k.marks.Of(c.pid); ok {
		c.watch.divide(m)
	}
	return k.arm(c, req.LogPath, tty)
}

// arm makes the keeper ready for the process, lets it run the command, and records it.
func (k *Keeper) arm(c *container, logPath string, tty *console) error {
	s, err := readStat(c.pid)
	if err != nil {
		return err
	}
	c.startTime = s.startTime
	if c.pidfd, err = openPIDFD(c.pid); err != nil {
		return err
	}
	k.host.own(c.pid)
	var master *os.File
	if tty != nil {
		if master, err = tty.master(); err != nil {
			return err
		}
	}
	log, err := crilog.Open(logPath)
	if err != nil {
		keeper.CloseFiles([]*os.File{master})
		return err
	}
	if c.out, err = k.openOutput(c.id, log, master); err != nil {
		return err
	}
	fd, err := dup(c.pidfd)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	c.watch.next("execute command")
	if err := release(k.layout.execFIFO(c.id), fd, releaseTimeout); err != nil {
		return err
	}
	c.watch.next("write status")
	c.status.PID, c.status.StartTime, c.status.Started = c.pid, c.startTime, time.Now()
	return keeper.WriteStatus(c.dir, &c.status)
}

// failStart undoes a start and records why.
func (k *Keeper) failStart(c *container, r record, cause error) {
	if c.pidfd != nil {
		_ = signalPIDFD(c.pidfd, unix.SIGKILL)
	}
	if err := killTree(c.cgroup.tree(), killPatience); err != nil {
		k.log.printf("undo start of %s: %v", c.id, err)
	}
	if c.reap != nil && c.pid > 0 {
		_ = bounded(killPatience, "reap", func() error { _, err := c.reap(); k.host.disown(c.pid); return err })
	}
	if c.out != nil {
		c.out.close(0)
	}
	k.oom.close(c.cgroup.counter())
	if err := k.release(c); err != nil {
		k.log.printf("undo start of %s: %v", c.id, err)
	}
	if err := k.removeRemains(c.id, r.cgroup()); err != nil {
		k.log.printf("undo start of %s: %v", c.id, err)
	}
	now := time.Now()
	status := keeper.Status{Finished: now, ExitCode: 128, Error: reason(cause), User: c.status.User}
	if err := keeper.WriteStatus(c.dir, &status); err != nil && !os.IsNotExist(err) {
		k.log.printf("failed start of %s: %v", c.id, err)
	}
	k.forget(c)
	close(c.enrolled)
	close(c.gone)
}

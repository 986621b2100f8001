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
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/specconv"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/stage"
)

// execution is one process that was exec'd into a container, from the request to the last of its descendants.
type execution struct {
	c      *container
	master *os.File
	pid    int
	pidfd  *os.File
	// reap waits for the process, which has exited.
	reap func() (unix.WaitStatus, error)
	// sub is the cgroup of its own, in the hierarchy of controller; "" where there is none to be had.
	sub, controller string
}

func (k *Keeper) handleExec(ctx context.Context, call *keeper.Call) error {
	var req keeper.ExecRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	if len(req.Args) == 0 {
		return keeper.Errorf(keeper.KindInvalid, "exec: args is empty: expected a command")
	}
	if !req.Terminal && len(call.Files) != 3 {
		return keeper.Errorf(keeper.KindInvalid, "exec: %d descriptors, expected 3", len(call.Files))
	}
	c, err := k.running(req.ID)
	if err != nil {
		return err
	}
	if c.out == nil {
		return keeper.Errorf(keeper.KindInvalid, "exec: %s is a pod init", req.ID)
	}
	e := &execution{c: c}
	defer e.close()
	err = k.slots.do(ctx, func() error { return k.startExec(ctx, e, &req, call.Files) })
	keeper.CloseFiles(call.Files)
	if err != nil {
		if k.stateOf(c) != stateRunning {
			return keeper.Errorf(keeper.KindState, "container %s is not running", req.ID)
		}
		return keeper.Errorf(keeper.KindStart, "%s", reason(err))
	}
	defer k.host.disown(e.pid)
	var files []*os.File
	if e.master != nil {
		files = append(files, e.master)
	}
	if err := call.Reply(keeper.ExecStarted{PID: e.pid}, files...); err != nil {
		e.kill()
	}
	code := k.awaitExec(ctx, e)
	e.leave()
	return call.Reply(keeper.ExecExited{ExitCode: code})
}

// startExec starts the process in its cgroup.
func (k *Keeper) startExec(ctx context.Context, e *execution, req *keeper.ExecRequest, stdio []*os.File) error {
	for _, f := range stdio {
		// The process gets the descriptors as they are: nothing of an exec passes through the keeper.
		_ = f.SetDeadline(time.Time{})
		if err := setBlocking(f); err != nil {
			return err
		}
	}
	if err := e.makeCgroup(); err != nil {
		return err
	}
	sub := e.sub
	stop := context.AfterFunc(ctx, func() { _ = killTree(sub, killPatience) })
	defer stop()
	template, err := k.execTemplate(ctx, e.c)
	if err == nil && template != nil && e.sub != "" {
		err = k.startStage(ctx, e, template, req, stdio)
	} else if err == nil {
		err = k.startPlain(e, req, stdio)
	}
	if err != nil {
		return err
	}
	k.host.own(e.pid)
	e.pidfd, err = openPIDFD(e.pid)
	return err
}

// execTemplate is what the execs of a container have in common, made at the first.
type execTemplate struct {
	mu sync.Mutex
	// made says that there is one, or that there cannot be.
	made     bool
	template *stage.Template
}

// execTemplate returns nil for a container whose commands only libcontainer can start.
func (k *Keeper) execTemplate(ctx context.Context, c *container) (*stage.Template, error) {
	x := &c.execs
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.made || k.config.PlainExec {
		return x.template, nil
	}
	spec, err := k.layout.readSpec(c.id)
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	if err := k.launcher.Unsupported(spec); err != nil {
		k.log.once("execs start slowly: %v", err)
		x.made = true
		return nil, nil
	}
	program, err := k.programs.Compile(ctx, spec.Linux.Seccomp)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		k.log.once("execs start slowly: %v", err)
		return nil, nil
	}
	x.template, err = stage.NewTemplate(c.id, spec, program)
	x.made = err == nil
	return x.template, err
}

// startStage starts the process by the C stage.
func (k *Keeper) startStage(
	ctx context.Context, e *execution, template *stage.Template, req *keeper.ExecRequest, stdio []*os.File,
) error {
	command := stage.Command{Args: req.Args, Terminal: req.Terminal, Init: e.c.pidfd}
	copy(command.Streams[:], stdio)
	for controller, dir := range e.c.cgroup.paths {
		if controller == e.controller {
			dir = e.sub
		}
		switch {
		case controller == "":
			command.Unified = dir
		case !slices.Contains(command.Cgroups, dir): // hierarchies with two controllers are there twice
			command.Cgroups = append(command.Cgroups, dir)
		}
	}
	p, err := k.launcher.Start(ctx, template, &command)
	if err != nil {
		return err
	}
	e.pid, e.master, e.reap = p.PID, p.Master, p.Wait
	return nil
}

// startPlain starts the process by libcontainer.
func (k *Keeper) startPlain(e *execution, req *keeper.ExecRequest, stdio []*os.File) error {
	k.host.poke()
	template, err := k.layout.readProcess(req.ID)
	if err != nil {
		return fmt.Errorf("read process: %w", err)
	}
	template.Args = req.Args
	template.ConsoleSize = nil
	hasTerm := slices.ContainsFunc(template.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") })
	if req.Terminal && !hasTerm {
		template.Env = append(template.Env, "TERM=xterm")
	}
	process, err := newProcess(template)
	if err != nil {
		return err
	}
	if e.sub != "" {
		process.SubCgroupPaths = map[string]string{e.controller: filepath.Base(e.sub)}
	}
	var tty *console
	if req.Terminal {
		if tty, err = newConsole(); err != nil {
			return err
		}
		defer tty.close()
		process.ConsoleSocket = tty.child
	} else {
		process.Stdin, process.Stdout, process.Stderr = stdio[0], stdio[1], stdio[2]
	}
	handle, done, err := k.borrow(e.c)
	if err != nil {
		return err
	}
	if err = k.restoreProfile(req.ID, handle); err == nil {
		err = handle.Start(process)
	}
	done()
	if err != nil {
		return err
	}
	if e.pid, err = process.Pid(); err != nil {
		return err
	}
	e.reap = reapByPID(e.pid)
	if tty == nil {
		return nil
	}
	e.master, err = tty.master()
	return err
}

// borrow returns libcontainer's object for a container. Its Start holds a lock until the process is set up, so an exec
// that comes meanwhile gets an object of its own.
func (k *Keeper) borrow(c *container) (handle *libcontainer.Container, done func(), err error) {
	if c.handleMu.TryLock() {
		if c.handle != nil {
			return c.handle, c.handleMu.Unlock, nil
		}
		handle, err = libcontainer.Load(k.layout.libcontainer(), c.id)
		if err == nil && k.stateOf(c) == stateRunning {
			c.handle = handle
		}
		if err != nil {
			c.handleMu.Unlock()
			return nil, nil, err
		}
		return handle, c.handleMu.Unlock, nil
	}
	handle, err = libcontainer.Load(k.layout.libcontainer(), c.id)
	return handle, func() {}, err
}

// restoreProfile gives libcontainer's object the whole seccomp profile in place of the short form, which means something
// only to the keeper that started the container: see package profiles.
func (k *Keeper) restoreProfile(id string, handle *libcontainer.Container) error {
	config := handle.Config()
	if config.Seccomp == nil {
		return nil
	}
	spec, err := k.layout.readSpec(id)
	if err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	whole, err := specconv.SetupSeccomp(spec.Linux.Seccomp)
	if err != nil {
		return fmt.Errorf("translate seccomp profile: %w", err)
	}
	*config.Seccomp = *whole // Config is a copy, this is not
	return nil
}

// setBlocking takes O_NONBLOCK from a description that another program set up: commands do not expect it.
func setBlocking(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.SetNonblock(int(fd), false) }); err != nil {
		return err
	}
	return serr
}

var execCounter atomic.Uint64

// makeCgroup makes the cgroup below the container's that the process and its descendants cannot leave by forking. On v1
// that is one in the freezer hierarchy only: the others account, this one is for killing. There is none where the
// container's cgroup can have none.
func (e *execution) makeCgroup() error {
	controller := "freezer"
	if cgroups.IsCgroup2UnifiedMode() {
		controller = ""
	}
	parent := e.c.cgroup.paths[controller]
	if parent == "" {
		return nil
	}
	for {
		dir := filepath.Join(parent, "exec-"+strconv.FormatUint(execCounter.Add(1), 10))
		err := os.Mkdir(dir, 0o755)
		switch {
		case os.IsExist(err):
			continue // left by a keeper of before
		case errors.Is(err, unix.EAGAIN):
			return nil // cgroup.max.depth or cgroup.max.descendants of v2
		case err != nil:
			return fmt.Errorf("make cgroup of exec: %w", err)
		case controller == "" && !takesProcesses(dir):
			return os.Remove(dir)
		}
		e.sub, e.controller = dir, controller
		return nil
	}
}

// takesProcesses reports whether a cgroup of v2 does. One beside cgroups for single threads does not.
func takesProcesses(dir string) bool {
	kind, err := cgroups.ReadFile(dir, "cgroup.type")
	return err != nil || strings.TrimSpace(kind) != "domain invalid"
}

// awaitExec returns the exit code, after killing everything when the client gave up.
func (k *Keeper) awaitExec(ctx context.Context, e *execution) int32 {
	if err := awaitExit(ctx, e.pidfd); err != nil {
		e.kill()
		wait, cancel := context.WithTimeout(context.Background(), killPatience)
		defer cancel()
		if awaitExit(wait, e.pidfd) != nil {
			// In the kernel, not to be killed (state D): whoever waited is gone, the wait goes on without a thread.
			k.log.printf("exec in %s: process %d survives SIGKILL", e.c.id, e.pid)
			_ = awaitExit(context.Background(), e.pidfd)
		}
	}
	status, err := e.reap()
	if err != nil && status == 0 && !errors.Is(err, os.ErrProcessDone) {
		k.log.printf("reap exec in %s: %v", e.c.id, err)
		return unknownExit
	}
	return codeOf(status)
}

// kill ends the process and all that it started.
func (e *execution) kill() {
	if e.pidfd != nil {
		_ = signalPIDFD(e.pidfd, unix.SIGKILL)
	}
	_ = killTree(e.sub, killPatience)
}

// leave hands what the process left running to the container and removes its cgroup.
func (e *execution) leave() {
	if e.sub == "" {
		return
	}
	home := filepath.Dir(e.sub)
	for try := range 20 {
		pids := treePIDs(e.sub)
		if len(pids) == 0 {
			_ = removeDirs(e.sub)
			break
		}
		for _, pid := range pids {
			if err := cgroups.WriteCgroupProc(home, pid); errors.Is(err, unix.EBUSY) {
				// On v2 a container may have made its own cgroup one that takes no process.
				home = e.c.innerCgroup()
			}
		}
		// A process that is just dying is not moved, and is listed until it is gone.
		time.Sleep(min(time.Millisecond<<try, 64*time.Millisecond))
	}
	e.sub = ""
}

// innerCgroup is the cgroup below the container's own that its first process has gone to, on v2; "" if it has not.
func (c *container) innerCgroup() string {
	paths, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", c.pid))
	dir := filepath.Join("/sys/fs/cgroup", paths[""])
	if err != nil || !strings.HasPrefix(dir, c.cgroup.paths[""]+"/") {
		return ""
	}
	return dir
}

// execCgroups lists the cgroups of execs.
func (c *container) execCgroups() (dirs []string) {
	for _, dir := range c.cgroup.paths {
		subs, _ := filepath.Glob(filepath.Join(dir, "exec-*"))
		dirs = append(dirs, subs...)
	}
	return dirs
}

// endExecs kills what runs in the cgroups of execs: their clients lost the connection when the keeper of before died.
// The list is one of before this keeper had execs of its own, which may be called the same.
func endExecs(dirs []string) {
	for _, dir := range dirs {
		_ = killTree(dir, killPatience)
		_ = removeDirs(dir)
	}
}

func (e *execution) close() {
	if e.sub != "" {
		// The start failed: whatever it left goes.
		_ = killTree(e.sub, killPatience)
		_ = removeDirs(e.sub)
	}
	for _, f := range []*os.File{e.master, e.pidfd} {
		if f != nil {
			_ = f.Close()
		}
	}
}

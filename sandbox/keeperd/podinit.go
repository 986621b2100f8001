package keeperd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/exeseal"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/podinit"
)

// podInitTimeout bounds the C code from its execve until it has cut itself off.
const podInitTimeout = 10 * time.Second

func (k *Keeper) handlePodInit(ctx context.Context, call *keeper.Call) error {
	var req keeper.PodInitRequest
	if err := call.Decode(&req); err != nil {
		return err
	}
	if err := checkID(req.ID); err != nil {
		return err
	}
	if req.Dir == "" || req.Dir[0] != '/' {
		return keeper.Errorf(keeper.KindInvalid, "podinit: dir is %q: expected an absolute path", req.Dir)
	}
	c := newContainer(req.ID, req.Dir)
	return k.launch(ctx, call, c, record{PodInit: &req}, func(context.Context) error {
		return k.createPodInit(c, &req)
	})
}

// createPodInit starts the process. The binary is sealed as libcontainer seals it: containers share a PID namespace
// with it and could open it by /proc/1/exe.
func (k *Keeper) createPodInit(c *container, req *keeper.PodInitRequest) error {
	c.watch.next("start init of the PID namespace")
	m, err := newManager(req.ID, req.CgroupsPath, req.SystemdCgroup)
	if err != nil {
		return err
	}
	c.cgroup = cgroup{paths: m.GetPaths()}
	k.oom.open(c.cgroup.counter())
	exe, err := exeseal.CloneSelfExe(k.layout.bundle(req.ID))
	if err != nil {
		return fmt.Errorf("seal binary: %w", err)
	}
	defer exe.Close()
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command("/proc/self/fd/4")
	cmd.Args = []string{podinit.Name}
	cmd.Env = []string{podinit.Marker + "=1"}
	cmd.ExtraFiles = []*os.File{readyChild, exe}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := k.startPodInit
	if req.UserNS != "" {
		start = k.startMappedPodInit
		userns, err := k.openPin(req.UserNS)
		if err != nil {
			return fmt.Errorf("open user namespace: %w", err)
		}
		defer userns.Close()
		cmd.Env = append(cmd.Env, podinit.UsernsMarker+"=1")
		cmd.ExtraFiles = append(cmd.ExtraFiles, userns)
	}
	if req.NetNS != "" {
		netns, err := k.openPin(req.NetNS)
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		defer netns.Close()
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", podinit.NetnsMarker, 3+len(cmd.ExtraFiles)))
		cmd.ExtraFiles = append(cmd.ExtraFiles, netns)
	}
	err = start(c, cmd, ready)
	_ = readyChild.Close()
	if err != nil {
		return fmt.Errorf("start pod init: %w", err)
	}
	if c.pidfd, err = openPIDFD(c.pid); err != nil {
		return err
	}
	if err := m.Apply(c.pid); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return c.confirm(ready)
}

func (k *Keeper) startPodInit(c *container, cmd *exec.Cmd, _ *os.File) error {
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
	if err := cmd.Start(); err != nil {
		return err
	}
	c.pid = cmd.Process.Pid
	k.host.own(c.pid)
	c.reap = reapByPID(c.pid)
	return nil
}

// startMappedPodInit starts one in a user namespace, by way of a process that enters that and ends.
func (k *Keeper) startMappedPodInit(c *container, cmd *exec.Cmd, ready *os.File) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = cmd.ExtraFiles[0].Close() // its end is then the end
	k.host.own(cmd.Process.Pid)
	defer k.host.disown(cmd.Process.Pid)
	_ = ready.SetReadDeadline(time.Now().Add(podInitTimeout))
	said := make([]byte, 256)
	n, readErr := io.ReadFull(ready, said[:podinit.PIDDigits])
	if readErr != nil {
		_ = cmd.Process.Kill() // it ends by itself otherwise
	}
	pid, err := strconv.Atoi(string(said[:n]))
	if err == nil && readErr == nil {
		c.pid = pid
		k.host.own(pid)
		c.reap = reapByPID(pid)
		return cmd.Wait()
	}
	_ = cmd.Wait()
	if readErr == nil {
		more, _ := ready.Read(said[n:])
		n += more
	}
	return fmt.Errorf("%w: %s", errors.Join(err, readErr), said[:n])
}

// confirm waits until the init says that it is cut off from the host, lets nothing of the keeper's OOM score remain,
// and records the process.
func (c *container) confirm(ready *os.File) error {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.pid), []byte("-998"), 0o644)
	_ = ready.SetReadDeadline(time.Now().Add(podInitTimeout))
	said := make([]byte, 256)
	n, err := ready.Read(said)
	if err != nil {
		return fmt.Errorf("pod init: %w", err)
	}
	if text := string(said[:n]); text != podinit.Ready {
		return fmt.Errorf("pod init: %s", text)
	}
	s, err := readStat(c.pid)
	if err != nil {
		return err
	}
	c.startTime = s.startTime
	c.status.PID, c.status.StartTime, c.status.Started = c.pid, c.startTime, time.Now()
	c.status.User = keeper.ResolvedUser{UID: podinit.ID, GID: podinit.ID, Groups: []uint32{podinit.ID}}
	return keeper.WriteStatus(c.dir, &c.status)
}

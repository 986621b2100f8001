package stage

// #include "stage.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// Command is one command to be started.
type Command struct {
	// Args is looked up in the container, by the PATH of its environment.
	Args []string
	// Terminal gives it a new terminal; Streams are its streams otherwise.
	Terminal bool
	Streams  [3]*os.File
	// Init is a pidfd of the container's first process, whose namespaces it gets.
	Init *os.File
	// Cgroups are the directories of the version 1 cgroups that it enters, Unified that of the version 2 cgroup, if any.
	Cgroups []string
	Unified string
}

// Process is a child of the caller, to be waited for by Wait.
type Process struct {
	PID int
	// Master is the terminal, in non-blocking mode; nil if none was asked for.
	Master *os.File
}

// Wait reaps the process and blocks until it has exited. It is called once.
func (p *Process) Wait() (unix.WaitStatus, error) { return reap(p.PID) }

func reap(pid int) (status unix.WaitStatus, err error) {
	for {
		if _, err = unix.Wait4(pid, &status, 0, nil); err != unix.EINTR {
			return status, os.NewSyscallError("wait4", err)
		}
	}
}

// Start starts a command. When ctx ends before it executes, or on another error, nothing of it is left but what the
// caller finds in its cgroup: a process that is killed there is reaped here.
//
// Errors: *Error when a step failed.
func (l *Launcher) Start(ctx context.Context, t *Template, c *Command) (*Process, error) {
	for _, arg := range c.Args {
		if strings.Contains(arg, "\x00") {
			return nil, &os.PathError{Op: "exec", Path: c.Args[0], Err: unix.EINVAL}
		}
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	pid, err := l.fork(c, theirs)
	_ = unix.Close(theirs)
	if err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	// Before the process is reaped, so that the number is its own.
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(killed); _ = unix.Kill(pid, unix.SIGKILL) })
	p, err := converse(ours, t.encode(c), c)
	if !stop() {
		<-killed
	} else if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	// It has said all and ends, or it was killed.
	if _, werr := reap(pid); err == nil {
		err = werr
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil && p.Master != nil {
		_ = p.Master.Close()
	}
	return p, err
}

// socketPair returns a socket for the poller and one to be inherited.
func socketPair() (ours *os.File, theirs int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, -1, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "stage"), fds[1], nil
}

// fork executes the stage. Its binary is among the descriptors, since one of a high number might be replaced by those
// while they are put in order (golang.org/issue/61751).
func (l *Launcher) fork(c *Command, socket int) (int, error) {
	init, err := keeper.Duplicate(c.Init)
	if err != nil {
		return 0, err
	}
	defer unix.Close(init)
	files := make([]uintptr, C.FDS)
	for i, f := range c.Streams {
		if f == nil || c.Terminal {
			f = l.null
		}
		files[i] = f.Fd()
	}
	files[C.SOCKET_FD], files[C.INIT_FD], files[C.EXE_FD] = uintptr(socket), uintptr(init), l.exe.Fd()
	exe := fmt.Sprintf("/proc/self/fd/%d", C.EXE_FD)
	return syscall.ForkExec(exe, []string{C.STAGE_NAME}, &syscall.ProcAttr{Dir: "/", Env: []string{}, Files: files})
}

// converse sends the request and reads what becomes of it.
func converse(socket *os.File, request []byte, c *Command) (*Process, error) {
	p := &Process{}
	if _, err := socket.Write(request); err != nil {
		return p, fmt.Errorf("instruct the process: %w", err)
	}
	for {
		f, detail, err := p.receive(socket)
		switch {
		case errors.Is(err, io.EOF):
			return p, errors.New("the process was killed while it was set up")
		case err != nil:
			return p, fmt.Errorf("set up the process: %w", err)
		case f.step == C.STEP_MASTER:
			continue
		}
		if f.helper > 0 {
			_, _ = reap(int(f.helper))
		}
		p.PID = int(f.pid)
		if f.step == C.STEP_NONE {
			return p, nil
		}
		if p.PID > 0 {
			_, _ = reap(p.PID)
		}
		return p, &Error{step: int(f.step), arg: int(f.arg), name: c.Args[0], detail: detail, errno: unix.Errno(f.error)}
	}
}

// receive reads a frame, and the terminal that comes with it.
func (p *Process) receive(socket *os.File) (f C.struct_frame, detail string, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return f, "", err
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&f)), unsafe.Sizeof(f))
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, rerr = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
		return rerr != unix.EAGAIN
	})
	if err = errors.Join(err, rerr); err != nil {
		return f, "", err
	}
	if oobn > 0 {
		p.take(oob[:oobn])
	}
	if n == 0 {
		return f, "", io.EOF
	}
	if _, err := io.ReadFull(socket, b[n:]); err != nil {
		return f, "", io.EOF
	}
	text := make([]byte, f.detail)
	if _, err := io.ReadFull(socket, text); err != nil {
		return f, "", io.EOF
	}
	return f, string(text), nil
}

// take keeps the terminal.
func (p *Process) take(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 || p.Master != nil {
		return
	}
	_ = unix.SetNonblock(fds[0], true)
	p.Master = os.NewFile(uintptr(fds[0]), "terminal")
}

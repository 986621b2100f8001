package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
)

// holdTimeout bounds the life of the process that a user namespace is made with.
const holdTimeout = 30 * time.Second

// IDMap maps Length ids, from 0 on inside, to those from Host on outside.
type IDMap struct{ Host, Length uint32 }

// User says what a user namespace is like, and what to make it with.
type User struct {
	UIDs, GIDs IDMap
	// Holder is a program that does nothing until its standard input ends, and Env its environment. A user namespace can
	// only be entered by a process of one thread, which a Go program never is.
	Holder string
	Env    []string

	tree pins.Tree // of the namespace, while held
	held bool
}

func (m IDMap) sys() []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{HostID: int(m.Host), Size: int(m.Length)}}
}

// hold starts a process in a new user namespace, and in new ones, which that owns, of the kinds in flags. end ends it.
func (u *User) hold(flags int) (pid int, end func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), holdTimeout)
	cmd := exec.CommandContext(ctx, u.Holder)
	cmd.Env = u.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  uintptr(unix.CLONE_NEWUSER | flags),
		UidMappings: u.UIDs.sys(), GidMappings: u.GIDs.sys(), GidMappingsEnableSetgroups: true,
	}
	var stdin io.WriteCloser
	if stdin, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return 0, nil, fmt.Errorf("make user namespace: %w", err)
	}
	return cmd.Process.Pid, func() {
		_ = stdin.Close()
		cancel() // it need not come to read the end
		_ = cmd.Wait()
	}, nil
}

// enterNew makes namespaces of the given kinds that a new user namespace owns, takes that one and moves the calling
// thread to the others. The thread stays in the daemon's user namespace, where it has every right over the new one.
func (u *User) enterNew(kinds map[string]int, flags int) error {
	pid, end, err := u.hold(flags)
	if err != nil {
		return err
	}
	defer end()
	proc := fmt.Sprintf("/proc/%d/ns/", pid)
	if u.tree, err = pins.Clone(proc + Userns); err != nil {
		return err
	}
	u.held = true
	for kind, flag := range kinds {
		fd, err := unix.Open(proc+kind, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, flag)
			_ = unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("enter %s namespace: %w", kind, err)
		}
	}
	return nil
}

// release lets go of the namespace; where it is pinned it stays.
func (u *User) release() {
	if u.held {
		u.tree.Close()
		u.held = false
	}
}

// asRoot calls f with the effective user that is root in the namespace: since 5.19 the kernel lets only that one set
// the sysctls of an IPC namespace, whatever capabilities another has. The thread must be locked.
func (u *User) asRoot(f func() error) error {
	const same = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(u.UIDs.Host), same); errno != 0 {
		return os.NewSyscallError("setresuid", errno)
	}
	err := f()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, 0, same); errno != 0 {
		err = errors.Join(err, os.NewSyscallError("setresuid", errno))
	}
	return err
}

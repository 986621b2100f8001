package keeperd

import (
	"context"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openPIDFD returns a pidfd that the netpoller can wait for: no thread is blocked while a container lives.
func openPIDFD(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// awaitExit returns when the process has exited, or with an error when the file was closed or ctx ended.
func awaitExit(ctx context.Context, pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = pidfd.SetReadDeadline(time.Unix(1, 0))
	})
	err = raw.Read(func(fd uintptr) bool { return pidfdReadable(int(fd)) })
	if !stop() {
		// The deadline is set, or just being set: the next wait must not find it.
		<-interrupted
		_ = pidfd.SetReadDeadline(time.Time{})
	}
	return err
}

// hasExited reports whether all threads of the process have.
func hasExited(pidfd *os.File) (exited bool) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) { exited = pidfdReadable(int(fd)) })
	return exited
}

func pidfdReadable(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// signalPIDFD sends a signal; that the process is gone is no error.
func signalPIDFD(pidfd *os.File, sig unix.Signal) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if serr == unix.ESRCH {
		return nil
	}
	return serr
}

// pidfdInfo is struct pidfd_info of the kernel, first version.
type pidfdInfo struct {
	mask, cgroup              uint64
	pid, tgid, ppid           uint32
	ruid, rgid, euid, egid    uint32
	suid, sgid, fsuid, fsgid2 uint32
	exitCode                  int32
}

const (
	pidfdGetInfo  = 0xC040FF0B // _IOWR(0xFF, 11, 64 bytes)
	pidfdInfoExit = 1 << 3     // PIDFD_INFO_EXIT, Linux 6.15
)

// exitOf learns the wait status of a process that exited and is not our child: from its zombie while its parent has
// not reaped it, then from the pidfd, or by what its parent noted before. pid and startTime name it, pidfd may be nil.
// ok is false when nobody can tell.
func (k *Keeper) exitOf(pidfd *os.File, pid int, startTime uint64) (status unix.WaitStatus, ok bool) {
	known := pidfd != nil && !k.config.PlainExits
	for range 200 {
		s, err := readStat(pid)
		there := err == nil && s.startTime == startTime
		if there && s.state == 'Z' {
			return s.exitCode, true
		}
		if known {
			if status, ok, known = infoExit(pidfd); ok {
				return status, true
			}
		}
		if !there {
			// A parent that notes ends does so before it reaps.
			if status, ok = k.ends.Find(pid, startTime); ok || !known {
				return status, ok
			}
		}
		time.Sleep(5 * time.Millisecond) // between zombie and reaped the kernel tells nothing
	}
	return 0, false
}

// infoExit asks the pidfd; known is false when the kernel does not know the question.
func infoExit(pidfd *os.File) (status unix.WaitStatus, ok, known bool) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, false, false
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	}); err != nil {
		return 0, false, false
	}
	if errno == unix.ENOTTY || errno == unix.EINVAL {
		return 0, false, false
	}
	return unix.WaitStatus(uint32(info.exitCode)), errno == 0 && info.mask&pidfdInfoExit != 0, true
}

// codeOf turns a wait status into an exit code: 128+n for signal n.
func codeOf(status unix.WaitStatus) int32 {
	if status.Signaled() {
		return 128 + int32(status.Signal())
	}
	return int32(status.ExitStatus())
}

package keeperd

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/utils"

	"github.com/gantry-cri/gantry/sandbox/keeperd/stage"
)

// initLogLevel is what the re-executed init tells: warnings and errors. Left out, it sends some 25 debug lines.
const initLogLevel = "4"

// newProcess translates the OCI process.
func newProcess(p *specs.Process) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		LogLevel:        initLogLevel,
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
			Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	for _, r := range p.Rlimits {
		resource, ok := stage.Rlimits[r.Type]
		if !ok {
			return nil, fmt.Errorf("rlimit %q: expected a name such as RLIMIT_NOFILE", r.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: resource, Hard: r.Hard, Soft: r.Soft})
	}
	var err error
	lp.CPUAffinity, err = configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	return lp, err
}

// checkProcess rejects what libcontainer would answer with a panic or a puzzle.
func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return fmt.Errorf("spec.process is missing")
	case len(p.Args) == 0:
		return fmt.Errorf("spec.process.args is empty: expected a command")
	case !strings.HasPrefix(p.Cwd, "/"):
		return fmt.Errorf("spec.process.cwd is %q: expected an absolute path", p.Cwd)
	}
	return nil
}

// console is the pair of sockets by which the master of a new terminal arrives.
type console struct {
	parent, child *os.File
}

func newConsole() (*console, error) {
	parent, child, err := utils.NewSockPair("console")
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	// The master is in the socket when Start returns; without this a bug there would hang us here.
	_ = unix.SetsockoptTimeval(int(parent.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	return &console{parent: parent, child: child}, nil
}

func (c *console) close() {
	_ = c.parent.Close()
	_ = c.child.Close()
}

// master returns the terminal, in non-blocking mode so that the poller takes it.
func (c *console) master() (*os.File, error) {
	f, err := utils.RecvFile(c.parent) //nolint:staticcheck // the replacement is internal to runc
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// noise are the prefixes that libcontainer puts before the reason.
var noise = []string{
	"unable to start container process: ", "error during container init: ", "error starting setns process: ",
	"error executing setns process: ", "unable to create new parent process: ", "runc init error(s): ",
}

// reason reduces an error of libcontainer to what tells the user something.
func reason(err error) string {
	text := err.Error()
	for again := true; again; {
		again = false
		for _, n := range noise {
			if rest, ok := strings.CutPrefix(text, n); ok && rest != "" {
				text, again = rest, true
			}
		}
	}
	return text
}

// stat is what the keeper reads of /proc/<pid>/stat.
type stat struct {
	state     byte
	ppid      int
	flags     uint64
	startTime uint64
	exitCode  unix.WaitStatus // of a zombie
}

// exiting says that the process has begun to exit; from then on it executes nothing.
func (s *stat) exiting() bool {
	const pfExiting = 4 // PF_EXITING of the kernel
	return s.flags&pfExiting != 0
}

func readStat(pid int) (s stat, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return s, err
	}
	// The second field is the name in parentheses, which may contain anything.
	i := strings.LastIndexByte(string(b), ')')
	if i < 0 {
		return s, fmt.Errorf("read stat of %d: no name", pid)
	}
	fields := strings.Fields(string(b[i+1:]))
	const first = 3 // the number of fields[0] in proc(5)
	if len(fields) < 52-first+1 {
		return s, fmt.Errorf("read stat of %d: %d fields", pid, len(fields))
	}
	s.state = fields[0][0]
	s.ppid, _ = strconv.Atoi(fields[4-first])
	s.flags, _ = strconv.ParseUint(fields[9-first], 10, 64)
	s.startTime, err = strconv.ParseUint(fields[22-first], 10, 64)
	code, _ := strconv.Atoi(fields[52-first])
	s.exitCode = unix.WaitStatus(code)
	return s, err
}

// release lets the init that libcontainer made execute the container's command: it waits until somebody opens its FIFO.
// libcontainer's own Exec leaves a goroutine and its thread behind when init dies first; this one does not.
func release(fifo string, pidfd int, timeout time.Duration) error {
	fd, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open exec fifo: %w", err)
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("container init: %w after %v", errTimeout, timeout)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
		_, err := unix.Poll(poll, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for container init: %w", err)
		}
		if poll[0].Revents&unix.POLLIN != 0 {
			return os.Remove(fifo)
		}
		if poll[1].Revents != 0 {
			return fmt.Errorf("container init died before it could run the command")
		}
	}
}

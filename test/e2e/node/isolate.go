package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	stageVariable = "GANTRY_TEST_STAGE"
	dirVariable   = "GANTRY_TEST_DIR"
	stageInit     = "init"
	stageInner    = "inner"
)

// Isolate runs the program again in namespaces of its own: mount (everything shared below /, a fresh /proc, /run and
// /sys/fs/cgroup), network (only loopback, up), pid, ipc, uts and cgroup. In the program that was started by the user
// it returns the exit code of the other one when all is cleaned up; in the other one inner is true and it returns at
// once. However the user's program ends, the kernel then kills every process in the namespaces; cgroups and files of
// one that was killed are removed by the next. It has to be called first thing in main, in the main goroutine.
func Isolate() (inner bool, code int) {
	switch os.Getenv(stageVariable) {
	case stageInner:
		return true, 0
	case stageInit:
		runtime.LockOSThread()
		code, err := runInit()
		if err != nil {
			fmt.Fprintln(os.Stderr, "isolate:", err)
			code = 1
		}
		os.Exit(code)
	}
	// The parent-death signal of the child is tied to the thread that made it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	code, err := runOuter()
	if err != nil {
		fmt.Fprintln(os.Stderr, "isolate:", err)
		code = 1
	}
	return false, code
}

// Isolated reports whether this is the program that Isolate runs again, inside.
func Isolated() bool { return os.Getenv(stageVariable) != "" }

// Dir is the directory that Isolate made for the files of the isolated program, on a filesystem of the host.
func Dir() string { return os.Getenv(dirVariable) }

func runOuter() (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("needs root, to make namespaces and cgroups")
	}
	removeLeftovers()
	dir := filepath.Join(os.TempDir(), cgroupPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	cmd, err := Nest(dir, os.Args[1:]...)
	if err != nil {
		return 0, err
	}
	defer Unnest(dir)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin = os.Stdin
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start in new namespaces: %w", err)
	}
	go func() {
		<-signals
		cmd.Process.Kill()
	}()
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return 0, err
	}
	if code = cmd.ProcessState.ExitCode(); code < 0 {
		code = 1
	}
	return code, nil
}

// Nest makes cgroups named as the directory and returns a command, not started yet, that runs the program again with
// args in namespaces of its own: in the program, Isolate then returns with inner true, and Dir is dir, which has to
// exist. It may be called by an isolated program; a killed command takes all that it started with it. When it has
// ended, Unnest removes the cgroups.
func Nest(dir string, args ...string) (*exec.Cmd, error) {
	if err := makeCgroups(filepath.Base(dir)); err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(withoutStage(os.Environ()), stageVariable+"="+stageInit, dirVariable+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	return cmd, nil
}

// Unnest kills what is left in the cgroups that Nest made, and removes them. It is idempotent.
func Unnest(dir string) { removeCgroups(filepath.Base(dir)) }

// withoutStage leaves out what Isolate hands to the programs that it starts.
func withoutStage(environment []string) []string {
	return slices.DeleteFunc(environment, func(e string) bool {
		return strings.HasPrefix(e, stageVariable+"=") || strings.HasPrefix(e, dirVariable+"=")
	})
}

// runInit is process 1 of the namespaces: it furnishes them, starts the inner program and reaps orphans. It does not
// wait by os/exec, which would race with the reaping.
func runInit() (code int, err error) {
	dir := os.Getenv(dirVariable)
	if err := enterCgroups(filepath.Base(dir)); err != nil {
		return 0, err
	}
	if err := furnishMounts(); err != nil {
		return 0, err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return 0, fmt.Errorf("bring loopback up: %w", err)
	}
	env := append(withoutStage(os.Environ()), stageVariable+"="+stageInner, dirVariable+"="+dir)
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env: env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 0, fmt.Errorf("start inner program: %w", err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR || pid != child.Pid && err == nil:
		case err != nil:
			return 0, fmt.Errorf("wait for inner program: %w", err)
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}

func furnishMounts() error {
	hierarchies, err := cgroupMounts()
	if err != nil {
		return err
	}
	type mount struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}
	mounts := []mount{
		// First cut off from the host, then shared among ourselves: volumes may ask for propagation.
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"", "/", "", unix.MS_REC | unix.MS_SHARED, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", cgroupRoot, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=755"},
	}
	for _, h := range hierarchies {
		mounts = append(mounts, mount{h.fstype, h.path, h.fstype, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, h.data})
	}
	for _, m := range mounts {
		if m.target != cgroupRoot && strings.HasPrefix(m.target, cgroupRoot) {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

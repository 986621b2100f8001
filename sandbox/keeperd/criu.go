package keeperd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeperd/podinit"
)

// criu is one run of the program. It is run here and not by libcontainer, which can neither end a run, nor name files
// to it that are outside of the container, as the FIFOs of the standard streams are, nor keep the mounts of a restore
// off the host.
type criu struct {
	path    string // of the program
	command string // dump or restore
	images  string
	work    string // where log and statistics go
	args    []string
	// inherit are descriptors that it gets from inheritedFD on.
	inherit []*os.File
	// cgroupNS makes a cgroup namespace for the program and what it restores.
	cgroupNS bool
	// attend is called with the pid before the program executes; an error ends the run.
	attend func(pid int) error
}

const (
	// inheritedFD is the number of the first inherited descriptor; the one before is the launcher's.
	inheritedFD = 4
	// abortPatience is how long CRIU may take to let go of processes that it is told to give up.
	abortPatience = 10 * time.Second
	// criuErrorLines bounds what is told of CRIU's log.
	criuErrorLines = 8
)

// commonArgs are those of dump and restore alike. Cgroups are the keeper's business. Connections are closed by a
// restore and are no reason not to capture; those of the running container are left alone.
var commonArgs = []string{
	"--manage-cgroups=ignore", "--enable-external-masters", "--enable-external-sharing", "--file-locks", "--ext-unix-sk",
	"--tcp-close", "--ghost-limit", "512M", "-v4",
}

// errTargetExited is the cause that a run is cancelled with when its container exits.
var errTargetExited = errors.New("the container exits")

// run runs the program until it ends. When ctx ends it is made to fail, so that it lets go of the processes that it
// holds; when the cause is errTargetExited they are dead, it waits for one for ever, and is killed. It survives the
// keeper, since a CRIU that is killed leaves the processes with its code in them.
func (r *criu) run(ctx context.Context) error {
	gate, opener, err := os.Pipe()
	if err != nil {
		return err
	}
	defer opener.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{r.path, r.command, "-D", r.images, "-W", r.work, "-o", r.logName()},
		append(r.args, commonArgs...)...)
	launch := podinit.LaunchMarker + "="
	if r.cgroupNS {
		launch += podinit.LaunchCgroupNS
	}
	cmd.Env = append(os.Environ(), launch)
	cmd.ExtraFiles = append([]*os.File{gate}, r.inherit...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = gate.Close()
	if err != nil {
		return fmt.Errorf("start criu: %w", err)
	}
	if err := r.attend(cmd.Process.Pid); err != nil {
		_ = opener.Close() // the launcher ends
		return errors.Join(err, cmd.Wait())
	}
	if _, err := opener.Write([]byte{0}); err != nil {
		return errors.Join(err, cmd.Wait())
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		patience := abortPatience
		if errors.Is(context.Cause(ctx), errTargetExited) {
			patience = 0
		}
		abortCRIU(cmd.Process.Pid)
		select {
		case err = <-done:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			err = <-done
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("criu %s: %w", r.command, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("criu %s: %w%s", r.command, err, criuErrors(filepath.Join(r.work, r.logName())))
	}
	return nil
}

func (r *criu) logName() string { return r.command + ".log" }

// abortCRIU makes a run fail by itself: from now on it can write no file.
func abortCRIU(pid int) {
	_ = unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{}, nil)
}

// endCRIU ends a run of which this keeper is not the parent.
func endCRIU(pid int, startTime uint64) {
	alive := func() bool {
		s, err := readStat(pid)
		return err == nil && s.startTime == startTime && s.state != 'Z'
	}
	if !alive() {
		return
	}
	abortCRIU(pid)
	for end := time.Now().Add(abortPatience); alive(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			_ = unix.Kill(pid, unix.SIGKILL)
			return
		}
	}
}

// criuErrors returns the last errors of a log, as the end of a sentence.
func criuErrors(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	var found []string
	for s := bufio.NewScanner(f); s.Scan(); {
		_, text, ok := strings.Cut(s.Text(), "Error (")
		if !ok || strings.Contains(text, "RLIMIT_NOFILE") { // it cannot raise its own limit: that hinders nothing
			continue
		}
		found = append(found, "("+text)
		if len(found) > criuErrorLines {
			found = found[1:]
		}
	}
	if len(found) == 0 {
		return ""
	}
	return ": " + strings.Join(found, "; ")
}

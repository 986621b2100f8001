package keeperd_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// sharedPID takes the PID namespace of the container away: it then has the host's.
func sharedPID(r *keeper.StartRequest) { joinPID(r, "") }

// joinPID puts the container into the PID namespace of path.
func joinPID(r *keeper.StartRequest, path string) {
	kept := r.Spec.Linux.Namespaces[:0]
	for _, ns := range r.Spec.Linux.Namespaces {
		if ns.Type != specs.PIDNamespace {
			kept = append(kept, ns)
		}
	}
	if path != "" {
		kept = append(kept, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: path})
	}
	r.Spec.Linux.Namespaces = kept
}

// processes lists the processes of the container's cgroup.
func (c *container) processes() (pids []int) {
	for _, dir := range c.cgroups() {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, f := range strings.Fields(string(b)) {
				pid, _ := strconv.Atoi(f)
				pids = append(pids, pid)
			}
			return nil
		})
		if len(pids) > 0 {
			return pids
		}
	}
	return nil
}

func TestClosingAnExecKillsItsTree(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	before := len(c.processes())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	script := "trap '' TERM HUP; (sleep 2000 & sleep 2001) & echo ready; sleep 2002"
	s, err := c.client.Exec(deadline(t), keeper.ExecRequest{ID: c.ID, Args: []string{"sh", "-c", script}},
		[3]*os.File{nil, w, nil})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		t.Fatalf("got %q", line)
	}
	c.eventually("the tree is there", func() bool { return len(c.processes()) >= before+3 })
	s.Close()
	c.eventually("only the container is left", func() bool { return len(c.processes()) == before })
	c.eventually("the cgroup of the exec is removed", func() bool { return len(c.execCgroups()) == 0 })
	if _, code := c.exec("true"); code != 0 {
		t.Errorf("next exec: %d", code)
	}
}

func (c *container) execCgroups() (dirs []string) {
	for _, dir := range c.cgroups() {
		more, _ := filepath.Glob(dir + "/exec-*")
		dirs = append(dirs, more...)
	}
	return dirs
}

func TestExecEndsWithItsLeader(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	s, err := c.client.Exec(deadline(t), keeper.ExecRequest{ID: c.ID, Args: []string{"sh", "-c", "sleep 2000 & exit 4"}},
		[3]*os.File{})
	if err != nil {
		t.Fatal(err)
	}
	// Long before the child does: that it lives is the next to be seen.
	if code, err := s.Wait(deadline(t)); err != nil || code != 4 {
		t.Errorf("got %d, %v", code, err)
	}
	if n := len(c.processes()); n != 2 {
		t.Errorf("%d processes: the child should live on in the container", n)
	}
	if dirs := c.execCgroups(); len(dirs) > 0 {
		t.Errorf("left: %v", dirs)
	}
	c.delete()
}

func TestExecFailures(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	_, err := c.client.Exec(deadline(t), keeper.ExecRequest{ID: c.ID, Args: []string{"nosuch"}}, [3]*os.File{})
	if !errors.Is(err, keeper.ErrStart) || !strings.HasPrefix(err.Error(), `exec: "nosuch": executable file not found`) {
		t.Errorf("got %v", err)
	}
	_, err = c.client.Exec(deadline(t), keeper.ExecRequest{ID: "unknown", Args: []string{"true"}}, [3]*os.File{})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if err := c.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, All: true}); err != nil {
		t.Fatal(err)
	}
	c.wait() // for the status, which is on disk a moment before the keeper says so
	c.eventually("the container is not running", func() bool {
		_, err = c.client.Exec(deadline(t), keeper.ExecRequest{ID: c.ID, Args: []string{"true"}}, [3]*os.File{})
		return errors.Is(err, errdefs.ErrFailedPrecondition)
	})
	if dirs := c.execCgroups(); len(dirs) > 0 {
		t.Errorf("left: %v", dirs)
	}
}

func TestManyExecsAtOnce(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	errs := make(chan error)
	const count = 24
	for i := range count {
		go func() {
			code := fmt.Sprint(i)
			s, err := c.client.Exec(deadline(t), keeper.ExecRequest{ID: c.ID, Args: []string{"sh", "-c", "exit " + code}},
				[3]*os.File{})
			if err != nil {
				errs <- err
				return
			}
			got, err := s.Wait(deadline(t))
			if err == nil && got != int32(i) {
				err = fmt.Errorf("got %d, want %d", got, i)
			}
			errs <- err
		}()
	}
	for range count {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestKill(t *testing.T) {
	n := newNode(t)
	c := n.run(nil, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done")
	c.eventually("ready", func() bool { return c.output("stdout") == "ready\n" })
	if err := n.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, Signal: int(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	if s := c.wait(); s.ExitCode != 9 {
		t.Errorf("status %+v", s)
	}
	if err := n.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, Signal: 15}); err != nil {
		t.Errorf("kill of an exited one: %v", err)
	}
	err := n.client.Kill(deadline(t), keeper.KillRequest{ID: "unknown", Signal: 15})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("kill of an unknown one: %v", err)
	}
}

func TestKillAllTakesEveryProcess(t *testing.T) {
	c := newNode(t).run(sharedPID, "sh", "-c",
		"trap '' TERM; for i in 1 2 3; do (trap '' TERM; while :; do sleep 0.01; done) & done; echo up; sleep 1000")
	c.eventually("up", func() bool { return c.output("stdout") == "up\n" })
	if err := c.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, All: true}); err != nil {
		t.Fatal(err)
	}
	if s := c.wait(); s.ExitCode != 137 {
		t.Errorf("status %+v", s)
	}
	if left := c.processes(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	c.delete()
}

func TestExitKillsWhatSharesTheHostsPIDNamespace(t *testing.T) {
	c := newNode(t).run(sharedPID, "sh", "-c", "sleep 3000 & sleep 3001 & exit 2")
	if s := c.wait(); s.ExitCode != 2 {
		t.Errorf("status %+v", s)
	}
	if left := c.processes(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	n := newNode(t)
	c := n.run(sharedPID, "sh", "-c", "for i in 1 2 3 4; do (sleep 0.1 &) ; done; sleep 1000")
	keeperPID := n.pid()
	count := func() (zombies int) {
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
			if err == nil && strings.Contains(string(b), fmt.Sprintf(") Z %d ", keeperPID)) {
				zombies++
			}
		}
		return zombies
	}
	c.eventually("the orphans died", func() bool { return count() == 4 })
	for end := time.Now().Add(time.Minute); count() > 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d zombies are left", count())
		}
	}
}

// needMemory skips the test where memory cannot be limited: on v2 when the machine has that controller on v1.
func needMemory(t *testing.T) {
	t.Helper()
	if all, err := cgroups.GetAllSubsystems(); err != nil || !slices.Contains(all, "memory") {
		t.Skip("there is no memory controller")
	}
}

func TestOutOfMemory(t *testing.T) {
	needMemory(t)
	n := newNode(t)
	limit := int64(20 << 20)
	c := n.run(func(r *keeper.StartRequest) {
		r.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	}, "sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; exit $?")
	if s := c.wait(); s.ExitCode == 0 || !s.OOMKilled {
		t.Errorf("status %+v; %s", s, c.output("stderr"))
	}
	c.delete()
	ok := n.run(nil, "true")
	if s := ok.wait(); s.OOMKilled {
		t.Errorf("status %+v", s)
	}
}

func TestUpdateChangesLimitsOrNothing(t *testing.T) {
	needMemory(t)
	c := newNode(t).run(nil, "sleep", "1000")
	limit, shares := int64(64<<20), uint64(512)
	r := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, CPU: &specs.LinuxCPU{Shares: &shares},
	}
	if err := c.client.Update(deadline(t), keeper.UpdateRequest{ID: c.ID, Resources: r}); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		for _, file := range []string{"memory.limit_in_bytes", "memory.max"} {
			for _, dir := range c.cgroups() {
				if b, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
					return strings.TrimSpace(string(b))
				}
			}
		}
		return ""
	}
	if got := read(); got != fmt.Sprint(limit) {
		t.Errorf("limit is %s", got)
	}
	less := int64(4096) // less than is used: refused by the kernel
	if cgroups.IsCgroup2UnifiedMode() {
		less = 32 << 20 // which would kill for it on v2, and refuses only the processors
	}
	bad := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &less, Swap: &less}, CPU: &specs.LinuxCPU{Cpus: "4095"}}
	if err := c.client.Update(deadline(t), keeper.UpdateRequest{ID: c.ID, Resources: bad}); err == nil {
		t.Error("no error")
	}
	if got := read(); got != fmt.Sprint(limit) {
		t.Errorf("limit is %s after an update that failed", got)
	}
	if _, code := c.exec("true"); code != 0 {
		t.Errorf("exec after update: %d", code)
	}
}

func TestReopen(t *testing.T) {
	c := newNode(t).run(nil, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	c.eventually("some output", func() bool { return strings.Count(c.output("stdout"), "\n") > 5 })
	old := c.LogPath + ".1"
	if err := os.Rename(c.LogPath, old); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Reopen(deadline(t), keeper.ReopenRequest{ID: c.ID}); err != nil {
		t.Fatal(err)
	}
	size := func() int64 { info, _ := os.Stat(old); return info.Size() }
	before := size()
	c.eventually("new output", func() bool { return strings.Count(c.output("stdout"), "\n") > 5 })
	if size() != before {
		t.Error("the old file still grows")
	}
	second := c.output("stdout")
	path := c.LogPath
	c.LogPath = old
	all := c.output("stdout") + second
	c.LogPath = path
	for i, line := range strings.Fields(all) {
		if line != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %s", i+1, line)
		}
	}
}

func TestTerminal(t *testing.T) {
	c := newNode(t).run(func(r *keeper.StartRequest) {
		r.Spec.Process.Terminal, r.Stdin = true, true
	}, "sh", "-c", "tty; stty size; read line; echo got $line")
	if c.proc.Master == nil {
		t.Fatal("no master")
	}
	if err := unix.IoctlSetWinsize(int(c.proc.Master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 7, Col: 9}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.proc.Master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	if s := c.wait(); s.ExitCode != 0 {
		t.Errorf("status %+v", s)
	}
	got := c.output("stdout")
	if !strings.Contains(got, "/dev/pts/0") || !strings.Contains(got, "got hello") {
		t.Errorf("got %q", got)
	}
}

func TestExecTerminal(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	s, err := c.client.Exec(deadline(t), keeper.ExecRequest{
		ID: c.ID, Args: []string{"sh", "-c", "tty; read x; exit $x"}, Terminal: true,
	}, [3]*os.File{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Master.Close()
	line, _ := bufio.NewReader(s.Master).ReadString('\n')
	if !strings.HasPrefix(line, "/dev/pts/") {
		t.Errorf("got %q", line)
	}
	if _, err := s.Master.WriteString("5\n"); err != nil {
		t.Fatal(err)
	}
	if code, err := s.Wait(deadline(t)); code != 5 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
}

func TestStdinStaysOpenForAttach(t *testing.T) {
	c := newNode(t).run(func(r *keeper.StartRequest) { r.Stdin = true }, "cat")
	fifo, err := os.OpenFile(c.stdinPath(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fifo.WriteString("typed\n")
	_ = fifo.Close()
	c.eventually("echo", func() bool { return c.output("stdout") == "typed\n" })
	if s, _ := keeper.ReadStatus(c.Dir); s.Exited() {
		t.Error("the end of one attach ended the container's input")
	}
}

// initSleeps finds the pod init in the output of ps; a test run may be niced, which ps tells by an N. orphan finds a
// process that sleeps for a moment, or that has ended.
var (
	initSleeps = regexp.MustCompile(`(?m)^ +1 SN? +pause$`)
	orphan     = regexp.MustCompile(`sleep 0|(?m)^ +\d+ Z`)
)

func TestPodInit(t *testing.T) {
	n := newNode(t)
	dir := filepath.Join(n.dir, "records", "sandbox")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	reply, proc, err := n.client.PodInit(deadline(t), keeper.PodInitRequest{
		ID: "sandbox", Dir: dir, CgroupsPath: parent + "/sandbox",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", reply.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Name:\tpause\n", "Uid:\t65535\t65535\t65535\t65535\n", "CapEff:\t0000000000000000\n",
		"CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n", "FDSize:", "Threads:\t1\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q: %s", want, status)
		}
	}
	n.eventually("all descriptors are closed, after the report", func() bool {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", reply.PID))
		return err == nil && len(fds) == 0
	})
	mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", reply.PID))
	if strings.Count(string(mounts), "\n") != 1 {
		t.Errorf("mounts: %s", mounts)
	}
	c := n.run(func(r *keeper.StartRequest) { joinPID(r, fmt.Sprintf("/proc/%d/ns/pid", reply.PID)) },
		"sh", "-c", "(sleep 0.05 &); sleep 1000")
	n.eventually("the orphan is reaped, and the init sleeps", func() bool {
		ps, _ := c.exec("ps", "-o", "pid,stat,args")
		return initSleeps.MatchString(ps) && !orphan.MatchString(ps) && strings.Contains(ps, "sleep 1000")
	})
	c.delete()
	if err := n.client.Kill(deadline(t), keeper.KillRequest{ID: "sandbox", Signal: int(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	n.eventually("it exited", func() bool {
		s, err := keeper.ReadStatus(dir)
		return err == nil && s.Exited() && s.ExitCode == 0
	})
}

func TestWatch(t *testing.T) {
	n := newNode(t)
	c := n.run(nil, "sleep", "1000")
	w, err := n.client.Watch(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	e, p, err := w.Next()
	if err != nil || e.Live == nil || e.Live.ID != c.ID || e.Live.PID != c.pid || p == nil || len(p.Output) != 2 {
		t.Fatalf("got %+v, %+v, %v", e, p, err)
	}
	p.Close()
	if e, _, err = w.Next(); err != nil || !e.Synced {
		t.Fatalf("got %+v, %v", e, err)
	}
	short := n.run(nil, "sh", "-c", "exit 6")
	if e, _, err = w.Next(); err != nil || e.Exited == nil || e.Exited.ID != short.ID || e.Exited.Status.ExitCode != 6 {
		t.Fatalf("got %+v, %v", e, err)
	}
	if s, err := keeper.ReadStatus(short.Dir); err != nil || !s.Exited() {
		t.Errorf("told before it was on disk: %+v, %v", s, err)
	}
}

func TestDeleteOfTheUnknownAndTheLiving(t *testing.T) {
	n := newNode(t)
	if err := n.client.Delete(deadline(t), keeper.DeleteRequest{ID: "never", CgroupsPath: parent + "/never"}); err != nil {
		t.Error(err)
	}
	if err := n.client.Delete(deadline(t), keeper.DeleteRequest{ID: "never", CgroupsPath: "/"}); err == nil {
		t.Error("the root cgroup was accepted")
	}
	c := n.run(sharedPID, "sh", "-c", "trap '' TERM; sleep 1000 & sleep 1001")
	c.delete()
	if s := c.wait(); s.ExitCode != 137 {
		t.Errorf("status %+v", s)
	}
}

func TestShutdownOnlyWhenNothingLives(t *testing.T) {
	n := newNode(t)
	c := n.run(nil, "sleep", "1000")
	if err := n.client.Shutdown(deadline(t)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("got %v", err)
	}
	if err := unix.Kill(n.pid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if _, code := c.exec("true"); code != 0 {
		t.Error("no exec after SIGTERM")
	}
	pid := n.pid()
	if err := n.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, Signal: int(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	n.eventually("the keeper leaves after the last exit", func() bool { return unix.Kill(pid, 0) != nil })
	if s, err := keeper.ReadStatus(c.Dir); err != nil || s.ExitCode != 137 {
		t.Errorf("status %+v, %v", s, err)
	}
	n.spawn()
}

func TestSIGTERMWaitsForTheDaemon(t *testing.T) {
	n := newNode(t)
	w, err := n.client.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if event, _, err := w.Next(); err != nil || !event.Synced {
		t.Fatalf("got %+v, %v", event, err)
	}
	pid := n.pid()
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.eventually("the signal is taken note of", func() bool { return strings.Contains(n.log(), "SIGTERM") })
	c := n.run(nil, "sleep", "1000")
	if err := n.client.Kill(deadline(t), keeper.KillRequest{ID: c.ID, Signal: int(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	c.wait()
	if got := n.pid(); got != pid {
		t.Errorf("keeper %d came after %d, whose daemon watched", got, pid)
	}
	w.Close()
	n.eventually("the keeper leaves after the daemon", func() bool { return unix.Kill(pid, 0) != nil })
	n.spawn()
}

func TestSecondKeeperIsRefused(t *testing.T) {
	n := newNode(t)
	err := keeper.Spawn(deadline(t), binary, n.dir, filepath.Join(n.dir, "second.log"))
	if err == nil || !strings.Contains(err.Error(), "another keeper has ") {
		t.Errorf("got %v", err)
	}
	err = keeper.Spawn(deadline(t), filepath.Join(n.dir, "nosuch"), n.dir, filepath.Join(n.dir, "second.log"))
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
	n.pid()
}

func TestOneKeeperFollowsAnother(t *testing.T) {
	n := newNode(t)
	for range 10 {
		before := n.pid()
		if err := n.client.Shutdown(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if hello, err := n.client.Hello(deadline(t), "test"); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Fatalf("keeper %d, which is leaving, answers %+v, %v", before, hello, err)
		}
		n.spawn()
		if n.pid() == before {
			t.Fatalf("keeper %d did not end", before)
		}
	}
}

func TestStdinOnceEnds(t *testing.T) {
	c := newNode(t).run(func(r *keeper.StartRequest) { r.Stdin, r.StdinOnce = true, true }, "cat")
	fifo, err := os.OpenFile(c.stdinPath(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fifo.WriteString("all\n")
	_ = fifo.Close()
	c.eventually("echo", func() bool { return c.output("stdout") == "all\n" })
	if s, _ := keeper.ReadStatus(c.Dir); s.Exited() {
		t.Error("it ended by itself")
	}
	if err := c.client.CloseStdin(deadline(t), c.ID); err != nil {
		t.Fatal(err)
	}
	if s := c.wait(); s.ExitCode != 0 {
		t.Errorf("status %+v", s)
	}
}

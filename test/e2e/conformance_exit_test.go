//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How a process ends, as the kubelet sees it.
func TestExitCodesAndReasons(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	for i, test := range []struct {
		name   string
		script string
		change func(*runtime.ContainerConfig)
		code   int32
		reason string
	}{
		{"success", "exit 0", nil, 0, "Completed"},
		{"failure", "exit 1", nil, 1, "Error"},
		{"last code", "exit 255", nil, 255, "Error"},
		{"looks like a signal", "exit 137", nil, 137, "Error"},
		{"looks like a start error", "exit 128", nil, 128, "Error"},
		{"own signal", "sh -c 'kill -SEGV $$'; exit $?", nil, 139, "Error"},
		{"out of memory", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done",
			limits(&runtime.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}), 137, "OOMKilled"},
		{"no such program", "", func(c *runtime.ContainerConfig) { c.Command = []string{"/no/such/program"} }, 128, "StartError"},
		{"orphans do not matter", "(sleep 1000 &) ; exit 6", nil, 6, "Error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			before := time.Now().UnixNano()
			change := test.change
			if change == nil {
				change = func(*runtime.ContainerConfig) {}
			}
			c := p.create(t, fmt.Sprintf("c%d", i), test.script, change)
			if err := c.start(t); (err != nil) != (test.reason == "StartError") {
				t.Fatalf("start: %v", err)
			}
			s := c.waitExit(t)
			wantEqual(t, "exit code", s.ExitCode, test.code)
			wantEqual(t, "reason", s.Reason, test.reason)
			if s.CreatedAt < before || s.FinishedAt < s.StartedAt || s.FinishedAt > time.Now().UnixNano() {
				t.Errorf("times are created %d, started %d, finished %d", s.CreatedAt, s.StartedAt, s.FinishedAt)
			}
			if test.reason != "StartError" && s.StartedAt < s.CreatedAt {
				t.Errorf("started at %d, created at %d", s.StartedAt, s.CreatedAt)
			}
			if pids := processesWith(t, c.id); len(pids) > 0 {
				t.Errorf("processes outlive their container: %v", pids)
			}
		})
	}
}

// Killed from outside by any signal, the code is 128 and the signal's number; it never changes afterwards.
func TestExitBySignal(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	for _, signal := range []syscall.Signal{
		syscall.SIGHUP, syscall.SIGABRT, syscall.SIGKILL, syscall.SIGTERM, syscall.Signal(36),
	} {
		t.Run(fmt.Sprint(int(signal)), func(t *testing.T) {
			t.Parallel()
			// Not as process 1 of a namespace, which the kernel protects from signals that it does not handle.
			c := p.start(t, fmt.Sprintf("c%d", signal), "echo up; sleep 1000 & wait $!; exit $?")
			c.waitLog(t, "up")
			eventually(t, "the child runs", func() bool { return len(c.processes(t, "sleep 1000")) == 1 })
			syscall.Kill(c.processes(t, "sleep 1000")[0], signal)
			s := c.waitExit(t)
			wantEqual(t, "exit code", s.ExitCode, 128+int32(signal))
			if err := c.stop(t, 0); err != nil {
				t.Error(err)
			}
			p.execFails(t, c)
			wantSame(t, "status after it ended", []*runtime.ContainerStatus{c.status(t)}, []*runtime.ContainerStatus{s})
		})
	}
}

// processes are the container's processes with that command line.
func (c *container) processes(t *testing.T, title string) []int {
	t.Helper()
	var pids []int
	for _, pid := range processesWith(t, c.id) {
		if processTitle(pid) == title {
			pids = append(pids, pid)
		}
	}
	return pids
}

// execFails checks that nothing can be run in a container that is over.
func (p *pod) execFails(t *testing.T, c *container) {
	t.Helper()
	_, err := p.node.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
	if err == nil || !strings.Contains(err.Error(), "exited") {
		t.Errorf("exec in an exited container: %v", err)
	}
}

// The first process itself dies of a signal, where the pid namespace is the host's and protects nobody.
func TestFirstProcessKilledBySignal(t *testing.T) {
	t.Parallel()
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_NODE
	})
	for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGSEGV, syscall.SIGUSR1, syscall.Signal(40)} {
		c := p.start(t, fmt.Sprintf("c%d", signal), "echo up; exec sleep 1000", pidMode(runtime.NamespaceMode_NODE))
		eventually(t, "the program runs", func() bool { return len(c.processes(t, "sleep 1000")) == 1 })
		syscall.Kill(c.processes(t, "sleep 1000")[0], signal)
		wantEqual(t, "exit code", c.waitExit(t).ExitCode, 128+int32(signal))
	}
}

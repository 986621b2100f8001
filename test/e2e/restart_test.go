//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// restart starts the shared node's daemon again.
func restart(t *testing.T) {
	t.Helper()
	if err := shared.Start(timeout(t)); err != nil {
		t.Fatalf("start daemon again: %v", err)
	}
}

// keeperPID is the keeper's process id.
func keeperPID(t *testing.T, n *node.Node) int {
	t.Helper()
	hello, err := n.KeeperHello()
	if err != nil {
		t.Fatalf("ask keeper: %v", err)
	}
	return hello.PID
}

// killKeeper kills the keeper and waits until it is gone.
func killKeeper(t *testing.T, n *node.Node) {
	t.Helper()
	pid := keeperPID(t, n)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "keeper is gone", func() bool { return !alive(pid) })
}

// awaitKeeper waits until another keeper than the old one is ready.
func awaitKeeper(t *testing.T, n *node.Node, old int) {
	t.Helper()
	eventually(t, "a new keeper is ready", func() bool {
		hello, err := n.KeeperHello()
		return err == nil && hello.PID != old && hello.Settled
	})
}

// population is what runs while programs are killed: pods and containers in every state.
type population struct {
	pod, sharedPID                                    *pod
	counter, exits, killed, exited, created, podShare *container
	release                                           func()
}

// populate makes pods with containers; release lets container exits end with code 7.
func populate(t *testing.T) *population {
	t.Helper()
	pop := &population{pod: runPod(t), sharedPID: runPodOn(t, shared, podConfig(t, shared, "-pid"), podPID)}
	p := pop.pod
	pop.counter = p.start(t, "counter", `i=0; trap 'exit 3' TERM; while :; do i=$((i+1)); echo $i; usleep 500; done`)
	pop.exits = p.start(t, "exits", `echo up; while [ ! -e /dev/shm/release ]; do usleep 10000; done; exit 7`)
	pop.killed = p.start(t, "killed", `echo up; exec sleep 4716`)
	pop.exited = p.start(t, "exited", "exit 11")
	pop.created = p.create(t, "created", "echo started later; exit 13")
	pop.podShare = pop.sharedPID.start(t, "share", "echo up; sleep 1000", pidMode(runtime.NamespaceMode_POD))
	pop.exited.waitExit(t)
	for _, c := range []*container{pop.exits, pop.killed, pop.podShare} {
		c.waitLog(t, "up")
	}
	pop.counter.waitLog(t, "50")
	pids := processesWith(t, pop.killed.id)
	pop.release = func() {
		// From the host, without the runtime: by the root of a process of the pod.
		touchInShm(t, processesWith(t, pop.exits.id))
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return pop
}

// check looks at everything after the killed programs are back; ended says that release was called meanwhile.
func (pop *population) check(t *testing.T, ended bool, ip string, ids []string) {
	t.Helper()
	wantEqual(t, "pod address", pop.pod.ip(t), ip)
	if now := listIDs(t); !slices.Equal(now, ids) {
		t.Errorf("ids are %v, expected %v", now, ids)
	}
	wantEqual(t, "pod state", pop.pod.status(t).State, runtime.PodSandboxState_SANDBOX_READY)
	if ended {
		wantEqual(t, "exit code of a container that ended meanwhile", pop.exits.waitExit(t).ExitCode, 7)
		killed := pop.killed.waitExit(t)
		wantEqual(t, "exit code of a container that was killed meanwhile", killed.ExitCode, 137)
		wantEqual(t, "reason of a container that was killed meanwhile", killed.Reason, "Error")
	}
	wantEqual(t, "exit code of a container that ended before", pop.exited.waitExit(t).ExitCode, 11)
	wantEqual(t, "state of a created container", pop.created.status(t).State, runtime.ContainerState_CONTAINER_CREATED)
	if err := pop.created.start(t); err != nil {
		t.Errorf("start a container created before: %v", err)
	}
	wantEqual(t, "exit code of it", pop.created.waitExit(t).ExitCode, 13)
	wantEqual(t, "state of the running container", pop.counter.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
	wantEqual(t, "exec in the running container", pop.counter.exec(t, "echo still here"), "still here")
	wantEqual(t, "exec in a shared pid namespace", pop.podShare.exec(t, "echo still here"), "still here")
	another := pop.sharedPID.start(t, "another", "sleep 1000", pidMode(runtime.NamespaceMode_POD))
	if got := another.exec(t, "ps"); !strings.Contains(got, "sleep 1000") {
		t.Errorf("a new container does not share the pid namespace: %s", got)
	}
	pop.counter.waitLog(t, "100")
	if err := pop.counter.stop(t, 60); err != nil {
		t.Errorf("stop: %v", err)
	}
	wantEqual(t, "exit code of the stopped container", pop.counter.status(t).ExitCode, 3)
	wantNoGap(t, readLog(t, pop.counter.logPath), 100)
}

// touchInShm makes the file that lets container exits end, by a process of its.
func touchInShm(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		fd, err := syscall.Open(fmt.Sprintf("/proc/%d/root/dev/shm/release", pid), syscall.O_CREAT|syscall.O_WRONLY, 0o644)
		if err == nil {
			syscall.Close(fd)
			return
		}
	}
	t.Fatal("no process of the container to reach its /dev/shm by")
}

// listIDs are the ids of all sandboxes and containers.
func listIDs(t *testing.T) []string {
	t.Helper()
	var ids []string
	sandboxes, err := shared.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sandboxes.Items {
		ids = append(ids, s.Id)
	}
	containers, err := shared.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers.Containers {
		ids = append(ids, c.Id)
	}
	slices.Sort(ids)
	return ids
}

func TestDaemonKilled(t *testing.T) {
	pop := populate(t)
	ip, ids, keeper := pop.pod.ip(t), listIDs(t), keeperPID(t, shared)
	shared.Kill()
	time.Sleep(300 * time.Millisecond) // output goes on meanwhile
	pop.release()
	time.Sleep(300 * time.Millisecond)
	restart(t)
	wantEqual(t, "keeper", keeperPID(t, shared), keeper)
	pop.check(t, true, ip, ids)
	wantCounting(t, readLog(t, pop.counter.logPath), 100) // the keeper wrote on: nothing is repeated either
}

func TestDaemonStopped(t *testing.T) {
	pop := populate(t)
	ip, ids := pop.pod.ip(t), listIDs(t)
	if err := shared.Stop(); err != nil {
		t.Fatal(err)
	}
	restart(t)
	pop.check(t, false, ip, ids)
}

func TestKeeperKilled(t *testing.T) {
	pop := populate(t)
	ip, ids, old := pop.pod.ip(t), listIDs(t), keeperPID(t, shared)
	killKeeper(t, shared)
	pop.release()
	awaitKeeper(t, shared, old)
	pop.check(t, true, ip, ids)
}

func TestKeeperKilledAgainAndAgain(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "counter", counter)
	for range 5 {
		old := keeperPID(t, shared)
		killKeeper(t, shared)
		awaitKeeper(t, shared, old)
	}
	c.waitCount(t, 1000)
	if err := c.stop(t, 60); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "exit code", c.status(t).ExitCode, 0)
	wantNoGap(t, readLog(t, c.logPath), 1000)
}

// With both killed the keeper's reaper is left, and containers that live go on.
func TestDaemonAndKeeperKilled(t *testing.T) {
	pop := populate(t)
	ip, ids, old := pop.pod.ip(t), listIDs(t), keeperPID(t, shared)
	shared.Kill()
	killKeeper(t, shared)
	time.Sleep(300 * time.Millisecond)
	restart(t)
	awaitKeeper(t, shared, old)
	pop.check(t, false, ip, ids)
	pop.release()
	wantEqual(t, "exit code after adoption", pop.exits.waitExit(t).ExitCode, 7)
}

func TestContainerThatDiedWhileNobodyLooked(t *testing.T) {
	for _, tc := range []struct {
		name   string
		reaper bool
		code   int32
		reason string
	}{
		{"the reaper noted it", true, 137, "Error"},
		{"not even the reaper", false, 255, "Unknown"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := runPod(t)
			c := p.start(t, "c", "echo up; exec sleep 4717")
			c.waitLog(t, "up")
			pids, reaper := processesWith(t, c.id), node.ReaperOf(keeperPID(t, shared))
			if reaper == 0 {
				t.Fatal("the keeper has no reaper")
			}
			shared.Kill()
			if !tc.reaper {
				syscall.Kill(reaper, syscall.SIGKILL)
				eventually(t, "the reaper is gone", func() bool { return !alive(reaper) })
			}
			killKeeper(t, shared)
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			for _, pid := range pids { // a zombie would still tell its exit code
				eventually(t, "the process is gone", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
			}
			restart(t)
			s := c.waitExit(t)
			wantEqual(t, "exit code", s.ExitCode, tc.code)
			wantEqual(t, "reason", s.Reason, tc.reason)
		})
	}
}

// A node whose keepers learn exit codes as on a kernel before 6.15.
func TestKeeperKilledOnAnOldKernel(t *testing.T) {
	program := filepath.Join(t.TempDir(), "old-keeper")
	script := fmt.Sprintf("#!/bin/sh\nexec %s/gantry-keeper -plain-exits \"$@\"\n", binDir)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n, err := newNode("old-kernel", func(o *node.Options) { o.Keeper = program })
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	const waits = "echo up; while [ ! -e /dev/shm/release ]; do usleep 10000; done; exit 7"
	c := runPodOn(t, n, podConfig(t, n, "")).start(t, "c", waits)
	c.waitLog(t, "up")
	pids, old := processesWith(t, c.id), keeperPID(t, n)
	killKeeper(t, n)
	touchInShm(t, pids)
	awaitKeeper(t, n, old)
	wantEqual(t, "exit code", c.waitExit(t).ExitCode, 7)
}

// A daemon that is killed in the middle of making pods leaves nothing that cannot be listed and removed.
func TestDaemonKilledWhileMakingPods(t *testing.T) {
	for i := range 4 {
		config := podConfig(t, shared, fmt.Sprintf("-%d", i))
		done := make(chan struct{})
		go func() {
			shared.Runtime.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: config})
			close(done)
		}()
		time.Sleep(time.Duration(i*20) * time.Millisecond)
		shared.Kill()
		<-done
		restart(t)
		// The kubelet's next try with the same metadata works.
		runPodOn(t, shared, config).start(t, "c", "sleep 1000")
	}
}

func TestABadRecordIsListedAndRemovable(t *testing.T) {
	p := runPod(t)
	good := runPodOn(t, shared, podConfig(t, shared, "-good"))
	c := good.start(t, "c", "sleep 1000")
	p.start(t, "c", "sleep 1000")
	shared.Kill()
	damage(t, shared, p.id)
	restart(t)
	if ids := listIDs(t); !slices.Contains(ids, p.id) || !slices.Contains(ids, c.id) {
		t.Errorf("the damaged or the good one is not listed: %v", ids)
	}
	wantEqual(t, "exec in the good one", c.exec(t, "echo fine"), "fine")
	p.remove(t)
	if ids := listIDs(t); slices.Contains(ids, p.id) {
		t.Error("the damaged one is listed after it was removed")
	}
	if pids := processesWith(t, p.id); len(pids) > 0 {
		t.Errorf("processes of the damaged one: %v", pids)
	}
}

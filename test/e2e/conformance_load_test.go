//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Twenty pods at once from the first call to the last: all run, with addresses of their own, and nothing is left.
func TestTwentyPodsAtOnce(t *testing.T) {
	leavesNoTrace(t)
	const n = 20
	pods, ips := make([]*pod, n), make([]string, n)
	configs, requests := make([]*runtime.PodSandboxConfig, n), make([]*runtime.ContainerConfig, n)
	for i := range n {
		configs[i], requests[i] = podConfig(t, shared, fmt.Sprintf("-%d", i)), shellConfig(t, "c", "sleep 1000")
	}
	r, ctx := shared.Runtime, timeout(t)
	wantAllGood(t, "run and start", atOnce(n, func(i int) error {
		response, err := r.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: configs[i]})
		if err != nil {
			return err
		}
		pods[i] = &pod{node: shared, id: response.PodSandboxId, config: configs[i]}
		created, err := r.CreateContainer(ctx, pods[i].createRequest(requests[i]))
		if err != nil {
			return err
		}
		if _, err := r.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
			return err
		}
		status, err := r.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pods[i].id})
		ips[i] = status.GetStatus().GetNetwork().GetIp()
		return err
	}))
	if slices.Sort(ips); len(slices.Compact(slices.Clone(ips))) != n || ips[0] == "" {
		t.Errorf("addresses are %v", ips)
	}
	took := time.Hour
	for try := 0; took > 2*time.Second && try < 10; try++ { // what takes long may be the machine
		lists := time.Now()
		for range 20 {
			if _, err := r.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{}); err != nil {
				t.Error(err)
			}
		}
		took = time.Since(lists)
	}
	if took > 2*time.Second {
		t.Errorf("20 lists took %v", took)
	}
	ctx = timeout(t)
	wantAllGood(t, "stop and remove", atOnce(n, func(i int) error {
		if pods[i] == nil {
			return nil
		}
		if _, err := r.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pods[i].id}); err != nil {
			return err
		}
		_, err := r.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pods[i].id})
		return err
	}))
}

// A sandbox that is stopped while containers are made and started in it ends with nothing running, and takes no more.
func TestStopWhileContainersAreMade(t *testing.T) {
	leavesNoTrace(t)
	for round := range 10 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			p := runPod(t)
			var making sync.WaitGroup
			for i := range 6 {
				config := shellConfig(t, fmt.Sprintf("c%d", i), "sleep 1000")
				making.Go(func() {
					created, err := shared.Runtime.CreateContainer(t.Context(), p.createRequest(config))
					if err == nil {
						_, err = shared.Runtime.StartContainer(t.Context(), &runtime.StartContainerRequest{ContainerId: created.ContainerId})
					}
					if c := status.Code(err); c == codes.Internal || c == codes.DeadlineExceeded || c == codes.InvalidArgument {
						t.Errorf("container while its sandbox stops: %v", err)
					}
				})
			}
			time.Sleep(time.Duration(round*round) * 2 * time.Millisecond)
			p.stop(t)
			wantEqual(t, "state", p.status(t).State, runtime.PodSandboxState_SANDBOX_NOTREADY)
			if pids := processesWith(t, p.id); len(pids) > 0 {
				t.Errorf("processes after the stop: %v", pids)
			}
			making.Wait()
			for _, c := range p.containers(t) {
				if c.State == runtime.ContainerState_CONTAINER_RUNNING {
					t.Errorf("a container runs in a stopped sandbox: %v", c)
				}
				for _, pid := range processesWith(t, c.Id) {
					if alive(pid) {
						t.Errorf("process %d, %q, of the %s container %s is in a stopped sandbox", pid, processTitle(pid), c.State, c.Id)
					}
				}
			}
			_, err := shared.Runtime.CreateContainer(timeout(t), p.createRequest(shellConfig(t, "late", "true")))
			wantCode(t, err, codes.FailedPrecondition)
		})
	}
}

// A sandbox may be removed without being stopped while its containers are made.
func TestRemoveWhileContainersAreMade(t *testing.T) {
	leavesNoTrace(t)
	for round := range 4 {
		p := runPod(t)
		var making sync.WaitGroup
		for i := range 4 {
			config := shellConfig(t, fmt.Sprintf("c%d", i), "sleep 1000")
			making.Go(func() {
				created, err := shared.Runtime.CreateContainer(t.Context(), p.createRequest(config))
				if err == nil {
					shared.Runtime.StartContainer(t.Context(), &runtime.StartContainerRequest{ContainerId: created.ContainerId})
				}
			})
		}
		time.Sleep(time.Duration(round*15) * time.Millisecond)
		_, err := shared.Runtime.RemovePodSandbox(timeout(t), &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
		if err != nil {
			t.Errorf("remove: %v", err)
		}
		making.Wait()
		if left := podsOf(t, p.config); len(left) > 0 {
			t.Errorf("after the removal there is %v", left)
		}
	}
}

// Many commands at once, each with its own output, exit code and end; those that take too long leave no process.
func TestStormOfExecs(t *testing.T) {
	leavesNoTrace(t)
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000")
	wantAllGood(t, "exec", atOnce(50, func(i int) error {
		if i%5 == 0 {
			_, err := c.node.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{
				ContainerId: c.id, Timeout: 1, Cmd: []string{"sh", "-c", "sleep 5000 & (sleep 5000; true) & sleep 5000"},
			})
			if status.Code(err) != codes.DeadlineExceeded {
				return fmt.Errorf("exec that takes too long: %w", err)
			}
			return nil
		}
		response, err := c.node.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{
			ContainerId: c.id, Timeout: 150, Cmd: []string{"sh", "-c", fmt.Sprintf("seq %d; echo e%d >&2; exit %d", i, i, i)},
		})
		if err != nil {
			return err
		}
		lines := strings.Fields(string(response.Stdout))
		if len(lines) != i || lines[i-1] != fmt.Sprint(i) || string(response.Stderr) != fmt.Sprintf("e%d\n", i) || response.ExitCode != int32(i) {
			return fmt.Errorf("output %q, errors %q, code %d", response.Stdout, response.Stderr, response.ExitCode)
		}
		return nil
	}))
	eventually(t, "only the container's own process is left", func() bool {
		// It reaps nobody, so what was killed may stay as a zombie.
		return len(slices.DeleteFunc(processesWith(t, c.id), func(pid int) bool { return !alive(pid) })) == 1
	})
	wantEqual(t, "state", c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
}

// Commands that run when their container ends come back, too.
func TestExecsOfAContainerThatEnds(t *testing.T) {
	leavesNoTrace(t)
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000")
	done := make(chan error, 10)
	for range cap(done) {
		go func() {
			_, err := c.node.Runtime.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "1000"}})
			done <- err
		}()
	}
	eventually(t, "the commands run", func() bool { return len(c.processes(t, "sleep 1000")) > cap(done) })
	if err := c.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	for range cap(done) {
		select {
		case <-done: // killed, or told that the container is over
		case <-time.After(callTimeout):
			t.Fatal("a command outlives its container")
		}
	}
}

// More output than an answer can hold is cut off, on both streams, and the command goes on to its own end.
func TestHugeOutputOfExec(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000")
	r := c.execSync(t, 150, "sh", "-c", "head -c 20000000 /dev/zero >&2 & head -c 20000000 /dev/zero | tr '\\0' x; wait; touch /end; exit 3")
	wantEqual(t, "exit code", r.ExitCode, 3)
	for name, out := range map[string][]byte{"x": r.Stdout, "\x00": r.Stderr} {
		if len(out) < 1<<20 || len(out) > 16<<20 || bytes.Count(out, []byte(name)) != len(out) {
			t.Errorf("output of %q has %d bytes, %d of them right", name, len(out), bytes.Count(out, []byte(name)))
		}
	}
	c.exec(t, "test -e /end")
}

// Rotation under load: two streams, short lines and long ones, renamed and reopened again and again.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	const script = `trap 'kill $a $b; wait; exit 0' TERM
(i=0; while :; do i=$((i+1)); echo $i; done) & a=$!
long=$(head -c 20000 /dev/zero | tr '\0' x)
(i=0; while :; do i=$((i+1)); echo "$i $long" >&2; done) & b=$!
wait $a`
	c := p.start(t, "c", script)
	c.waitLog(t, "100")
	files := []string{}
	for i := range 25 {
		rotated := fmt.Sprintf("%s.%02d", c.logPath, i)
		if err := os.Rename(c.logPath, rotated); err != nil {
			t.Fatal(err)
		}
		files = append(files, rotated)
		_, err := c.node.Runtime.ReopenContainerLog(timeout(t), &runtime.ReopenContainerLogRequest{ContainerId: c.id})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
	}
	eventually(t, "both count on in the last file", func() bool {
		least := map[string]int{}
		for _, line := range readLog(t, c.logPath) {
			text, _, _ := strings.Cut(line.text, " ")
			if n, err := strconv.Atoi(text); err == nil {
				least[line.stream] = max(least[line.stream], n)
			}
		}
		return least["stdout"] >= 300 && least["stderr"] > 10
	})
	if err := c.stop(t, 60); err != nil {
		t.Fatal(err)
	}
	var short, long []logLine
	for _, line := range readLog(t, append(files, c.logPath)...) {
		switch {
		case line.stream == "stdout":
			short = append(short, line)
		case len(long) > 0 && long[len(long)-1].tag == "P":
			last := &long[len(long)-1]
			last.text, last.tag = last.text+line.text, line.tag
		default:
			long = append(long, line)
		}
	}
	wantCounting(t, short, 300)
	if n := len(long); n > 1 {
		long = long[:n-1] // the writer was killed in the middle of it
	}
	for i := range long {
		number, rest, _ := strings.Cut(long[i].text, " ")
		if len(rest) != 20000 {
			t.Fatalf("long line %s has %d bytes", number, len(rest))
		}
		long[i].text = number
	}
	wantCounting(t, long, 10)
}

// Lists and status answer while everything else goes on.
func TestReadsDuringSlowCalls(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.start(t, "c", stubborn)
	c.waitLog(t, "ready")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 10 {
		go c.node.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 600})
		go c.node.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "1000"}})
	}
	c.waitLog(t, "asked")
	for range 50 {
		brief, done := context.WithTimeout(ctx, time.Minute)
		_, errList := c.node.Runtime.ListContainers(brief, &runtime.ListContainersRequest{})
		_, errStatus := c.node.Runtime.ContainerStatus(brief, &runtime.ContainerStatusRequest{ContainerId: c.id})
		_, errNode := c.node.Runtime.Status(brief, &runtime.StatusRequest{})
		done()
		wantAllGood(t, "list, status, node status", []error{errList, errStatus, errNode})
	}
}

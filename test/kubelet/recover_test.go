//go:build e2e

package kubelet

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// population starts pods of several kinds, which count in their logs.
func population(t *testing.T) []testPod {
	t.Helper()
	const count = `[sh, -c, "trap exit TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"]`
	specs := []string{`
containers:
- name: main
  image: BUSYBOX
  command: ` + count + `
  readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 20}
  livenessProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 20}`, `
initContainers:
- {name: init, image: BUSYBOX, command: ["true"]}
- {name: side, image: BUSYBOX, restartPolicy: Always, command: ` + count + `}
containers:
- {name: main, image: BUSYBOX, command: ` + count + `}
- {name: other, image: BUSYBOX, command: ` + count + `}`, `
hostNetwork: true
containers:
- {name: main, image: BUSYBOX, command: ` + count + `}`, `
hostUsers: false
shareProcessNamespace: true
volumes: [{name: memory, emptyDir: {medium: Memory}}]
containers:
- {name: main, image: BUSYBOX, command: ` + count + `, volumeMounts: [{name: memory, mountPath: /memory}]}`,
	}
	var pods []testPod
	for i, spec := range specs {
		pods = append(pods, startOn(t, shared, Manifest{Name: fmt.Sprintf("%s-%d", podName(t), i), Spec: spec}))
	}
	for _, p := range pods {
		p.running(t)
	}
	return pods
}

// identity is what must not change while pods go on: sandboxes and containers by id, and the counts of restarts.
func identity(t *testing.T, p testPod) string {
	t.Helper()
	status, err := p.Status(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, c := range append(status.InitContainerStatuses, status.ContainerStatuses...) {
		fmt.Fprintf(&b, "%s %s restarted %d\n", c.Name, c.ContainerID, c.RestartCount)
	}
	list, err := gantry.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{
		Filter: &runtime.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": p.Name}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.Items {
		fmt.Fprintln(&b, "sandbox", s.Id, s.State)
	}
	return b.String()
}

// countsOn checks that a container's log counts without a gap and waits until it has gone on from now.
// With repeats a line may be there again: a keeper that is killed before it has discarded what it wrote leaves it to its
// successor to write again.
func countsOn(t *testing.T, p testPod, repeats bool) {
	t.Helper()
	last := func() int {
		text, err := p.Logs(timeout(t), "main", url.Values{})
		if err != nil {
			t.Fatal(err)
		}
		text = text[:strings.LastIndexByte(text, '\n')+1] // the end of a record may show after its beginning
		count := 0
		for i, line := range strings.Fields(text) {
			n, err := strconv.Atoi(line)
			if err != nil || n != count+1 && !(repeats && n >= 1 && n <= count) {
				t.Fatalf("pod %s: line %d of the log is %q, after %d", p.Name, i+1, line, count)
			}
			count = n
		}
		return count
	}
	before := last()
	eventually(t, "the log to go on", func() error {
		if last() <= before {
			return fmt.Errorf("it ends with %d", before)
		}
		return nil
	})
}

// restartKubelet kills the kubelet and starts it again.
func restartKubelet(t *testing.T) {
	t.Helper()
	shared.Kill()
	if err := shared.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
}

// restartDaemon kills the daemon and starts it again.
func restartDaemon(t *testing.T) {
	t.Helper()
	gantry.Kill()
	if err := gantry.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
}

// restartKeeper kills the keeper and waits for the one that the daemon starts.
func restartKeeper(t *testing.T) {
	t.Helper()
	old, err := gantry.KeeperHello()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(old.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another keeper", func() error {
		hello, err := gantry.KeeperHello()
		if err == nil && (hello.PID == old.PID || !hello.Settled) {
			err = fmt.Errorf("it is %+v", hello)
		}
		return err
	})
}

func TestRestartsChangeNoPod(t *testing.T) {
	pods := population(t)
	done := startOn(t, shared, Manifest{Name: "done", Spec: `
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, "echo done; exit 4"]}`})
	done.finished(t)
	eventually(t, "the sandbox of the pod that is done to be stopped", func() error {
		if live := liveObjects(t, done); live != "" {
			return fmt.Errorf("there is %s", live)
		}
		return nil
	})
	all := append(pods, done)
	before := make([]string, len(all))
	for i, p := range all {
		before[i] = identity(t, p)
	}
	repeats := false
	for _, test := range []struct {
		name string
		act  func(t *testing.T)
	}{
		{"kubelet", restartKubelet},
		{"daemon", restartDaemon},
		{"daemon-away-a-while", func(t *testing.T) {
			gantry.Kill()
			time.Sleep(5 * time.Second)
			if err := gantry.Start(timeout(t)); err != nil {
				t.Fatal(err)
			}
		}},
		{"keeper", func(t *testing.T) {
			repeats = true
			restartKeeper(t)
		}},
		{"both", func(t *testing.T) {
			shared.Kill()
			gantry.Kill()
			if err := gantry.Start(timeout(t)); err != nil {
				t.Fatal(err)
			}
			if err := shared.Start(timeout(t)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.act(t)
			for _, p := range pods {
				p.running(t)
			}
			for i, p := range all {
				eventually(t, "the kubelet to know "+p.Name+" again", func() error {
					if now := identity(t, p); now != before[i] {
						return fmt.Errorf("it is %s, not %s", now, before[i])
					}
					return nil
				})
			}
			time.Sleep(3 * time.Second) // some looks of the kubelet at its pods
			for i, p := range all {
				wantEqual(t, "identity of "+p.Name, identity(t, p), before[i])
			}
			for _, p := range pods {
				countsOn(t, p, repeats)
			}
			wantEqual(t, "output of a command", pods[0].shell(t, "main", "echo alive"), "alive")
			if ended := done.finished(t).Container("main").State.Terminated; ended == nil || ended.ExitCode != 4 {
				t.Errorf("the pod that had ended is %+v", ended)
			}
		})
	}
}

// TestDaemonKilledKeepsPodsReady: the kubelet calls pods not ready when their probes fail, and skips all its work when the
// runtime does not answer for half a minute. A restart of the daemon must cause neither.
func TestDaemonKilledKeepsPodsReady(t *testing.T) {
	pods := population(t)
	since := pods[0].running(t).Condition("Ready").LastTransitionTime
	skipped := strings.Count(readFile(t, shared.LogFile()), "Skipping pod synchronization")
	for range 3 {
		restartDaemon(t)
		time.Sleep(2 * time.Second)
	}
	status := pods[0].running(t)
	wantEqual(t, "time of the last change of readiness", status.Condition("Ready").LastTransitionTime, since)
	wantEqual(t, "times that the kubelet skipped its work",
		strings.Count(readFile(t, shared.LogFile()), "Skipping pod synchronization"), skipped)
}

// TestKillsWhilePodsComeAndGo kills daemon and kubelet in the middle of starting and ending pods.
func TestKillsWhilePodsComeAndGo(t *testing.T) {
	var pods []testPod
	for i := range 8 {
		pods = append(pods, startOn(t, shared, Manifest{Name: fmt.Sprintf("rush-%d", i), Spec: `
terminationGracePeriodSeconds: 3
initContainers:
- {name: init, image: BUSYBOX, command: ["true"]}
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}
- {name: other, image: BUSYBOX, command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]}`}))
	}
	time.Sleep(300 * time.Millisecond)
	restartDaemon(t)
	time.Sleep(300 * time.Millisecond)
	restartDaemon(t)
	restartKubelet(t)
	for _, p := range pods {
		p.running(t)
	}
	for _, p := range pods {
		eventually(t, "only the containers and the sandbox of "+p.Name, func() error {
			if found := liveObjects(t, p); found != "main other sandbox" {
				return fmt.Errorf("it has %s", found)
			}
			return nil
		})
	}
	ended := make(chan error, len(pods))
	for _, p := range pods {
		go func() { ended <- p.Delete(timeout(t)) }()
	}
	time.Sleep(500 * time.Millisecond)
	restartDaemon(t)
	for range pods {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// liveObjects names the running containers and ready sandboxes of a pod.
func liveObjects(t *testing.T, p testPod) string {
	t.Helper()
	labels := map[string]string{"io.kubernetes.pod.name": p.Name}
	var names []string
	containers, err := gantry.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{LabelSelector: labels},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers.Containers {
		if c.State == runtime.ContainerState_CONTAINER_RUNNING {
			names = append(names, c.Metadata.Name)
		}
	}
	sandboxes, err := gantry.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{
		Filter: &runtime.PodSandboxFilter{LabelSelector: labels},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sandboxes.Items {
		if s.State == runtime.PodSandboxState_SANDBOX_READY {
			names = append(names, "sandbox")
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// waitGone waits until the runtime has nothing of a pod any more, running or not: the kubelet collects once a minute.
func waitGone(t *testing.T, p testPod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	eventually(t, "the end of all that was "+p.Name, func() error {
		list, err := gantry.Runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{
			Filter: &runtime.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": p.Name}},
		})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("there is %v", list.Items[0].Id)
		}
		return err
	})
}

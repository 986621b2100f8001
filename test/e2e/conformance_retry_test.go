//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Every call of a life ten times at once: they all succeed, and there is one sandbox and one container.
func TestEveryCallTenTimesAtOnce(t *testing.T) {
	leavesNoTrace(t)
	const n = 10
	config := podConfig(t, shared, "")
	r, ctx := shared.Runtime, timeout(t)
	ids := make([]string, n)
	wantAllGood(t, "run", atOnce(n, func(i int) error {
		response, err := r.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: proto.CloneOf(config)})
		ids[i] = response.GetPodSandboxId()
		return err
	}))
	p := &pod{node: shared, id: ids[0], config: config}
	t.Cleanup(func() { p.remove(t) })
	wantEqual(t, "number of sandboxes", len(podsOf(t, config)), 1)
	request := p.createRequest(shellConfig(t, "c", "trap 'exit 4' TERM; echo ready; while :; do sleep 0.1; done"))
	containerIDs := make([]string, n)
	wantAllGood(t, "create", atOnce(n, func(i int) error {
		response, err := r.CreateContainer(ctx, proto.CloneOf(request))
		containerIDs[i] = response.GetContainerId()
		return err
	}))
	for i := range n {
		wantEqual(t, "sandbox id", ids[i], p.id)
		wantEqual(t, "container id", containerIDs[i], containerIDs[0])
	}
	wantEqual(t, "number of containers", len(p.containers(t)), 1)
	c := &container{pod: p, id: containerIDs[0], logPath: config.LogDirectory + "/c.log"}
	for _, err := range atOnce(n, func(int) error { return c.start(t) }) {
		// Who comes when the process runs already is told so.
		if err != nil {
			wantCode(t, err, codes.FailedPrecondition, "running")
		}
	}
	c.waitLog(t, "ready")
	wantAllGood(t, "stop", atOnce(n, func(int) error { return c.stop(t, 20) }))
	wantEqual(t, "exit code", c.status(t).ExitCode, 4)
	wantAllGood(t, "remove container", atOnce(n, func(int) error {
		_, err := r.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.id})
		return err
	}))
	wantAllGood(t, "stop sandbox", atOnce(n, func(int) error {
		_, err := r.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	}))
	wantAllGood(t, "remove sandbox", atOnce(n, func(int) error {
		_, err := r.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	}))
	wantEqual(t, "number of sandboxes after all", len(podsOf(t, config)), 0)
}

func TestTheSameNameWithAnotherConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	r := shared.Runtime
	other := proto.CloneOf(p.config)
	other.Hostname = "other"
	_, err := r.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: other})
	wantCode(t, err, codes.AlreadyExists, p.id)

	c := p.create(t, "c", "sleep 1000")
	changed := proto.CloneOf(c.config)
	changed.Command = []string{"true"}
	_, err = r.CreateContainer(timeout(t), p.createRequest(changed))
	wantCode(t, err, codes.AlreadyExists, c.id)
	changed.Metadata.Attempt = 1
	second, err := r.CreateContainer(timeout(t), p.createRequest(changed))
	if err != nil || second.ContainerId == c.id {
		t.Errorf("another attempt gives %v, %v", second, err)
	}
	// A name is free again when its container is gone.
	if _, err := r.RemoveContainer(timeout(t), &runtime.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	changed.Metadata.Attempt = 0
	if _, err := r.CreateContainer(timeout(t), p.createRequest(changed)); err != nil {
		t.Errorf("create by the name of a removed container: %v", err)
	}
	// A stopped sandbox does not answer for its name any more.
	p.stop(t)
	again := runPodOn(t, shared, proto.CloneOf(p.config))
	if again.id == p.id {
		t.Error("a stopped sandbox came back")
	}
	p.remove(t)
	wantEqual(t, "state of the new one", again.status(t).State, runtime.PodSandboxState_SANDBOX_READY)
}

// A failed call is not remembered: the same name with a good configuration works.
func TestANameIsFreeAfterAFailure(t *testing.T) {
	t.Parallel()
	config := podConfig(t, shared, "")
	bad := proto.CloneOf(config)
	bad.Linux.Sysctls = map[string]string{"net.ipv4.no_such_sysctl": "1"}
	if _, err := shared.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: bad}); err == nil {
		t.Fatal("a sysctl that does not exist was set")
	}
	p := runPodOn(t, shared, config)
	wantEqual(t, "number of sandboxes", len(podsOf(t, config)), 1)
	failing := shellConfig(t, "c", "true")
	failing.Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/no/such/source"}}
	if _, err := shared.Runtime.CreateContainer(timeout(t), p.createRequest(failing)); err == nil {
		t.Fatal("a source that does not exist was mounted")
	}
	p.start(t, "c", "true").waitExit(t)
}

// deadlines are the moments at which a client gives up: from before the call is read to after it is over.
func deadlines() []time.Duration {
	var all []time.Duration
	for d := 200 * time.Microsecond; d <= 60*time.Millisecond; d = d * 3 / 2 {
		all = append(all, d)
	}
	return all
}

// giveUp makes a call that is given up after d, and returns its error. It may end in time, too.
func giveUp(t *testing.T, d time.Duration, call func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	err := call(ctx)
	if code := status.Code(err); code != codes.OK && code != codes.DeadlineExceeded {
		t.Errorf("a call that was given up after %v: %v", d, err)
	}
	return err
}

// In a whole life each call is first given up and then repeated: every repetition succeeds, and nothing is left.
func TestCallsThatAreGivenUpAndRepeated(t *testing.T) {
	leavesNoTrace(t)
	for _, d := range deadlines() {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			r := shared.Runtime
			twice := func(what string, call func(ctx context.Context) error) {
				t.Helper()
				giveUp(t, d, call)
				if err := call(timeout(t)); err != nil {
					t.Fatalf("%s again: %v", what, err)
				}
			}
			p := &pod{node: shared, config: podConfig(t, shared, "")}
			twice("run", func(ctx context.Context) error {
				response, err := r.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.config})
				p.id = response.GetPodSandboxId()
				return err
			})
			wantEqual(t, "number of sandboxes", len(podsOf(t, p.config)), 1)
			t.Cleanup(func() { p.remove(t) })
			c := &container{pod: p, logPath: p.config.LogDirectory + "/c.log"}
			request := p.createRequest(shellConfig(t, "c", stubborn))
			twice("create", func(ctx context.Context) error {
				response, err := r.CreateContainer(ctx, request)
				c.id = response.GetContainerId()
				return err
			})
			wantEqual(t, "number of containers", len(p.containers(t)), 1)
			c.startGivingUp(t, d)
			c.waitLog(t, "ready")
			twice("stop", func(ctx context.Context) error {
				_, err := r.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.id})
				return err
			})
			wantEqual(t, "state", c.status(t).State, runtime.ContainerState_CONTAINER_EXITED)
			wantEqual(t, "exit code", c.status(t).ExitCode, 137)
			twice("remove container", func(ctx context.Context) error {
				_, err := r.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.id})
				return err
			})
			wantEqual(t, "number of containers after the removal", len(p.containers(t)), 0)
			p.start(t, "left", stubborn) // for the sandbox to kill
			twice("stop sandbox", func(ctx context.Context) error {
				_, err := r.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
				return err
			})
			wantEqual(t, "state of the sandbox", p.status(t).State, runtime.PodSandboxState_SANDBOX_NOTREADY)
			twice("remove sandbox", func(ctx context.Context) error {
				_, err := r.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
				return err
			})
			wantEqual(t, "number of sandboxes after the removal", len(podsOf(t, p.config)), 0)
		})
	}
}

// startGivingUp starts the container by a call that is given up and by one that is not; then it runs. The second call
// is told when the first was quicker.
func (c *container) startGivingUp(t *testing.T, d time.Duration) {
	t.Helper()
	giveUp(t, d, func(ctx context.Context) error {
		_, err := c.node.Runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.id})
		return err
	})
	if err := c.start(t); err != nil {
		wantCode(t, err, codes.FailedPrecondition, "running")
	}
	wantEqual(t, "state after the second start", c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
}

// Calls that are given up and never repeated: what they made can be seen and removed.
func TestCallsThatAreGivenUpForGood(t *testing.T) {
	leavesNoTrace(t)
	r := shared.Runtime
	for i, d := range deadlines() {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			config := podConfig(t, shared, "-lost")
			err := giveUp(t, d, func(ctx context.Context) error {
				_, err := r.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config})
				return err
			})
			p := runPod(t)
			request := p.createRequest(shellConfig(t, "c", stubborn))
			switch i % 3 {
			case 0: // the sandbox goes while its container is made
				giveUp(t, d, func(ctx context.Context) error {
					_, err := r.CreateContainer(ctx, request)
					return err
				})
			case 1: // and while it starts
				response, err := r.CreateContainer(timeout(t), request)
				if err != nil {
					t.Fatal(err)
				}
				giveUp(t, d, func(ctx context.Context) error {
					_, err := r.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: response.ContainerId})
					return err
				})
			case 2: // and while it is stopped with a long grace
				c := p.start(t, "c", stubborn)
				giveUp(t, d, func(ctx context.Context) error {
					_, err := r.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 600})
					return err
				})
			}
			p.remove(t)
			// A sandbox that was asked for appears, unless the call never arrived.
			var lost []*runtime.PodSandbox
			for wait := time.Now().Add(2 * time.Second); len(lost) == 0 && time.Now().Before(wait); {
				lost = podsOf(t, config)
				time.Sleep(20 * time.Millisecond)
			}
			if len(lost) == 0 && err == nil {
				t.Error("the sandbox of a call that succeeded is not listed")
			}
			if len(lost) == 0 { // it may be on its way all the same: this joins it, or makes another
				response, err := r.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
				if err != nil {
					t.Fatal(err)
				}
				lost = append(lost, &runtime.PodSandbox{Id: response.PodSandboxId})
			}
			for _, s := range lost {
				(&pod{node: shared, id: s.Id}).remove(t)
			}
		})
	}
}

// A client that cancels gets its answer at once and not when the work is over.
func TestACancelledCallReturnsAtOnce(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.start(t, "c", stubborn)
	c.waitLog(t, "ready")
	for name, call := range map[string]func(ctx context.Context) error{
		"StopContainer": func(ctx context.Context) error {
			_, err := shared.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 600})
			return err
		},
		"ExecSync": func(ctx context.Context) error {
			_, err := shared.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "600"}})
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		start := time.Now()
		wantCode(t, call(ctx), codes.Canceled)
		if took := time.Since(start); took > time.Minute {
			t.Errorf("%s returned %v after it began", name, took)
		}
	}
	eventually(t, "the command of a cancelled exec is gone", func() bool {
		for _, pid := range processesWith(t, c.id) {
			if title := processTitle(pid); title == "sleep 600" {
				return false
			}
		}
		return true
	})
	wantEqual(t, "state", c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
	if err := c.stop(t, 0); err != nil {
		t.Error(fmt.Errorf("stop after cancelled calls: %w", err))
	}
}

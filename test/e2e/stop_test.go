//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stubborn ignores being asked to end.
const stubborn = `trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done`

func TestStopAsksFirst(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", `trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done`)
	c.waitLog(t, "ready")
	if err := c.stop(t, 60); err != nil {
		t.Fatal(err)
	}
	s := c.status(t)
	wantEqual(t, "state when stop returns", s.State, runtime.ContainerState_CONTAINER_EXITED)
	wantEqual(t, "exit code", s.ExitCode, 5)
	if err := c.stop(t, 60); err != nil {
		t.Errorf("stop again: %v", err)
	}
}

func TestStopSignalIsTheImages(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", `trap 'exit 9' USR1; trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done`, usersImage)
	c.waitLog(t, "ready")
	if err := c.stop(t, 60); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "exit code", c.status(t).ExitCode, 9)
}

func TestStopKillsAfterTheGrace(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", stubborn)
	c.waitLog(t, "ready")
	start := time.Now()
	if err := c.stop(t, 5); err != nil { // which is enough to say "asked", and within what a call may take
		t.Fatal(err)
	}
	if took := time.Since(start); took < 4900*time.Millisecond {
		t.Errorf("stop with 5 s of grace took %v", took)
	}
	wantEqual(t, "exit code", c.status(t).ExitCode, 137)
	wantEqual(t, "log", c.logText(t), "ready\nasked")
}

func TestAShorterStopOverridesALongerOne(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", stubborn)
	c.waitLog(t, "ready")
	long := make(chan error, 1)
	go func() {
		_, err := p.node.Runtime.StopContainer(t.Context(), &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 600})
		long <- err
	}()
	c.waitLog(t, "asked")
	if err := c.stop(t, 1); err != nil { // within what a call may take, which is less than 600 s
		t.Fatal(err)
	}
	select {
	case err := <-long:
		if err != nil {
			t.Errorf("the longer stop: %v", err)
		}
	case <-time.After(callTimeout):
		t.Error("the longer stop did not return")
	}
}

func TestAStopThatWasGivenUpCanBeRepeated(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", stubborn)
	c.waitLog(t, "ready")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := p.node.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: 600})
	wantCode(t, err, codes.DeadlineExceeded)
	if err := c.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "exit code", c.status(t).ExitCode, 137)
}

func TestStopOfThePodKillsEverything(t *testing.T) {
	p := runPod(t, podPID)
	c := p.start(t, "c", "trap '' TERM; (sleep 4714 &) ; sleep 4715", pidMode(runtime.NamespaceMode_POD))
	eventually(t, "the child runs", func() bool { return len(processesWith(t, "4714")) > 0 })
	if _, err := p.node.Runtime.StopPodSandbox(timeout(t), &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "pod state", p.status(t).State, runtime.PodSandboxState_SANDBOX_NOTREADY)
	wantEqual(t, "container state", c.status(t).State, runtime.ContainerState_CONTAINER_EXITED)
	if pids := processesWith(t, c.id); len(pids) > 0 {
		t.Errorf("processes of the container: %v", pids)
	}
	_, err := p.tryCreate(t, containerConfig("late", "true"))
	wantCode(t, err, codes.FailedPrecondition)
}

func TestUnknownIDs(t *testing.T) {
	const id = "0123456789abcdef"
	r := shared.Runtime
	ctx := timeout(t)
	for what, call := range map[string]func() error{
		"StopPodSandbox": func() error {
			_, err := r.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func() error {
			_, err := r.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"StopContainer": func() error {
			_, err := r.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func() error {
			_, err := r.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s of an unknown id: %v", what, err)
		}
	}
	for what, call := range map[string]func() error{
		"StartContainer": func() error {
			_, err := r.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id})
			return err
		},
		"ContainerStatus": func() error {
			_, err := r.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"PodSandboxStatus": func() error {
			_, err := r.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"ReopenContainerLog": func() error {
			_, err := r.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"ExecSync": func() error {
			_, err := r.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"CreateContainer": func() error {
			_, err := r.CreateContainer(ctx, &runtime.CreateContainerRequest{
				PodSandboxId: id, Config: containerConfig("c", "true"), SandboxConfig: podConfig(t, shared, ""),
			})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) { wantNotFound(t, call()) })
	}
}

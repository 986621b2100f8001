//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestContainerThatCannotStart(t *testing.T) {
	p := runPod(t)
	for _, test := range []struct {
		name   string
		change func(*runtime.ContainerConfig)
		words  string // in the message
	}{
		{"missing command", func(c *runtime.ContainerConfig) { c.Command = []string{"no-such-command"} }, "no-such-command"},
		{"missing path", func(c *runtime.ContainerConfig) { c.Command = []string{"/no/such/file"} }, "/no/such/file"},
		{"not executable", func(c *runtime.ContainerConfig) {
			usersImage(c)
			c.Command = []string{"/srv/not-executable"}
		}, "permission denied"},
		{"directory", func(c *runtime.ContainerConfig) { c.Command = []string{"/etc"} }, "/etc"},
		{"unknown user", func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "stranger" }, "stranger"},
		{"working directory is a file", func(c *runtime.ContainerConfig) { c.WorkingDir = "/etc/passwd" }, "/etc/passwd"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := strings.ReplaceAll(test.name, " ", "-")
			c := p.create(t, name, "true", test.change)
			err := c.start(t)
			if err == nil || status.Code(err) == codes.OK {
				t.Fatal("start succeeded")
			}
			if !strings.Contains(err.Error(), test.words) {
				t.Errorf("error does not say %q: %v", test.words, err)
			}
			s := c.status(t)
			wantEqual(t, "state", s.State, runtime.ContainerState_CONTAINER_EXITED)
			wantEqual(t, "exit code", s.ExitCode, 128)
			wantEqual(t, "reason", s.Reason, "StartError")
			if !strings.Contains(s.Message, test.words) {
				t.Errorf("message does not say %q: %q", test.words, s.Message)
			}
			if s.FinishedAt == 0 {
				t.Error("finished at no time")
			}
			if pids := processesWith(t, c.id); len(pids) > 0 {
				t.Errorf("processes are left: %v", pids)
			}
			if found := cgroupsNamed(t, c.id); len(found) > 0 {
				t.Errorf("cgroups are left: %v", found)
			}
			if _, err := p.node.Runtime.RemoveContainer(timeout(t), &runtime.RemoveContainerRequest{ContainerId: c.id}); err != nil {
				t.Errorf("remove: %v", err)
			}
		})
	}
}

func TestExecThatCannotStart(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000")
	response, err := p.node.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{
		ContainerId: c.id, Cmd: []string{"no-such-command"}, Timeout: 10,
	})
	if err == nil {
		t.Errorf("exec of a missing command: %v", response)
	} else if !strings.Contains(err.Error(), "no-such-command") {
		t.Errorf("error does not name the command: %v", err)
	}
	exited := p.start(t, "exited", "true")
	exited.waitExit(t)
	_, err = p.node.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{ContainerId: exited.id, Cmd: []string{"true"}})
	wantCode(t, err, codes.FailedPrecondition)
}

func TestExecTimeoutKillsTheTree(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000")
	_, err := p.node.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{
		ContainerId: c.id, Cmd: []string{"sh", "-c", "(sleep 4720 &); sleep 4721"}, Timeout: 1,
	})
	wantCode(t, err, codes.DeadlineExceeded)
	for _, text := range []string{"4720", "4721"} {
		eventually(t, "processes of the exec are gone", func() bool { return len(processesWith(t, "sleep\x00"+text)) == 0 })
	}
	wantEqual(t, "container state", c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
}

func TestStartTwice(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "exit 0")
	c.waitExit(t)
	wantCode(t, c.start(t), codes.FailedPrecondition)
}

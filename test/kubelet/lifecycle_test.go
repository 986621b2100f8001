//go:build e2e

package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostDir makes a directory of the node for a hostPath volume that everybody may write to.
func hostDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// deleteNow ends the pod before the end of the test and says how long that took.
func (p testPod) deleteNow(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	if err := p.Delete(timeout(t)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// killMain kills the process of the container "main" from outside of it.
func (p testPod) killMain(t *testing.T) {
	t.Helper()
	id := strings.TrimPrefix(p.running(t).Container("main").ContainerID, "gantry://")
	status, err := gantry.Runtime.ContainerStatus(timeout(t), &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil || info.PID < 2 {
		t.Fatalf("the container's process in %v: %v", status.Info, err)
	}
	if err := syscall.Kill(info.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestHooksRunAroundTheContainer(t *testing.T) {
	t.Parallel()
	dir := hostDir(t)
	p := start(t, fmt.Sprintf(`
terminationGracePeriodSeconds: 60
volumes: [{name: host, hostPath: {path: %q}}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "trap 'echo term >> /host/order; exit 0' TERM; while :; do sleep 0.1; done"]
  volumeMounts: [{name: host, mountPath: /host}]
  lifecycle:
    postStart: {exec: {command: [sh, -c, "echo poststart >> /host/order"]}}
    preStop: {exec: {command: [sh, -c, "echo prestop >> /host/order; sleep 1; echo prestop done >> /host/order"]}}`, dir))
	p.running(t)
	p.deleteNow(t)
	wantEqual(t, "order", readFile(t, filepath.Join(dir, "order")), "poststart\nprestop\nprestop done\nterm\n")
}

func TestHTTPAndSleepHooks(t *testing.T) {
	t.Parallel()
	p := start(t, `
terminationGracePeriodSeconds: 60
containers:
- name: main
  image: AGNHOST
  command: [sh, -c, "mkdir /www; trap exit TERM; echo here > /www/poststart; httpd -p 8080 -h /www; while :; do sleep 0.1; done"]
  lifecycle:
    postStart: {sleep: {seconds: 1}}
    preStop: {httpGet: {path: /poststart, port: 8080}}`)
	p.running(t)
	p.deleteNow(t)
}

func TestPostStartFailureRestarts(t *testing.T) {
	t.Parallel()
	p := start(t, `
terminationGracePeriodSeconds: 2
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  lifecycle: {postStart: {exec: {command: [sh, -c, "exit 4"]}}}`)
	p.wait(t, "a restart", func(s *Status) bool { return s.Container("main").RestartCount > 0 })
}

func TestGraceIsKeptAndEnds(t *testing.T) {
	t.Parallel()
	dir := hostDir(t)
	p := start(t, fmt.Sprintf(`
terminationGracePeriodSeconds: 15
volumes: [{name: host, hostPath: {path: %q}}]
containers:
- name: polite
  image: BUSYBOX
  command: [sh, -c, "trap 'sleep 2; echo bye > /host/polite; exit 0' TERM; echo ready; while :; do sleep 0.1; done"]
  volumeMounts: [{name: host, mountPath: /host}]
- name: deaf
  image: BUSYBOX
  command: [sh, -c, "trap '' TERM; while :; do date +%%s >> /host/deaf; sleep 0.2; done"]
  volumeMounts: [{name: host, mountPath: /host}]`, dir))
	p.running(t)
	p.logsHave(t, "polite", "ready\n")
	took := p.deleteNow(t)
	wantEqual(t, "what the polite one did", readFile(t, filepath.Join(dir, "polite")), "bye\n")
	if took < 15*time.Second {
		t.Errorf("the pod ended after %v, before its grace was over", took)
	}
	before := readFile(t, filepath.Join(dir, "deaf"))
	time.Sleep(time.Second)
	wantEqual(t, "what the deaf one writes after its end", readFile(t, filepath.Join(dir, "deaf")), before)
}

func TestTerminationMessage(t *testing.T) {
	for _, test := range []struct{ name, policy, script, want string }{
		{"file", "File", "echo -n from the file > /dev/termination-log; echo to the log; exit 1", "from the file"},
		{"log", "FallbackToLogsOnError", "echo to the log; exit 1", "to the log\n"},
		{"none", "FallbackToLogsOnError", "echo to the log; exit 0", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, fmt.Sprintf(`
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, %q], terminationMessagePolicy: %s}`, test.script, test.policy))
			ended := p.finished(t).Container("main").State.Terminated
			wantEqual(t, "message", ended.Message, test.want)
		})
	}
}

func TestOOMKilled(t *testing.T) {
	for name, script := range map[string]string{
		"alone": "exec dd if=/dev/zero of=/dev/null bs=200M count=1",
		"child": "dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, fmt.Sprintf(`
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [sh, -c, %q], resources: {limits: {memory: 16Mi}}}`, script))
			status := p.finished(t)
			ended := status.Container("main").State.Terminated
			wantEqual(t, "phase", status.Phase, "Failed")
			wantEqual(t, "reason", ended.Reason, "OOMKilled")
			wantEqual(t, "exit code", ended.ExitCode, 137)
		})
	}
}

func TestActiveDeadlineEndsThePod(t *testing.T) {
	t.Parallel()
	p := start(t, `
activeDeadlineSeconds: 2
terminationGracePeriodSeconds: 2
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	status := p.finished(t)
	wantEqual(t, "phase", status.Phase, "Failed")
	wantEqual(t, "reason", status.Reason, "DeadlineExceeded")
}

//go:build e2e

package kubelet

import (
	"fmt"
	"net/url"
	"testing"
	"time"
)

func TestCrashLoopBacksOff(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "echo run; exit 3"]`)
	// By the number of restarts before it. A run is told of for as long as the kubelet waits after it.
	runs := make(map[int]*Terminated)
	p.wait(t, "two restarts", func(s *Status) bool {
		switch c := s.Container("main"); {
		case c.State.Terminated != nil:
			runs[c.RestartCount] = c.State.Terminated
		case c.State.Waiting != nil && c.LastState.Terminated != nil:
			runs[c.RestartCount] = c.LastState.Terminated
		}
		return runs[1] != nil && runs[2] != nil
	})
	last := runs[1]
	wantEqual(t, "exit code", last.ExitCode, 3)
	wantEqual(t, "reason", last.Reason, "Error")
	if pause := runs[2].StartedAt.Sub(last.FinishedAt); pause < 9*time.Second { // times are of whole seconds
		t.Errorf("the second restart came after %v, want 10 s", pause)
	}
}

func TestLogOfThePreviousContainer(t *testing.T) {
	t.Parallel()
	p := start(t, `
volumes: [{name: state, emptyDir: {}}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "[ -e /state/again ] && echo second && exec sleep 10000; touch /state/again; echo first; exit 3"]
  volumeMounts: [{name: state, mountPath: /state}]`)
	p.wait(t, "the restart", func(s *Status) bool {
		return s.Container("main").RestartCount == 1 && s.Container("main").State.Running != nil
	})
	p.logsHave(t, "main", "second\n")
	log, err := p.Logs(timeout(t), "main", url.Values{"previous": {"true"}})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "log of the previous container", log, "first\n")
}

func TestRestartPolicy(t *testing.T) {
	for _, test := range []struct {
		policy, script, phase string
		restarts              int
	}{
		{"Never", "exit 0", "Succeeded", 0},
		{"Never", "exit 5", "Failed", 0},
		{"OnFailure", "exit 0", "Succeeded", 0},
		{"OnFailure", "[ -e /state/again ] && exit 0; touch /state/again; exit 5", "Succeeded", 1},
	} {
		t.Run(test.policy+"-"+test.phase+fmt.Sprint(test.restarts), func(t *testing.T) {
			t.Parallel()
			p := start(t, fmt.Sprintf(`
restartPolicy: %s
volumes: [{name: state, emptyDir: {}}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, %q]
  volumeMounts: [{name: state, mountPath: /state}]`, test.policy, test.script))
			status := p.finished(t)
			wantEqual(t, "phase", status.Phase, test.phase)
			wantEqual(t, "restarts", status.Container("main").RestartCount, test.restarts)
			ended := status.Container("main").State.Terminated
			if ended == nil {
				t.Fatal("the container has not ended")
			}
			want := map[string]string{"Succeeded": "Completed", "Failed": "Error"}[test.phase]
			wantEqual(t, "reason", ended.Reason, want)
			if ended.FinishedAt.Before(ended.StartedAt) || ended.StartedAt.IsZero() {
				t.Errorf("started at %v, finished at %v", ended.StartedAt, ended.FinishedAt)
			}
		})
	}
}

func TestRestartRuleOfContainer(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: Never
volumes: [{name: state, emptyDir: {}}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "[ -e /state/again ] && exit 9; touch /state/again; exit 42"]
  volumeMounts: [{name: state, mountPath: /state}]
  restartPolicy: Never
  restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]`)
	status := p.finished(t)
	wantEqual(t, "restarts", status.Container("main").RestartCount, 1)
	wantEqual(t, "exit code", status.Container("main").State.Terminated.ExitCode, 9)
}

func TestRestartAllContainersRule(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: Never
volumes: [{name: state, emptyDir: {}}]
initContainers:
- name: init
  image: BUSYBOX
  command: [sh, -c, "echo init >> /state/runs"]
  volumeMounts: [{name: state, mountPath: /state}]
containers:
- name: watcher
  image: BUSYBOX
  command: [sh, -c, "[ $(wc -l < /state/runs) = 2 ] && exec sleep 10000; until [ -s /state/others ]; do sleep 0.1; done; exit 88"]
  volumeMounts: [{name: state, mountPath: /state}]
  restartPolicy: Never
  restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]
- name: other
  image: BUSYBOX
  command: [sh, -c, "echo other >> /state/others; trap exit TERM; while :; do sleep 0.1; done"]
  volumeMounts: [{name: state, mountPath: /state}]`)
	p.wait(t, "a restart of all", func(s *Status) bool {
		return s.Container("other").RestartCount > 0 && s.Container("watcher").State.Running != nil && s.Ready()
	})
	wantEqual(t, "runs of the init container", p.shell(t, "other", "cat /state/runs"), "init\ninit")
	eventually(t, "two runs of the other container", func() error { // it may not have come to say so
		if out := p.shell(t, "other", "cat /state/others"); out != "other\nother" {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
}

func TestInitContainersRunInOrder(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: OnFailure
volumes: [{name: state, emptyDir: {}}]
initContainers:
- name: first
  image: BUSYBOX
  command: [sh, -c, "echo first >> /state/order; [ -e /state/again ] && exit 0; touch /state/again; exit 1"]
  volumeMounts: [{name: state, mountPath: /state}]
- name: second
  image: BUSYBOX
  command: [sh, -c, "sleep 1; echo second >> /state/order"]
  volumeMounts: [{name: state, mountPath: /state}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "cat /state/order"]
  volumeMounts: [{name: state, mountPath: /state}]`)
	status := p.finished(t)
	wantEqual(t, "phase", status.Phase, "Succeeded")
	wantEqual(t, "order", p.logs(t, "main"), "first\nfirst\nsecond\n")
	wantEqual(t, "restarts of the first", status.Container("first").RestartCount, 1)
}

func TestSidecarEndsAfterThePod(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: Never
volumes: [{name: state, emptyDir: {}}]
initContainers:
- name: sidecar
  image: BUSYBOX
  restartPolicy: Always
  command: [sh, -c, "trap 'echo terminated; exit 0' TERM; sleep 1; touch /state/up; while :; do sleep 0.1; done"]
  volumeMounts: [{name: state, mountPath: /state}]
  startupProbe: {exec: {command: [test, -e, /state/up]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 100}
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "[ -e /state/up ] && echo the sidecar was first"]
  volumeMounts: [{name: state, mountPath: /state}]`)
	status := p.finished(t)
	wantEqual(t, "phase", status.Phase, "Succeeded")
	wantEqual(t, "log of main", p.logs(t, "main"), "the sidecar was first\n")
	wantEqual(t, "log of the sidecar", p.logs(t, "sidecar"), "terminated\n")
	main, sidecar := status.Container("main").State.Terminated, status.Container("sidecar").State.Terminated
	if main == nil || sidecar == nil {
		t.Fatalf("main is %+v, the sidecar %+v", main, sidecar)
	}
	if sidecar.FinishedAt.Before(main.FinishedAt) {
		t.Errorf("the sidecar ended at %v, before main at %v", sidecar.FinishedAt, main.FinishedAt)
	}
}

func TestSidecarIsRestarted(t *testing.T) {
	t.Parallel()
	p := start(t, `
initContainers:
- name: sidecar
  image: BUSYBOX
  restartPolicy: Always
  command: [sh, -c, "sleep 2; exit 1"]
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	status := p.wait(t, "a restart of the sidecar", func(s *Status) bool {
		return s.Container("sidecar").RestartCount > 0 && s.Container("main").State.Running != nil
	})
	wantEqual(t, "restarts of main", status.Container("main").RestartCount, 0)
}

func TestImageThatDoesNotExist(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- {name: main, image: "registry.test/gantry/nothing:1", command: [sleep, inf]}`)
	p.wait(t, "ErrImagePull or its back-off", func(s *Status) bool {
		w := s.Container("main").State.Waiting
		return w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff")
	})
}

func TestCommandThatDoesNotExist(t *testing.T) {
	t.Parallel()
	p := start(t, `
restartPolicy: Never
containers:
- {name: main, image: BUSYBOX, command: [/no/such/command]}`)
	status := p.finished(t)
	ended := status.Container("main").State.Terminated
	wantEqual(t, "phase", status.Phase, "Failed")
	wantEqual(t, "exit code", ended.ExitCode, 128)
	wantEqual(t, "reason", ended.Reason, "StartError")
	wantContains(t, "message", ended.Message, "/no/such/command")
}

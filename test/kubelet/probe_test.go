//go:build e2e

package kubelet

import (
	"fmt"
	"testing"
)

// probeKinds are the four ways to probe, each with a server that can be told to be well or not.
var probeKinds = []struct {
	name, command, probe, well, ill string
}{
	{
		name: "exec", command: `[sh, -c, "touch /well; trap exit TERM; while :; do sleep 0.1; done"]`,
		probe: `exec: {command: [test, -e, /well]}`, well: "touch /well", ill: "rm /well",
	},
	{
		name: "http", command: `[sh, -c, "mkdir /www; touch /www/well; exec httpd -f -p 8080 -h /www"]`,
		probe: `httpGet: {path: /well, port: 8080}`, well: "touch /www/well", ill: "rm /www/well",
	},
	{
		name: "tcp", command: `[sh, -c, "httpd -p 8080; trap exit TERM; while :; do sleep 0.1; done"]`,
		probe: `tcpSocket: {port: 8080}`, well: "httpd -p 8080", ill: "killall httpd",
	},
	{
		name: "grpc", command: `[/agnhost, grpc-health-checking]`, probe: `grpc: {port: 5000}`,
		well: "wget -q -O - http://127.0.0.1:8080/make-serving", ill: "wget -q -O - http://127.0.0.1:8080/make-not-serving",
	},
}

func TestReadinessProbe(t *testing.T) {
	for _, kind := range probeKinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, fmt.Sprintf(`
containers:
- name: main
  image: AGNHOST
  command: %s
  readinessProbe: {%s, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 20}`, kind.command, kind.probe))
			p.running(t)
			p.shell(t, "main", kind.ill)
			p.wait(t, "not ready", func(s *Status) bool { return !s.Ready() })
			p.shell(t, "main", kind.well)
			status := p.running(t)
			wantEqual(t, "restarts", status.Container("main").RestartCount, 0)
		})
	}
}

func TestLivenessProbeRestarts(t *testing.T) {
	for _, kind := range probeKinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, fmt.Sprintf(`
terminationGracePeriodSeconds: 2
containers:
- name: main
  image: AGNHOST
  command: %[1]s
  startupProbe: {%[2]s, periodSeconds: 1, failureThreshold: 100, timeoutSeconds: 20}
  livenessProbe: {%[2]s, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 20}`, kind.command, kind.probe))
			before := p.running(t).Container("main")
			p.shell(t, "main", kind.ill)
			after := p.wait(t, "a restart", func(s *Status) bool {
				return s.Container("main").RestartCount == 1 && s.Ready()
			}).Container("main")
			if after.LastState.Terminated == nil || after.LastState.Terminated.ContainerID != before.ContainerID {
				t.Errorf("last state is %+v, want the end of %s", after.LastState, before.ContainerID)
			}
			if after.ContainerID == before.ContainerID {
				t.Error("the container is the same after the restart")
			}
		})
	}
}

func TestProbeThatHangsIsAFailure(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  readinessProbe: {exec: {command: [sh, -c, "[ -e /well ] || exec sleep 77777"]}, periodSeconds: 1, timeoutSeconds: 1}`)
	p.wait(t, "the container", func(s *Status) bool { return s.Container("main").State.Running != nil })
	eventually(t, "a second probe", func() error { // the first has been given up, and must be gone
		out := p.shell(t, "main", "ps | grep -c '[s]leep 77777' || true")
		if out != "1" && out != "0" {
			t.Fatalf("%s probes run at once", out)
		}
		if out == "0" {
			return fmt.Errorf("none runs")
		}
		return nil
	})
	p.shell(t, "main", "touch /well")
	p.running(t)
	eventually(t, "the end of the last probe", func() error {
		if out := p.shell(t, "main", "ps | grep '[s]leep 77777' || true"); out != "" {
			return fmt.Errorf("there is %q", out)
		}
		return nil
	})
}

func TestStartupProbeThatNeverSucceedsRestarts(t *testing.T) {
	t.Parallel()
	p := start(t, `
terminationGracePeriodSeconds: 2
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  startupProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 2}
  readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}`)
	status := p.wait(t, "a restart", func(s *Status) bool { return s.Container("main").RestartCount > 0 })
	if c := status.Container("main"); c.Ready || c.Started != nil && *c.Started {
		t.Errorf("the container counts as started: %+v", c)
	}
}

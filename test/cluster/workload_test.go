//go:build e2e

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestNodes(t *testing.T) {
	out := space("default").kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDR} `+
		`{.status.nodeInfo.containerRuntimeVersion} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
	ranges := make(map[string]bool)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		ranges[f[1]] = true
		wantContains(t, f[0]+"'s runtime", f[2], "gantry://")
		wantEqual(t, f[0]+" is ready", f[3], "True")
	}
	if len(ranges) < 2 {
		t.Errorf("nodes are %q: want several with ranges of their own", out)
	}
}

// deployment is a Deployment of shells, spread over the nodes.
func deployment(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway,
         labelSelector: {matchLabels: {app: %[1]s}}}
      containers:
      - name: main
        image: BUSYBOX
        command: [sleep, inf]
        env: [{name: VERSION, value: one}]
        resources: {requests: {cpu: 5m, memory: 5Mi}}
`, name, replicas)
}

func TestDeploymentIsScaled(t *testing.T) {
	s := newSpace(t)
	few, many := inShort(6, 30), inShort(12, 60)
	s.apply(t, deployment("web", few))
	s.rollout(t, "deployment/web")
	before := s.pods(t, "app=web")
	wantSpread(t, before, few)
	s.kubectl(t, "scale", "deployment/web", fmt.Sprint("--replicas=", many))
	s.rollout(t, "deployment/web")
	after := s.pods(t, "app=web")
	wantSpread(t, after, many)
	for _, p := range before {
		if !slices.Contains(after, p) {
			t.Errorf("%+v is not there or not the same after scaling up", p)
		}
	}
	s.kubectl(t, "scale", "deployment/web", fmt.Sprint("--replicas=", few))
	eventually(t, "the others to be gone", func() error {
		if n := len(s.pods(t, "app=web")); n != few {
			return fmt.Errorf("%d pods, want %d", n, few)
		}
		return nil
	})
}

// wantSpread wants so many pods that run, on all nodes, with addresses of their node's range that nobody else has.
func wantSpread(t *testing.T, pods []pod, count int) {
	t.Helper()
	wantEqual(t, "pods", len(pods), count)
	ranges := make(map[string]netip.Prefix)
	for _, name := range nodes(t) {
		cidr := space("default").kubectl(t, "get", "node", name, "-o", "jsonpath={.spec.podCIDR}")
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			t.Fatal(err)
		}
		ranges[name] = prefix
		if byNode(pods)[name] == 0 {
			t.Errorf("%s has none of %v", name, byNode(pods))
		}
	}
	seen := make(map[string]bool)
	for _, p := range pods {
		ip, err := netip.ParseAddr(p.ip)
		if err != nil || !ranges[p.node].Contains(ip) || seen[p.ip] || p.phase != "Running" || p.restarts != "0" {
			t.Errorf("%+v: want it running with an address of its own in %s", p, ranges[p.node])
		}
		seen[p.ip] = true
	}
}

func TestRollingUpdate(t *testing.T) {
	needsTime(t)
	s := newSpace(t)
	s.apply(t, deployment("web", 12))
	s.rollout(t, "deployment/web")
	before := s.pods(t, "app=web")
	versions := func() string {
		var found []string
		for _, p := range s.pods(t, "app=web") {
			if !p.deleted {
				found = append(found, s.kubectl(t, "exec", p.name, "--", "sh", "-c", "echo $VERSION"))
			}
		}
		slices.Sort(found)
		return fmt.Sprint(len(found), slices.Compact(found))
	}
	wantEqual(t, "versions", versions(), "12 [one]")
	s.kubectl(t, "set", "env", "deployment/web", "VERSION=two")
	s.rollout(t, "deployment/web")
	wantEqual(t, "versions", versions(), "12 [two]")
	s.kubectl(t, "rollout", "undo", "deployment/web")
	s.rollout(t, "deployment/web")
	wantEqual(t, "versions", versions(), "12 [one]")
	for _, p := range s.pods(t, "app=web") {
		for _, old := range before {
			if p.uid == old.uid {
				t.Errorf("%s was not replaced", p.name)
			}
		}
	}
}

func TestDaemonSet(t *testing.T) {
	s := newSpace(t)
	s.apply(t, daemonSet("agent"))
	s.rollout(t, "daemonset/agent")
	for _, name := range nodes(t) {
		wantEqual(t, "pods on "+name, byNode(s.pods(t, "app=agent"))[name], 1)
	}
}

// daemonSet is a DaemonSet of shells.
func daemonSet(name string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: BUSYBOX, command: [sleep, inf]}
`, name)
}

func TestJob(t *testing.T) {
	s := newSpace(t)
	completions := inShort(6, 20)
	s.apply(t, fmt.Sprintf(`
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  completions: %d
  parallelism: 5
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: main, image: BUSYBOX, command: [sh, -c, "echo index $JOB_COMPLETION_INDEX; exit 0"]}
`, completions))
	s.kubectl(t, "wait", "--for=condition=Complete", "job/work", "--timeout=5m")
	wantEqual(t, "succeeded", s.kubectl(t, "get", "job/work", "-o", "jsonpath={.status.succeeded}"), fmt.Sprint(completions))
	wantEqual(t, "failed", s.kubectl(t, "get", "job/work", "-o", "jsonpath={.status.failed}"), "")
	lines := strings.Split(s.kubectl(t, "logs", "-l", "job-name=work", "--tail=-1", "--max-log-requests=30"), "\n")
	slices.Sort(lines)
	wantEqual(t, "different lines of all logs", len(slices.Compact(lines)), completions)
}

func TestStatefulSet(t *testing.T) {
	needsTime(t)
	s := newSpace(t)
	s.apply(t, `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: BUSYBOX
        command: [sleep, inf]
        readinessProbe: {exec: {command: [hostname]}, periodSeconds: 1, timeoutSeconds: 30}
`)
	s.rollout(t, "statefulset/db")
	uids := make(map[string]string)
	for i, p := range s.pods(t, "app=db") {
		wantEqual(t, "name", p.name, fmt.Sprint("db-", i))
		wantEqual(t, "host name", s.kubectl(t, "exec", p.name, "--", "hostname"), p.name)
		uids[p.name] = p.uid
	}
	s.kubectl(t, "delete", "pod", "db-1")
	s.rollout(t, "statefulset/db")
	for _, p := range s.pods(t, "app=db") {
		wantEqual(t, p.name+" is another one", p.uid != uids[p.name], p.name == "db-1")
	}
	s.kubectl(t, "scale", "statefulset/db", "--replicas=1")
	eventually(t, "the last ones to be gone", func() error {
		if pods := s.pods(t, "app=db"); len(pods) != 1 || pods[0].name != "db-0" {
			return fmt.Errorf("pods are %v", pods)
		}
		return nil
	})
}

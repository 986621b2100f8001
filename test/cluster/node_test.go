//go:build e2e

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const ready = `jsonpath={.status.conditions[?(@.type=="Ready")].status}`

func waitNode(t *testing.T, name, status string) {
	t.Helper()
	eventually(t, fmt.Sprintf("readiness %s of %s", status, name), func() error {
		if got := space("default").kubectl(t, "get", "node", name, "-o", ready); got != status {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

func TestDrain(t *testing.T) {
	needsTime(t)
	s := newSpace(t)
	s.apply(t, deployment("web", 9)+"---"+daemonSet("agent")+`---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 6, selector: {matchLabels: {app: web}}}
`)
	s.rollout(t, "deployment/web")
	s.rollout(t, "daemonset/agent")
	const drained = "node2"
	if byNode(s.pods(t, "app=web"))[drained] == 0 {
		t.Fatal("nothing to drain")
	}
	t.Cleanup(func() { space("default").try(context.Background(), "", "uncordon", drained) })
	s.kubectl(t, "drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=5m")
	s.rollout(t, "deployment/web")
	after := byNode(s.pods(t, "app=web"))
	wantEqual(t, "pods on the drained node", after[drained], 0)
	wantEqual(t, "pods on all", len(s.pods(t, "app=web")), 9)
	wantEqual(t, "pods of the DaemonSet there", byNode(s.pods(t, "app=agent"))[drained], 1)
	s.kubectl(t, "uncordon", drained)
	s.kubectl(t, "rollout", "restart", "deployment/web")
	s.rollout(t, "deployment/web")
	if byNode(s.pods(t, "app=web"))[drained] == 0 {
		t.Errorf("no pod came back to the node: %v", byNode(s.pods(t, "app=web")))
	}
}

// processesOf finds the programs of a node by their name.
func processesOf(t *testing.T, node string, names ...string) []int {
	t.Helper()
	b := belongings{name: filepath.Base(it.Dir) + "/" + node}
	var pids []int
	for _, pid := range processes() {
		name, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		if b.inCgroup(pid) && slices.Contains(names, strings.TrimSpace(string(name))) {
			number, _ := strconv.Atoi(pid)
			pids = append(pids, number)
		}
	}
	return pids
}

// All programs of a node are killed at once and come back, and no pod notices.
func TestProgramsOfANodeAreKilled(t *testing.T) {
	s := newSpace(t)
	s.apply(t, daemonSet("agent"))
	s.rollout(t, "daemonset/agent")
	before := s.pods(t, "app=agent")
	for _, name := range nodes(t) {
		programs := processesOf(t, name, "gantryd", "gantry-keeper", "kubelet", "kube-proxy")
		if len(programs) < 4 {
			t.Fatalf("%s has %d programs", name, len(programs))
		}
		for _, pid := range programs {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	for _, p := range before {
		eventually(t, "an answer of "+p.name, func() error {
			_, err := s.try(timeout(t), "", "exec", p.name, "--", "true")
			return err
		})
	}
	s.apply(t, daemonSet("next"))
	s.rollout(t, "daemonset/next")
	wantEqual(t, "pods", fmt.Sprint(s.pods(t, "app=agent")), fmt.Sprint(before))
}

func TestNodeDiesAndComesBack(t *testing.T) {
	needsTime(t)
	s := newSpace(t)
	s.apply(t, deployment("web", 6)+"---"+daemonSet("agent"))
	s.rollout(t, "deployment/web")
	s.rollout(t, "daemonset/agent")
	const killed = "node3"
	old := s.pods(t, "app=web")
	if byNode(old)[killed] == 0 {
		t.Fatal("no pod is on the node")
	}
	if err := it.control(timeout(t), killed, "kill"); err != nil {
		t.Fatal(err)
	}
	back := false
	t.Cleanup(func() {
		if !back {
			it.control(context.Background(), killed, "start")
		}
	})
	programs := processesOf(t, killed, "gantryd", "gantry-keeper", "kubelet", "kube-proxy", "sleep")
	wantEqual(t, "processes of the node", len(programs), 0)
	waitNode(t, killed, "Unknown")
	eventually(t, "pods in place of those that died", func() error {
		if n := s.kubectl(t, "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"); n != "6" {
			return fmt.Errorf("%s are ready", n)
		}
		return nil
	})
	if err := it.control(timeout(t), killed, "start"); err != nil {
		t.Fatal(err)
	}
	back = true
	waitNode(t, killed, "True")
	eventually(t, "the old pods to be gone", func() error {
		if pods := s.pods(t, "app=web"); len(pods) != 6 {
			return fmt.Errorf("pods are %v", pods)
		}
		return nil
	})
	s.rollout(t, "daemonset/agent")
	s.sleeperOn(t, "late", killed)
	s.kubectl(t, "exec", "late", "--", "true")
	eventually(t, "as many processes there as pods", func() error {
		count := s.kubectl(t, "get", "pods", "-A", "-o", "name", "--field-selector=status.phase=Running,spec.nodeName="+killed,
			"-l", "app!=metrics-server")
		if pods, n := len(strings.Fields(count)), len(processesOf(t, killed, "sleep")); pods != n {
			return fmt.Errorf("%d pods and %d processes", pods, n)
		}
		return nil
	})
}

// A node boots again before anybody missed it: the pods are the same, and their containers start once more.
func TestNodeReboots(t *testing.T) {
	needsTime(t)
	s := newSpace(t)
	s.apply(t, daemonSet("agent"))
	s.rollout(t, "daemonset/agent")
	const rebooted = "node1"
	bootID := func() string {
		return space("default").kubectl(t, "get", "node", rebooted, "-o", "jsonpath={.status.nodeInfo.bootID}")
	}
	boot, before := bootID(), s.pods(t, "app=agent")
	if err := it.control(timeout(t), rebooted, "reboot"); err != nil {
		t.Fatal(err)
	}
	for _, p := range before {
		eventually(t, p.name+" to run again", func() error {
			i := slices.IndexFunc(s.pods(t, "app=agent"), func(now pod) bool { return now.uid == p.uid })
			if i < 0 {
				t.Fatalf("pod %s is no more", p.name)
			}
			now, want := s.pods(t, "app=agent")[i], "0"
			if p.node == rebooted {
				want = "1"
			}
			if now.restarts != want || now.phase != "Running" {
				return fmt.Errorf("it is %+v, want %s restarts", now, want)
			}
			_, err := s.try(timeout(t), "", "exec", p.name, "--", "true")
			return err
		})
	}
	waitNode(t, rebooted, "True")
	if bootID() == boot {
		t.Errorf("the boot id is %s as before", boot)
	}
}

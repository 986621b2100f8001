//go:build e2e

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// patience is how long anything may take on a machine that is slow and busy.
const patience = 5 * time.Minute

// insideVariable says that this process is on the cluster's network.
const insideVariable = "GANTRY_CLUSTER_INSIDE"

// it is the cluster under test.
var it *cluster

// TestMain runs the tests on the network of the cluster that is there, or of one that it starts and ends.
func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	top, err := filepath.Abs("../..")
	if err != nil {
		return 0, err
	}
	if os.Getenv(insideVariable) != "" {
		it, err = open(top)
		if err != nil {
			return 0, err
		}
		code := m.Run()
		return code, waitSpacesGone()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, err := open(top)
	own := errors.Is(err, errNone) || err == nil && !c.alive()
	if own {
		began := time.Now()
		if c, err = start(ctx, top, options{Nodes: 3}); err != nil {
			return 0, err
		}
		fmt.Printf("the cluster is ready after %.1f s\n", time.Since(began).Seconds())
	} else if err != nil {
		return 0, err
	}
	cmd := c.command(ctx, os.Args...)
	cmd.Env = append(cmd.Env, insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Println("tests:", err)
		code = 1
		c.keepLogs()
	}
	if !own {
		return code, nil
	}
	if err := c.down(); err != nil {
		fmt.Println("--- FAIL: leaves nothing behind")
		return 1, err
	}
	fmt.Println("--- PASS: leaves nothing behind")
	return code, nil
}

// needsTime leaves a test out of the short form.
func needsTime(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: takes a minute or more")
	}
}

// inShort is the first in the short form, else the second.
func inShort(short, long int) int {
	if testing.Short() {
		return short
	}
	return long
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// space is a namespace of the cluster that a test has for itself.
type space string

// newSpace makes the namespace. It is deleted at the test's end, with all that is in it; waitSpacesGone waits for that.
func newSpace(t *testing.T) space {
	t.Helper()
	name := strings.ToLower(strings.TrimPrefix(strings.ReplaceAll(t.Name(), "/", "-"), "Test"))
	s := space(name)
	s.apply(t, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {of: tests}}}", name))
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := s.try(context.Background(), "", "get", "all,events", "-o", "wide")
			t.Log(out)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := s.try(ctx, "", "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the namespace's service account", func() error {
		_, err := s.try(timeout(t), "", "get", "serviceaccount", "default")
		return err
	})
	return s
}

// waitSpacesGone waits until what tests deleted is gone: all pods have ended and their nodes have removed them.
func waitSpacesGone() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := space("default").try(ctx, "", "wait", "--for=delete", "namespace", "-l", "of=tests", "--timeout=5m")
	return err
}

// try runs kubectl and returns its standard output; the error holds its standard error.
func (s space) try(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"-n", string(s)}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// kubectl runs kubectl, which must succeed, and returns its trimmed output.
func (s space) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.try(timeout(t), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

var imageNames = strings.NewReplacer("BUSYBOX", images.Busybox, "AGNHOST", images.Agnhost)

// apply makes what the YAML describes.
func (s space) apply(t *testing.T, yaml string) {
	t.Helper()
	if _, err := s.try(timeout(t), imageNames.Replace(yaml), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// rollout waits until a rollout is complete.
func (s space) rollout(t *testing.T, what string) {
	t.Helper()
	s.kubectl(t, "rollout", "status", what, fmt.Sprintf("--timeout=%.0fs", patience.Seconds()))
}

// sleeper makes a pod with a shell and waits until it is ready.
func (s space) sleeper(t *testing.T, name string) {
	t.Helper()
	s.sleeperOn(t, name, "")
}

// sleeperOn is sleeper on a node, unless that is empty.
func (s space) sleeperOn(t *testing.T, name, node string) {
	t.Helper()
	s.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %q
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: BUSYBOX, command: [sleep, inf]}`, name, node))
	s.kubectl(t, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=5m")
}

// pod is what the tests look at of a pod.
type pod struct {
	name, node, ip, uid, phase string
	restarts                   string
	deleted                    bool
}

// pods lists the pods of a label.
func (s space) pods(t *testing.T, label string) []pod {
	t.Helper()
	out := s.kubectl(t, "get", "pods", "-l", label, "-o", `jsonpath={range .items[*]}{.metadata.name},{.spec.nodeName},`+
		`{.status.podIP},{.metadata.uid},{.status.phase},{.status.containerStatuses[0].restartCount},`+
		`{.metadata.deletionTimestamp}{"\n"}{end}`)
	var pods []pod
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), ",")
		pods = append(pods, pod{f[0], f[1], f[2], f[3], f[4], f[5], f[6] != ""})
	}
	return pods
}

// byNode counts pods by their node.
func byNode(pods []pod) map[string]int {
	count := make(map[string]int)
	for _, p := range pods {
		count[p.node]++
	}
	return count
}

// nodes lists the names of the nodes.
func nodes(t *testing.T) []string {
	t.Helper()
	return strings.Fields(space("default").kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
}

// eventually tries again until there is no error.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("wait for %s: %v", what, err)
		}
	}
}

func wantEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantContains(t *testing.T, what, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%s: %q is not in %q", what, want, got)
	}
}

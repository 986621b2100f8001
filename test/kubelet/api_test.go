//go:build e2e

package kubelet

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// cluster is a control plane and a node of its own with a kubelet that is registered there.
type cluster struct {
	*ControlPlane
	node    *node.Node
	kubelet *Kubelet
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	dir := filepath.Join(node.Dir(), "control-plane")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &cluster{ControlPlane: &ControlPlane{Dir: dir, Tools: toolsDir}}
	t.Cleanup(c.Stop)
	if err := c.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	// Of the controllers, the one that gives a node the taints of its conditions.
	err := c.Run("kube-controller-manager", "--kubeconfig="+c.Kubeconfig(), "--bind-address=127.0.0.1",
		"--leader-elect=false", "--controllers=node-lifecycle-controller", "--node-monitor-grace-period=10m")
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode("api", func(o *node.Options) { o.Config = "[runtime_handlers.other]\n" })
	if err != nil {
		t.Fatal(err)
	}
	startDaemon(t, n)
	return c.join(t, n, "api", Options{Port: 12250})
}

// startDaemon starts the daemon of a node, which at the end has no pods any more.
func startDaemon(t *testing.T, n *node.Node) {
	t.Helper()
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.RemoveAll(timeout(t)); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// join starts a kubelet on a daemon, with files in a directory of the run of that name and pods' cgroups below one of that
// name, and waits until the node is ready.
func (c *cluster) join(t *testing.T, n *node.Node, name string, opts Options) *cluster {
	t.Helper()
	dir := filepath.Join(node.Dir(), name+"-kubelet")
	setDefault(&opts.Root, filepath.Join(dir, "root"))
	setDefault(&opts.PodLogs, filepath.Join(dir, "logs"))
	config := map[string]string{"address": "0.0.0.0"} // where the API server asks
	maps.Copy(config, opts.Config)
	opts.Config = config
	opts.CgroupRoot, opts.Gates, opts.Kubeconfig = "/"+name, shared.Gates, c.Kubeconfig()
	k, err := newKubelet(name+"-kubelet", n, opts)
	if err != nil {
		t.Fatal(err)
	}
	makeCgroup(t, name)
	t.Cleanup(func() {
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := k.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	joined := &cluster{ControlPlane: c.ControlPlane, node: n, kubelet: k}
	joined.waitCondition(t, "Ready", "True")
	return joined
}

func (c *cluster) waitCondition(t *testing.T, kind, status string) {
	t.Helper()
	eventually(t, kind+" of the node to be "+status, func() error {
		if s := c.nodeStatus(t).condition(kind); s.Status != status {
			return fmt.Errorf("it is %+v", s)
		}
		return nil
	})
}

// kubectl runs kubectl, which must succeed.
func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(timeout(t), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply makes what the YAML describes.
func (c *cluster) apply(t *testing.T, yaml string) {
	t.Helper()
	if _, err := c.Kubectl(timeout(t), imageNames.Replace(yaml), "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// pod makes a pod of a name and waits until it runs and is ready.
func (c *cluster) pod(t *testing.T, name, spec string) *Status {
	t.Helper()
	c.create(t, name, spec)
	return c.wait(t, name, "running and ready", func(s *Status) bool { return s.Phase == "Running" && s.Ready() })
}

func (c *cluster) create(t *testing.T, name, spec string) {
	t.Helper()
	spec = strings.ReplaceAll("\n"+strings.TrimSpace(spec), "\n", "\n  ")
	c.apply(t, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: default}\nspec:\n  nodeName: %s%s\n",
		name, c.kubelet.Name, spec))
}

func (c *cluster) wait(t *testing.T, name, what string, wanted func(*Status) bool) *Status {
	t.Helper()
	var item podItem
	var last []byte
	for deadline := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		b, err := c.Get(timeout(t), c.kubelet.client, "/api/v1/namespaces/default/pods/"+name)
		if err == nil {
			item, last = podItem{}, b
			if err := json.Unmarshal(b, &item); err != nil {
				t.Fatal(err)
			}
			if wanted(&item.Status) {
				return &item.Status
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod %s: wait for %s: %v; last %s", name, what, err, last)
		}
	}
}

func (c *cluster) shell(t *testing.T, pod, script string) string {
	t.Helper()
	return strings.TrimSpace(c.kubectl(t, "exec", pod, "-c", "main", "--", "sh", "-c", script))
}

type nodeStatus struct {
	Conditions []Condition
	NodeInfo   struct{ ContainerRuntimeVersion string }
	Features   struct{ SupplementalGroupsPolicy bool }

	RuntimeHandlers []struct {
		Name     string
		Features struct{ RecursiveReadOnlyMounts, UserNamespaces bool }
	}
}

func (s nodeStatus) condition(kind string) Condition {
	return (&Status{Conditions: s.Conditions}).Condition(kind)
}

func (c *cluster) nodeStatus(t *testing.T) nodeStatus {
	t.Helper()
	var n struct{ Status nodeStatus }
	b, err := c.Get(timeout(t), c.kubelet.client, "/api/v1/nodes/"+c.kubelet.Name)
	if err != nil {
		return n.Status // not registered yet
	}
	if err := json.Unmarshal(b, &n); err != nil {
		t.Fatal(err)
	}
	return n.Status
}

// TestWithAPIServer is what a kubelet does only for pods of an API server.
func TestWithAPIServer(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: without an API server, which takes minutes to build")
	}
	t.Parallel()
	c := startCluster(t)
	t.Run("node", func(t *testing.T) { testNode(t, c) })
	t.Run("pods", func(t *testing.T) { // ends when all of them have
		for name, test := range map[string]func(*testing.T, *cluster){
			"resize": testResize, "resize-with-restart": testResizeWithRestart, "config": testConfigVolumes,
			"read-only": testRecursiveReadOnly, "debug": testEphemeralContainer, "kubectl": testKubectl,
			"storage-limit": testStorageLimit, "disk-pressure": testDiskPressure, "handler": testRuntimeClass, "delete": testDelete,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, c)
			})
		}
	})
	t.Run("daemon-restart", func(t *testing.T) { testNodeStaysReady(t, c) })
}

func testNode(t *testing.T, c *cluster) {
	status := c.nodeStatus(t)
	wantContains(t, "runtime", status.NodeInfo.ContainerRuntimeVersion, "gantry://")
	wantEqual(t, "supplementalGroupsPolicy", status.Features.SupplementalGroupsPolicy, true)
	names := ""
	for _, h := range status.RuntimeHandlers {
		names += fmt.Sprintf("%q ", h.Name)
		if !h.Features.RecursiveReadOnlyMounts || !h.Features.UserNamespaces {
			t.Errorf("handler %q has %+v", h.Name, h.Features)
		}
	}
	wantEqual(t, "handlers", names, `"" "other" `)
	for _, kind := range []string{"MemoryPressure", "DiskPressure", "PIDPressure"} {
		wantEqual(t, kind, status.condition(kind).Status, "False")
	}
}

const limits = `cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares`

func testResize(t *testing.T, c *cluster) {
	before := c.pod(t, "resize", `
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}`).Container("main")
	wantEqual(t, "limits", c.shell(t, "resize", limits), fmt.Sprintf("%d\n20000\n102", 64<<20))
	for _, step := range []struct {
		cpu, request, memory string
		want                 string
	}{
		{"400m", "300m", "96Mi", fmt.Sprintf("%d\n40000\n307", 96<<20)},
		{"100m", "50m", "48Mi", fmt.Sprintf("%d\n10000\n51", 48<<20)},
	} {
		c.kubectl(t, "patch", "pod", "resize", "--subresource=resize", "-p", fmt.Sprintf(`{"spec": {"containers": [
			{"name": "main", "resources": {"requests": {"cpu": %q}, "limits": {"cpu": %q, "memory": %q}}}]}}`,
			step.request, step.cpu, step.memory))
		after := c.wait(t, "resize", "the new limits", func(s *Status) bool {
			r := s.Container("main").Resources
			return r.Limits["cpu"] == step.cpu && r.Limits["memory"] == step.memory && r.Requests["cpu"] == step.request &&
				s.Condition("PodResizeInProgress").Type == "" && s.Condition("PodResizePending").Type == ""
		}).Container("main")
		wantEqual(t, "restarts", after.RestartCount, 0)
		wantEqual(t, "container", after.ContainerID, before.ContainerID)
		wantEqual(t, "limits", c.shell(t, "resize", limits), step.want)
	}
}

func testResizeWithRestart(t *testing.T, c *cluster) {
	c.pod(t, "restarted", `
terminationGracePeriodSeconds: 1
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
  resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi}}`)
	c.kubectl(t, "patch", "pod", "restarted", "--subresource=resize", "-p",
		`{"spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "80Mi"}}}]}}`)
	c.wait(t, "restarted", "a restart with the new limit", func(s *Status) bool {
		m := s.Container("main")
		return m.RestartCount == 1 && m.Resources.Limits["memory"] == "80Mi" && s.Ready()
	})
	wantEqual(t, "limit", c.shell(t, "restarted", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes"), fmt.Sprint(80<<20))
}

func testConfigVolumes(t *testing.T, c *cluster) {
	c.apply(t, `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {key: value, other: thing}}
- {apiVersion: v1, kind: Secret, metadata: {name: secret}, stringData: {password: hidden}}
- {apiVersion: v1, kind: ServiceAccount, metadata: {name: someone}}`)
	status := c.pod(t, "config", `
serviceAccountName: someone
volumes:
- {name: settings, configMap: {name: settings}}
- {name: secret, secret: {secretName: secret, defaultMode: 0400}}
- name: all
  projected:
    sources:
    - configMap: {name: settings, items: [{key: other, path: dir/other}]}
    - secret: {name: secret}
    - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
    - serviceAccountToken: {path: token, expirationSeconds: 3600}
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  env:
  - {name: KEY, valueFrom: {configMapKeyRef: {name: settings, key: key}}}
  - {name: PASSWORD, valueFrom: {secretKeyRef: {name: secret, key: password}}}
  - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
  volumeMounts:
  - {name: settings, mountPath: /settings}
  - {name: settings, mountPath: /one, subPath: key}
  - {name: secret, mountPath: /secret, readOnly: true}
  - {name: all, mountPath: /all}`)
	out := c.shell(t, "config", `echo $KEY $PASSWORD $HOST; for f in /settings/key /one /secret/password /all/dir/other /all/name; do cat $f; echo; done; `+
		`cut -d. -f2 /all/token | base64 -d 2>/dev/null | grep -o system:serviceaccount:default:someone; stat -Lc %a /secret/password`)
	want := "value hidden " + NodeIP + "\nvalue\nvalue\nhidden\nthing\nconfig\nsystem:serviceaccount:default:someone\n400"
	wantEqual(t, "inside", out, want)
	wantEqual(t, "image", status.Container("main").Image, images.Busybox)
}

func testRecursiveReadOnly(t *testing.T, c *cluster) {
	dir := hostDir(t)
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", inner, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(inner, unix.MNT_DETACH) })
	status := c.pod(t, "read-only", fmt.Sprintf(`
volumes: [{name: host, hostPath: {path: %q}}]
containers:
- name: main
  image: BUSYBOX
  command: [sleep, inf]
  volumeMounts:
  - {name: host, mountPath: /enabled, readOnly: true, recursiveReadOnly: Enabled}
  - {name: host, mountPath: /possible, readOnly: true, recursiveReadOnly: IfPossible}
  - {name: host, mountPath: /plain, readOnly: true}`, dir))
	for path, want := range map[string]string{"/enabled": "no", "/possible": "no", "/plain": "yes"} {
		got := c.shell(t, "read-only", fmt.Sprintf("touch %s/inner/x 2>/dev/null && echo yes || echo no", path))
		wantEqual(t, "writable below "+path, got, want)
	}
	for _, m := range status.Container("main").VolumeMounts {
		want := map[string]string{"/enabled": "Enabled", "/possible": "Enabled", "/plain": "Disabled"}[m.MountPath]
		wantEqual(t, "status of "+m.MountPath, m.RecursiveReadOnly, want)
	}
}

func testEphemeralContainer(t *testing.T, c *cluster) {
	c.pod(t, "debugged", `
containers:
- {name: main, image: BUSYBOX, command: [sleep, "55555"]}`)
	c.kubectl(t, "debug", "debugged", "--image="+images.Busybox, "--target=main", "--container=debugger", "--profile=general",
		"--", "sleep", "66666")
	eventually(t, "the debugger to run", func() error {
		_, err := c.Kubectl(timeout(t), "", "exec", "debugged", "-c", "debugger", "--", "true")
		return err
	})
	out := c.kubectl(t, "exec", "debugged", "-c", "debugger", "--", "sh", "-c", "ps -o args; cat /proc/1/root/etc/hostname")
	wantContains(t, "processes", out, "sleep 55555")
	wantContains(t, "processes", out, "sleep 66666")
}

// testKubectl goes through the server, which goes through the kubelet.
func testKubectl(t *testing.T, c *cluster) {
	c.pod(t, "used", `
containers:
- {name: main, image: BUSYBOX, stdin: true, command: [sh, -c, "echo started; while read line; do echo got $line; done; exec sleep 10000"]}`)
	wantEqual(t, "log", c.kubectl(t, "logs", "used"), "started\n")
	if _, err := c.Kubectl(timeout(t), "one\ntwo\n", "attach", "-i", "used"); err != nil && !strings.Contains(err.Error(), "timed out") {
		t.Error(err)
	}
	eventually(t, "what was attached", func() error {
		if log := c.kubectl(t, "logs", "used"); log != "started\ngot one\ngot two\n" {
			return fmt.Errorf("log is %q", log)
		}
		return nil
	})
	file := filepath.Join(t.TempDir(), "file")
	data := strings.Repeat("some text\n", 300_000)
	if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "cp", file, "used:/tmp/copied")
	c.kubectl(t, "cp", "used:/tmp/copied", file+".back")
	if readFile(t, file+".back") != data {
		t.Error("the copy of the copy differs")
	}
	_, err := c.Kubectl(timeout(t), "", "exec", "used", "--", "sh", "-c", "exit 12")
	if err == nil || !strings.Contains(err.Error(), "exit code 12") {
		t.Errorf("the exit code of a command is %v", err)
	}
}

// testStorageLimit: the kubelet evicts a pod that writes more than it may, by what the runtime says of its layer.
func testStorageLimit(t *testing.T, c *cluster) {
	c.create(t, "greedy", `
terminationGracePeriodSeconds: 1
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "dd if=/dev/zero of=/big bs=1M count=30; exec sleep 10000"]
  resources: {limits: {ephemeral-storage: 10Mi}}`)
	status := c.wait(t, "greedy", "its eviction", func(s *Status) bool { return s.Phase == "Failed" })
	wantEqual(t, "reason", status.Reason, "Evicted")
	wantContains(t, "message", status.Message, "ephemeral local storage usage exceeds")
}

func testRuntimeClass(t *testing.T, c *cluster) {
	c.apply(t, `
apiVersion: v1
kind: List
items:
- {apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: other}, handler: other}
- {apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: missing}, handler: missing}`)
	c.pod(t, "handled", `
runtimeClassName: other
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	c.create(t, "unhandled", `
runtimeClassName: missing
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	eventually(t, "an event of the handler that does not exist", func() error {
		out := c.kubectl(t, "get", "events", "--field-selector=involvedObject.name=unhandled", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, "missing") {
			return fmt.Errorf("events are %q", out)
		}
		return nil
	})
}

func testDelete(t *testing.T, c *cluster) {
	dir := hostDir(t)
	c.pod(t, "deleted", fmt.Sprintf(`
terminationGracePeriodSeconds: 60
volumes: [{name: host, hostPath: {path: %q}}]
containers:
- name: main
  image: BUSYBOX
  command: [sh, -c, "trap 'sleep 1; echo bye > /host/bye; exit 0' TERM; while :; do sleep 0.1; done"]
  volumeMounts: [{name: host, mountPath: /host}]`, dir))
	c.kubectl(t, "delete", "pod", "deleted", "--wait", "--timeout=2m")
	wantEqual(t, "what it did at its end", readFile(t, filepath.Join(dir, "bye")), "bye\n")
}

// testNodeStaysReady kills the daemon, which the node's readiness must not notice.
func testNodeStaysReady(t *testing.T, c *cluster) {
	before := c.nodeStatus(t).condition("Ready")
	wantEqual(t, "ready", before.Status, "True")
	for range 3 {
		c.node.Kill()
		if err := c.node.Start(timeout(t)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second) // the kubelet asks every 5
	}
	after := c.nodeStatus(t).condition("Ready")
	wantEqual(t, "ready", after.Status, "True")
	wantEqual(t, "last change of readiness", after.LastTransitionTime, before.LastTransitionTime)
	wantEqual(t, "answer", c.shell(t, "resize", "echo alive"), "alive")
}

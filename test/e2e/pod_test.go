//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// callTimeout bounds one call; none of a healthy node takes as long, not even on a busy machine.
const callTimeout = 3 * time.Minute

// timeout is a context for one call.
func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	t.Cleanup(cancel)
	return ctx
}

// pod is a sandbox of a test; it is removed when the test ends.
type pod struct {
	node   *node.Node
	id     string
	config *runtime.PodSandboxConfig
}

// container is a container of a pod.
type container struct {
	*pod
	id      string
	config  *runtime.ContainerConfig
	logPath string
}

// podConfig is the configuration of a pod named after the test, as the kubelet would make it.
func podConfig(t *testing.T, n *node.Node, suffix string) *runtime.PodSandboxConfig {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", "#", "-").Replace(t.Name())) + suffix
	logs := filepath.Join(n.Dir, "logs", name)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	hostname := name
	if len(hostname) > 63 {
		hostname = hostname[:63]
	}
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: "uid-" + name},
		Hostname:     hostname,
		LogDirectory: logs,
		Labels:       map[string]string{"test": name},
		Annotations:  map[string]string{"e2e/verbatim": "Ünchanged \n"},
		DnsConfig:    &runtime.DNSConfig{},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: fmt.Sprintf("%s/%s", node.PodsCgroup, name),
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{
					Network: runtime.NamespaceMode_POD, Pid: runtime.NamespaceMode_CONTAINER,
					Ipc: runtime.NamespaceMode_POD,
				},
			},
		},
	}
}

// runPod runs a pod on the shared node.
func runPod(t *testing.T, changes ...func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	return runPodOn(t, shared, podConfig(t, shared, ""), changes...)
}

// runPodOn runs a pod and removes it when the test ends.
func runPodOn(t *testing.T, n *node.Node, config *runtime.PodSandboxConfig, changes ...func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	for _, change := range changes {
		change(config)
	}
	response, err := n.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run sandbox: %v", err)
	}
	p := &pod{node: n, id: response.PodSandboxId, config: config}
	t.Cleanup(func() { p.remove(t) })
	return p
}

func (p *pod) remove(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout) // the test's own is over
	defer cancel()
	if !p.node.Running() {
		if err := p.node.Start(ctx); err != nil {
			t.Errorf("start daemon to remove sandbox: %v", err)
			return
		}
	}
	if _, err := p.node.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop sandbox: %v", err)
	}
	if _, err := p.node.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("remove sandbox: %v", err)
	}
}

// status is the pod's status.
func (p *pod) status(t *testing.T) *runtime.PodSandboxStatus {
	t.Helper()
	response, err := p.node.Runtime.PodSandboxStatus(timeout(t), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("status of sandbox: %v", err)
	}
	return response.Status
}

// ip is the pod's primary address.
func (p *pod) ip(t *testing.T) string {
	t.Helper()
	ip := p.status(t).GetNetwork().GetIp()
	if ip == "" {
		t.Fatal("sandbox has no address")
	}
	return ip
}

// pull makes an image present and returns its id.
func pull(t *testing.T, n *node.Node, ref string) string {
	t.Helper()
	response, err := n.Images.PullImage(timeout(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return response.ImageRef
}

// containerConfig runs a shell script from the busybox image.
func containerConfig(name, scriptText string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: images.Busybox, UserSpecifiedImage: images.Busybox},
		Command:  []string{"sh", "-c", scriptText},
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{
					Network: runtime.NamespaceMode_POD, Pid: runtime.NamespaceMode_CONTAINER,
					Ipc: runtime.NamespaceMode_POD,
				},
			},
		},
	}
}

// tryCreate creates a container from the configuration and returns the error of the call.
func (p *pod) tryCreate(t *testing.T, config *runtime.ContainerConfig) (*container, error) {
	t.Helper()
	config.Image.Image = pull(t, p.node, config.Image.Image)
	response, err := p.node.Runtime.CreateContainer(timeout(t), &runtime.CreateContainerRequest{
		PodSandboxId: p.id, Config: config, SandboxConfig: p.config,
	})
	if err != nil {
		return nil, err
	}
	c := &container{pod: p, id: response.ContainerId, config: config}
	if config.LogPath != "" {
		c.logPath = filepath.Join(p.config.LogDirectory, config.LogPath)
	}
	return c, nil
}

// create creates a container that runs a shell script.
func (p *pod) create(t *testing.T, name, scriptText string, changes ...func(*runtime.ContainerConfig)) *container {
	t.Helper()
	config := containerConfig(name, scriptText)
	for _, change := range changes {
		change(config)
	}
	c, err := p.tryCreate(t, config)
	if err != nil {
		t.Fatalf("create container %s: %v", name, err)
	}
	return c
}

// start creates and starts a container that runs a shell script.
func (p *pod) start(t *testing.T, name, scriptText string, changes ...func(*runtime.ContainerConfig)) *container {
	t.Helper()
	c := p.create(t, name, scriptText, changes...)
	if err := c.start(t); err != nil {
		t.Fatalf("start container %s: %v", name, err)
	}
	return c
}

// output runs a shell script in a container of its own to the end and returns what it wrote to its log.
func (p *pod) output(t *testing.T, name, scriptText string, changes ...func(*runtime.ContainerConfig)) string {
	t.Helper()
	c := p.start(t, name, scriptText, changes...)
	c.waitExit(t)
	return c.logText(t)
}

func (c *container) start(t *testing.T) error {
	t.Helper()
	_, err := c.node.Runtime.StartContainer(timeout(t), &runtime.StartContainerRequest{ContainerId: c.id})
	return err
}

func (c *container) stop(t *testing.T, seconds int64) error {
	t.Helper()
	_, err := c.node.Runtime.StopContainer(timeout(t), &runtime.StopContainerRequest{ContainerId: c.id, Timeout: seconds})
	return err
}

// status is the container's status.
func (c *container) status(t *testing.T) *runtime.ContainerStatus {
	t.Helper()
	response, err := c.node.Runtime.ContainerStatus(timeout(t), &runtime.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("status of container: %v", err)
	}
	return response.Status
}

// waitExit waits until the container has exited.
func (c *container) waitExit(t *testing.T) *runtime.ContainerStatus {
	t.Helper()
	var last *runtime.ContainerStatus
	eventually(t, "container exits", func() bool {
		last = c.status(t)
		return last.State == runtime.ContainerState_CONTAINER_EXITED
	})
	return last
}

// exec runs a shell script in the container by ExecSync; it has to succeed.
func (c *container) exec(t *testing.T, scriptText string) string {
	t.Helper()
	response := c.execSync(t, 120, "sh", "-c", scriptText)
	if response.ExitCode != 0 {
		t.Fatalf("exec %q: code %d, stdout %q, stderr %q", scriptText, response.ExitCode, response.Stdout, response.Stderr)
	}
	return strings.TrimSpace(string(response.Stdout))
}

func (c *container) execSync(t *testing.T, seconds int64, command ...string) *runtime.ExecSyncResponse {
	t.Helper()
	response, err := c.node.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{
		ContainerId: c.id, Cmd: command, Timeout: seconds,
	})
	if err != nil {
		t.Fatalf("exec %q: %v", command, err)
	}
	return response
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// wantCode checks the code of an error and that its text holds all the words.
func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("error has code %v, expected %v: %v", status.Code(err), code, err)
	}
	for _, word := range words {
		if err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("error does not say %q: %v", word, err)
		}
	}
}

// wantEqual compares what was found with what was expected.
func wantEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, expected %v", what, got, want)
	}
}

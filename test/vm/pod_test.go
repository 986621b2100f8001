//go:build e2e

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// cgroupRoot is where the unified hierarchy is mounted.
const cgroupRoot = "/sys/fs/cgroup"

// pod is a sandbox below a slice as the kubelet makes one for each pod. It is removed when its test ends.
type pod struct {
	id     string
	slice  string // path below cgroupRoot
	config *runtime.PodSandboxConfig
}

// container is a running container of a pod.
type container struct {
	*pod
	id string
}

func podConfig(name, slice string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "vm", Uid: "uid-" + name},
		LogDirectory: filepath.Join(workDir, "logs", name),
		DnsConfig:    &runtime.DNSConfig{},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    slice,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: namespaces()},
		},
	}
}

// namespaces leave out the network, which CNI plugins take many seconds to make here.
func namespaces() *runtime.NamespaceOption {
	return &runtime.NamespaceOption{
		Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER, Ipc: runtime.NamespaceMode_POD,
	}
}

// networked gives a pod a network of its own.
func networked(c *runtime.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_POD
}

// podName is a name for the test's pod, without the characters that mean a level of a slice.
func podName(t *testing.T) string {
	return strings.ToLower(strings.NewReplacer("/", "", "_", "", "-", "").Replace(t.Name()))
}

func runPod(t *testing.T, changes ...func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	name := podName(t)
	slice := "kubepods-burstable-pod" + name + ".slice"
	path := "/kubepods.slice/kubepods-burstable.slice/" + slice
	command(t, "systemctl", "start", slice)
	t.Cleanup(func() { command(t, "systemctl", "stop", slice) })
	config := podConfig(name, path)
	for _, change := range changes {
		change(config)
	}
	response, err := installed.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run sandbox: %v", err)
	}
	p := &pod{id: response.PodSandboxId, slice: path, config: config}
	t.Cleanup(func() { p.remove(t) })
	return p
}

// remove removes the pod and checks that its slice is empty then.
func (p *pod) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout) // the test's own is over
	defer cancel()
	if _, err := installed.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop sandbox: %v", err)
	}
	if _, err := installed.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("remove sandbox: %v", err)
	}
	left, err := os.ReadDir(filepath.Join(cgroupRoot, p.slice))
	if err != nil {
		t.Error(err)
	}
	for _, entry := range left {
		if entry.IsDir() {
			t.Errorf("cgroup %s outlives the pod", entry.Name())
		}
	}
}

func containerConfig(name, script string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: images.Busybox, UserSpecifiedImage: images.Busybox},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources:       &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: namespaces()},
		},
	}
}

func pull(t *testing.T, ref string) string {
	t.Helper()
	response, err := installed.Images.PullImage(timeout(t), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return response.ImageRef
}

func (p *pod) tryCreate(t *testing.T, config *runtime.ContainerConfig) (*container, error) {
	t.Helper()
	config.Image.Image = pull(t, config.Image.UserSpecifiedImage)
	response, err := installed.Runtime.CreateContainer(timeout(t), &runtime.CreateContainerRequest{
		PodSandboxId: p.id, Config: config, SandboxConfig: p.config,
	})
	if err != nil {
		return nil, err
	}
	return &container{pod: p, id: response.ContainerId}, nil
}

// start creates and starts a container that runs a shell script.
func (p *pod) start(t *testing.T, script string, changes ...func(*runtime.ContainerConfig)) *container {
	t.Helper()
	config := containerConfig("c", script)
	for _, change := range changes {
		change(config)
	}
	c, err := p.tryCreate(t, config)
	if err != nil {
		t.Fatalf("create container: %v", err)
	}
	if _, err := installed.Runtime.StartContainer(timeout(t), &runtime.StartContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatalf("start container: %v", err)
	}
	return c
}

func (c *container) status(t *testing.T) *runtime.ContainerStatus {
	t.Helper()
	response, err := installed.Runtime.ContainerStatus(timeout(t), &runtime.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("status of container: %v", err)
	}
	return response.Status
}

func (c *container) waitExit(t *testing.T) *runtime.ContainerStatus {
	t.Helper()
	eventually(t, "the container exits", func() bool {
		return c.status(t).State == runtime.ContainerState_CONTAINER_EXITED
	})
	return c.status(t)
}

// exec runs a shell script in the container and returns what it printed to standard output.
func (c *container) exec(t *testing.T, script string) string {
	t.Helper()
	response, err := installed.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{
		ContainerId: c.id, Cmd: []string{"sh", "-c", script}, Timeout: int64(callTimeout.Seconds()),
	})
	if err != nil {
		t.Fatalf("exec %q: %v", script, err)
	}
	return strings.TrimSpace(string(response.Stdout))
}

// scope is the container's cgroup below cgroupRoot.
func (c *container) scope() string {
	return filepath.Join(c.slice, fmt.Sprintf("gantry-%s.scope", c.id))
}

// cgroupFile is the content of a file of the container's cgroup.
func (c *container) cgroupFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(cgroupRoot, c.scope(), name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// command runs a program of the machine and returns what it printed.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

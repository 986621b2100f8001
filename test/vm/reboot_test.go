//go:build e2e

package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// addressFile tells the run after the reboot the address that the pod had.
var addressFile = filepath.Join(workDir, "address")

// TestRebootLeaves leaves a pod with a network, a running container and one that ended with a code of its own.
func TestRebootLeaves(t *testing.T) {
	config := podConfig("rebooted", "")
	networked(config)
	config.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 8080}}
	response, err := installed.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{id: response.PodSandboxId, config: config}
	own := func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_POD
	}
	ended := p.start(t, "exit 7", named("ended"), own)
	wantEqual(t, "exit code", ended.waitExit(t).ExitCode, 7)
	p.start(t, ticking, named("c"), own)
	status, err := installed.Runtime.PodSandboxStatus(timeout(t), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(addressFile, []byte(status.Status.GetNetwork().GetIp()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRebootFinds(t *testing.T) {
	ready(t)
	pods, err := installed.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 {
		t.Fatalf("%d pods after the reboot, expected the one", len(pods.Items))
	}
	wantEqual(t, "state of the pod", pods.Items[0].State, runtime.PodSandboxState_SANDBOX_NOTREADY)
	containers, err := installed.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]int32{"ended": 7, "c": 255}
	for _, item := range containers.Containers {
		c := &container{id: item.Id}
		wantEqual(t, "state of "+item.Metadata.Name, item.State, runtime.ContainerState_CONTAINER_EXITED)
		wantEqual(t, "exit code of "+item.Metadata.Name, c.status(t).ExitCode, codes[item.Metadata.Name])
		delete(codes, item.Metadata.Name)
	}
	wantEqual(t, "containers that are missing", len(codes), 0)
	if err := installed.RemoveAll(timeout(t)); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, pods.Items[0].Id)
}

// wantNothingLeft looks for what a pod with a network had.
func wantNothingLeft(t *testing.T, id string) {
	t.Helper()
	address, err := os.ReadFile(addressFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join("/var/lib/cni/networks/gantry", string(address))); err == nil {
		t.Errorf("address %s is still reserved", address)
	}
	for what, text := range map[string]string{
		"mounts": command(t, "cat", "/proc/self/mountinfo"), "firewall rules": command(t, "iptables-save"),
		"names of namespaces": command(t, "sh", "-c", "ls /run/netns 2>/dev/null || true"),
		"units":               command(t, "systemctl", "list-units", "--all", "--plain", "--no-legend"),
	} {
		for line := range strings.Lines(text) {
			if strings.Contains(line, id[:12]) || strings.Contains(line, string(address)) {
				t.Errorf("%s: %s", what, line)
			}
		}
	}
	for _, pattern := range []string{
		"/var/lib/gantry/sandboxes/*", "/var/lib/gantry/images/containers/*", "/var/lib/gantry/cni/results/*", "/run/gantry/pins/[^.]*",
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("files: %v", left)
		}
	}
	crictl(t, "inspecti", images.Busybox) // images stay
}

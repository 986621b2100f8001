//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestInvalidContainerIsRefusedByField(t *testing.T) {
	p := runPod(t)
	profile := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(profile, []byte("{not json"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*runtime.ContainerConfig)
		words  []string // field and value
	}{
		{"missing mount source", func(c *runtime.ContainerConfig) {
			c.Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/no/such/source"}}
		}, []string{"host_path", "/no/such/source"}},
		{"missing device", func(c *runtime.ContainerConfig) {
			c.Devices = []*runtime.Device{{ContainerPath: "/dev/x", HostPath: "/dev/no-such-device", Permissions: "rw"}}
		}, []string{"host_path", "/dev/no-such-device"}},
		{"group without user", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsGroup = &runtime.Int64Value{Value: 5}
		}), []string{"run_as_group"}},
		{"unknown capability", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Capabilities = &runtime.Capability{AddCapabilities: []string{"FLY"}}
		}), []string{"capabilities", "FLY"}},
		{"broken seccomp profile", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: profile}
		}), []string{"seccomp", profile}},
		{"missing seccomp profile", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile"}
		}), []string{"seccomp", "/no/such/profile"}},
		{"memory limit below the minimum", limits(&runtime.LinuxContainerResources{MemoryLimitInBytes: 1000}),
			[]string{"memory_limit_in_bytes", "1000"}},
		{"container path not absolute", func(c *runtime.ContainerConfig) {
			c.Mounts = []*runtime.Mount{{ContainerPath: "relative", HostPath: "/etc"}}
		}, []string{"container_path", "relative"}},
		{"privileged in a pod that is not", security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }),
			[]string{"privileged"}},
		{"recursive read-only without read-only", func(c *runtime.ContainerConfig) {
			c.Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/etc", RecursiveReadOnly: true}}
		}, []string{"recursive_read_only"}},
		{"no metadata", func(c *runtime.ContainerConfig) { c.Metadata = nil }, []string{"metadata"}},
		{"no name", func(c *runtime.ContainerConfig) { c.Metadata.Name = "" }, []string{"name"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := containerConfig(strings.ReplaceAll(test.name, " ", "-"), "sleep 1000")
			test.change(config)
			c, err := p.tryCreate(t, config)
			if err == nil {
				err = c.start(t) // what only the process could tell would come here, and is too late
				t.Fatalf("created; start: %v", err)
			}
			wantCode(t, err, codes.InvalidArgument, test.words...)
		})
	}
	list, err := p.node.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{PodSandboxId: p.id},
	})
	if err != nil || len(list.Containers) != 0 {
		t.Errorf("refused containers are listed: %v, %v", list.GetContainers(), err)
	}
}

func TestInvalidSandboxIsRefusedByField(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*runtime.PodSandboxConfig)
		words  []string
	}{
		{"no metadata", func(c *runtime.PodSandboxConfig) { c.Metadata = nil }, []string{"metadata"}},
		{"no name", func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "" }, []string{"name"}},
		{"host port too big", func(c *runtime.PodSandboxConfig) {
			c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 70000}}
		}, []string{"host_port", "70000"}},
		{"long hostname", func(c *runtime.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) }, []string{"hostname"}},
		{"sysctl of the host", func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
		}, []string{"sysctls", "kernel.panic"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := podConfig(t, shared, "")
			test.change(config)
			response, err := shared.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{Config: config})
			if err == nil {
				shared.Runtime.RemovePodSandbox(timeout(t), &runtime.RemovePodSandboxRequest{PodSandboxId: response.PodSandboxId})
			}
			wantCode(t, err, codes.InvalidArgument, test.words...)
		})
	}
	_, err := shared.Runtime.RunPodSandbox(timeout(t), &runtime.RunPodSandboxRequest{
		Config: podConfig(t, shared, ""), RuntimeHandler: "no-such-handler",
	})
	if err == nil || status.Code(err) == codes.OK || !strings.Contains(err.Error(), "no-such-handler") {
		t.Errorf("unknown runtime handler: %v", err)
	}
}

func TestContainerInAStoppedSandbox(t *testing.T) {
	p := runPod(t)
	created := p.create(t, "created", "true")
	if _, err := p.node.Runtime.StopPodSandbox(timeout(t), &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	_, err := p.tryCreate(t, containerConfig("late", "true"))
	wantCode(t, err, codes.FailedPrecondition)
	wantCode(t, created.start(t), codes.FailedPrecondition)
}

func TestContainerOfAMissingImage(t *testing.T) {
	p := runPod(t)
	config := containerConfig("c", "true")
	config.Image.Image = "sha256:" + strings.Repeat("0", 64)
	_, err := p.node.Runtime.CreateContainer(timeout(t), &runtime.CreateContainerRequest{
		PodSandboxId: p.id, Config: config, SandboxConfig: p.config,
	})
	wantNotFound(t, err)
}

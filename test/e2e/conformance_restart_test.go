//go:build e2e

package e2e

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// everything is all that the lists and the status of everything tell, by what it is of.
func everything(t *testing.T) map[string]proto.Message {
	t.Helper()
	r, ctx := shared.Runtime, timeout(t)
	told := map[string]proto.Message{}
	keep := func(what string, m proto.Message, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		told[what] = m
	}
	sandboxes, err := r.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	keep("sandboxes", sandboxes, err)
	containers, err := r.ListContainers(ctx, &runtime.ListContainersRequest{})
	keep("containers", containers, err)
	images, err := shared.Images.ListImages(ctx, &runtime.ListImagesRequest{})
	keep("images", images, err)
	config, err := r.RuntimeConfig(ctx, &runtime.RuntimeConfigRequest{})
	keep("runtime config", config, err)
	status, err := r.Status(ctx, &runtime.StatusRequest{Verbose: true})
	keep("status", status, err)
	version, err := r.Version(ctx, &runtime.VersionRequest{})
	keep("version", version, err)
	descriptors, err := r.ListMetricDescriptors(ctx, &runtime.ListMetricDescriptorsRequest{})
	keep("metric descriptors", descriptors, err)
	for _, s := range sandboxes.GetItems() {
		status, err := r.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: s.Id, Verbose: true})
		keep("sandbox "+s.Metadata.Name, status, err)
	}
	for _, c := range containers.GetContainers() {
		status, err := r.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.Id, Verbose: true})
		keep("container "+c.Metadata.Name, status, err)
	}
	for _, i := range images.GetImages() {
		status, err := shared.Images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: i.Id}})
		keep("image "+i.Id, status, err)
	}
	return told
}

// difference is where two messages first differ.
func difference(a, b proto.Message) string {
	before, after := prototext.Format(a), prototext.Format(b)
	for at := range min(len(before), len(after)) {
		if before[at] != after[at] {
			const around = 200
			from := max(at-around, 0)
			return fmt.Sprintf("before\n%s\nafter\n%s", before[from:min(at+around, len(before))], after[from:min(at+around, len(after))])
		}
	}
	return fmt.Sprintf("before %d bytes, after %d", len(before), len(after))
}

// What is told of everything is the same to the last field after the daemon was killed, or killed with its keeper.
func TestARestartChangesNothingThatIsTold(t *testing.T) {
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Labels["ü"], c.Annotations = "", oddStrings()
		c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 23077, HostIp: "127.0.0.1"}}
	})
	host := runPodOn(t, shared, podConfig(t, shared, "-host"), func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{
			Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_POD, Ipc: runtime.NamespaceMode_NODE,
		}
	})
	stopped := runPodOn(t, shared, podConfig(t, shared, "-stopped"))
	stopped.start(t, "killed-with-pod", "sleep 1000")
	stopped.stop(t)
	p.create(t, "created", "true", limits(startLimits()), usersImage)
	running := p.start(t, "running", "sleep 1000", limits(startLimits()), func(c *runtime.ContainerConfig) {
		c.StopSignal, c.Annotations = runtime.Signal_SIGNAL_SIGRTMINPLUS5, oddStrings()
		c.Mounts = []*runtime.Mount{{ContainerPath: "/m", HostPath: "/etc", Readonly: true}}
	})
	if err := running.update(t, &runtime.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: -1}); err != nil {
		t.Fatal(err)
	}
	host.start(t, "on-the-host", "sleep 1000", usersImage, pidMode(runtime.NamespaceMode_POD))
	p.start(t, "exited", "exit 9").waitExit(t)
	p.start(t, "oom", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done",
		limits(&runtime.LinuxContainerResources{MemoryLimitInBytes: 16 << 20})).waitExit(t)
	failed := p.create(t, "failed", "", func(c *runtime.ContainerConfig) { c.Command = []string{"/no/such"} })
	if failed.start(t) == nil {
		t.Fatal("a program that does not exist was started")
	}
	signalled := p.start(t, "signalled", stubborn)
	if err := signalled.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	before := everything(t)
	compare := func(when string) {
		t.Helper()
		after := everything(t)
		wantEqual(t, "number of things told of "+when, len(after), len(before))
		for what, message := range before {
			if !proto.Equal(message, after[what]) {
				t.Errorf("%s %s: %s", what, when, difference(message, after[what]))
			}
		}
	}
	shared.Kill()
	restart(t)
	compare("after the daemon was killed")
	if err := shared.Stop(); err != nil {
		t.Fatal(err)
	}
	restart(t)
	compare("after the daemon was stopped")
	old := keeperPID(t, shared)
	shared.Kill()
	killKeeper(t, shared)
	restart(t)
	awaitKeeper(t, shared, old)
	compare("after daemon and keeper were killed")
	wantEqual(t, "exec in the running container", running.exec(t, "echo here"), "here")
}

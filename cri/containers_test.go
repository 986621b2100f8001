package cri

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

func createRequest() *runtime.CreateContainerRequest {
	return &runtime.CreateContainerRequest{
		PodSandboxId: "s1",
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "main"},
			Image:    &runtime.ImageSpec{Image: "app:1"},
		},
	}
}

func TestCreateContainerResolvesTheImage(t *testing.T) {
	n := newNode(t)
	n.images.images["app:1"] = &runtime.Image{Id: "sha256:i", RepoDigests: []string{"app@sha256:d"}}
	resp, err := n.CreateContainer(testContext(t), createRequest())
	if err != nil {
		t.Fatal(err)
	}
	if resp.ContainerId != "container-of-main" {
		t.Errorf("got id %q", resp.ContainerId)
	}
	if got, want := n.runtime.called(), "create main in s1 of sha256:i app@sha256:d"; got != want {
		t.Errorf("got calls %q, want %q", got, want)
	}
}

// The image is the one that was pulled for the handler that is named, or else the sandbox's, or else for the default.
func TestCreateContainerFindsTheImageOfItsHandler(t *testing.T) {
	for _, test := range []struct{ sandbox, named, pulled, want, told string }{
		{"", "", "", "", ""},
		{"special", "", "special", "special", "special"},
		{"special", "", "", "", ""},
		{"special", "special", "special", "special", "special"},
		{"special", "special", "", "none", ""},
		{"", "", "special", "none", ""},
		{"", "special", "special", "special", "special"},
	} {
		n := newNode(t)
		n.runtime.sandboxes = []*sandbox.SandboxStatus{{ID: "s1", Handler: test.sandbox}}
		n.images.images[test.pulled+"app:1"] = &runtime.Image{Id: "of-" + test.pulled, RepoDigests: []string{"d"}}
		req := createRequest()
		req.Config.Image.RuntimeHandler = test.named
		_, err := n.CreateContainer(testContext(t), req)
		if test.want == "none" {
			wantCode(t, err, codes.NotFound)
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		if got := n.runtime.called(); got != "create main in s1 of of-"+test.want+" d" {
			t.Errorf("%+v: %s", test, got)
		}
		if got := n.runtime.created.GetImage().GetRuntimeHandler(); got != test.told {
			t.Errorf("%+v: the configuration names %q", test, got)
		}
	}
	n := newNode(t)
	for field, change := range map[string]func(*runtime.ContainerConfig){
		"config.image.runtime_handler": func(c *runtime.ContainerConfig) { c.Image.RuntimeHandler = "kata" },
		"config.mounts[1].image.runtime_handler": func(c *runtime.ContainerConfig) {
			c.Mounts = []*runtime.Mount{{}, {Image: &runtime.ImageSpec{RuntimeHandler: "kata"}}}
		},
	} {
		req := createRequest()
		change(req.Config)
		_, err := n.CreateContainer(testContext(t), req)
		wantCode(t, err, codes.InvalidArgument)
		if err == nil || !strings.Contains(err.Error(), field+` is "kata"`) {
			t.Errorf("got %v, expected it to name %s", err, field)
		}
	}
}

func TestCreateContainerNamesAMissingImage(t *testing.T) {
	n := newNode(t)
	_, err := n.CreateContainer(testContext(t), createRequest())
	wantCode(t, err, codes.NotFound)
	if err == nil || !strings.Contains(err.Error(), `"app:1"`) {
		t.Errorf("got %v, want it to name the image", err)
	}
	if got := n.runtime.called(); got != "" {
		t.Errorf("got calls %q", got)
	}
}

func TestCreateContainerRejects(t *testing.T) {
	n := newNode(t)
	for field, change := range map[string]func(*runtime.CreateContainerRequest){
		"config":               func(r *runtime.CreateContainerRequest) { r.Config = nil },
		"pod_sandbox_id":       func(r *runtime.CreateContainerRequest) { r.PodSandboxId = "" },
		"config.metadata.name": func(r *runtime.CreateContainerRequest) { r.Config.Metadata = nil },
		"config.image.image":   func(r *runtime.CreateContainerRequest) { r.Config.Image = nil },
	} {
		req := createRequest()
		change(req)
		_, err := n.CreateContainer(testContext(t), req)
		wantCode(t, err, codes.InvalidArgument)
		if err == nil || !strings.Contains(err.Error(), field+" is ") {
			t.Errorf("got %v, want it to name %s", err, field)
		}
	}
}

func TestContainerCallsArePassedOn(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	_, err := n.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: "c1"})
	wantCode(t, err, codes.OK)
	for _, timeout := range []int64{30, 0, -7, math.MaxInt64} {
		_, err = n.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "c1", Timeout: timeout})
		wantCode(t, err, codes.OK)
	}
	_, err = n.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: "c1"})
	wantCode(t, err, codes.OK)
	_, err = n.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: "c1"})
	wantCode(t, err, codes.OK)
	_, err = n.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{
		ContainerId: "c1", Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 5},
	})
	wantCode(t, err, codes.OK)
	_, err = n.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{ContainerId: "c2"})
	wantCode(t, err, codes.OK)
	want := "start c1; stop c1 30s; stop c1 0s; stop c1 0s; stop c1 " +
		(math.MaxInt64 / time.Second * time.Second).String() +
		"; remove c1; reopen c1; update c1 to 5; update c2 to 0"
	if got := n.runtime.called(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestContainerCallsNeedAnID(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	_, err := n.StartContainer(ctx, &runtime.StartContainerRequest{})
	wantCode(t, err, codes.InvalidArgument)
	_, err = n.StopContainer(ctx, &runtime.StopContainerRequest{})
	wantCode(t, err, codes.InvalidArgument)
	_, err = n.RemoveContainer(ctx, &runtime.RemoveContainerRequest{})
	wantCode(t, err, codes.InvalidArgument)
	_, err = n.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{})
	wantCode(t, err, codes.InvalidArgument)
	_, err = n.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{})
	wantCode(t, err, codes.InvalidArgument)
	_, err = n.ContainerStatus(ctx, &runtime.ContainerStatusRequest{})
	wantCode(t, err, codes.InvalidArgument)
	if got := n.runtime.called(); got != "" {
		t.Errorf("got calls %q", got)
	}
}

func TestErrorsOfTheRuntimeKeepTheirCode(t *testing.T) {
	n := newNode(t)
	n.runtime.err = errdefs.ErrFailedPrecondition
	n.images.images["app:1"] = &runtime.Image{Id: "i", RepoDigests: []string{"d"}}
	ctx := testContext(t)
	_, err := n.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: sandboxConfig("web")})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = n.CreateContainer(ctx, createRequest())
	wantCode(t, err, codes.FailedPrecondition)
	_, err = n.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: "c1"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = n.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "c1"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = n.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: "c1"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = n.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{ContainerId: "c1"})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = n.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"true"}})
	wantCode(t, err, codes.FailedPrecondition)
}

func exitedContainer() *sandbox.ContainerStatus {
	return &sandbox.ContainerStatus{
		ID: "c1", SandboxID: "s1", State: sandbox.ContainerExited,
		Config: &runtime.ContainerConfig{
			Metadata:    &runtime.ContainerMetadata{Name: "main", Attempt: 3},
			Image:       &runtime.ImageSpec{Image: "sha256:i", UserSpecifiedImage: "app:1"},
			Labels:      map[string]string{"l": "1"},
			Annotations: map[string]string{"a": "2"},
			Mounts: []*runtime.Mount{
				{ContainerPath: "/log//x/../y", HostPath: "rel", RecursiveReadOnly: true, Readonly: true},
				{ContainerPath: "/img", Image: &runtime.ImageSpec{Image: "sha256:v"}, ImageSubPath: "sub"},
			},
			LogPath: "main/3.log",
		},
		ImageID: "sha256:i", ImageRef: "app@sha256:d",
		Created: time.Unix(1, 0), Started: time.Unix(2, 0), Finished: time.Unix(3, 0),
		ExitCode: 137, Reason: "OOMKilled", Message: "out of memory", LogPath: "/var/log/pods/main/3.log",
		Resources: &runtime.LinuxContainerResources{CpuShares: 512},
		User: &runtime.ContainerUser{
			Linux: &runtime.LinuxContainerUser{Uid: 1000, Gid: 1, SupplementalGroups: []int64{1, 5}},
		},
		StopSignal: runtime.Signal_SIGNAL_SIGINT, CgroupPath: "/pods/c1",
	}
}

func TestContainerStatusHasEveryField(t *testing.T) {
	n := newNode(t)
	c := exitedContainer()
	n.runtime.containers = []*sandbox.ContainerStatus{c}
	resp, err := n.ContainerStatus(testContext(t), &runtime.ContainerStatusRequest{ContainerId: "c1", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, resp.Status, &runtime.ContainerStatus{
		Id: "c1", Metadata: c.Config.Metadata, State: runtime.ContainerState_CONTAINER_EXITED,
		CreatedAt: 1e9, StartedAt: 2e9, FinishedAt: 3e9, ExitCode: 137, Reason: "OOMKilled", Message: "out of memory",
		Image:   &runtime.ImageSpec{Image: "docker.io/library/app:1", UserSpecifiedImage: "app:1"},
		ImageId: "sha256:i", ImageRef: "app@sha256:d",
		Labels: c.Config.Labels, Annotations: c.Config.Annotations, Mounts: c.Config.Mounts,
		LogPath: "/var/log/pods/main/3.log", Resources: &runtime.ContainerResources{Linux: c.Resources},
		User: c.User, StopSignal: runtime.Signal_SIGNAL_SIGINT,
	})
	var info struct {
		SandboxID, CgroupPath string
		Config                struct{ Metadata struct{ Attempt int } }
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	if info.SandboxID != "s1" || info.CgroupPath != "/pods/c1" || info.Config.Metadata.Attempt != 3 {
		t.Errorf("got info %s", resp.Info["info"])
	}
	_, err = n.ContainerStatus(testContext(t), &runtime.ContainerStatusRequest{ContainerId: "zz"})
	wantCode(t, err, codes.NotFound)
}

func TestContainerStatusNamesTheImageAsItsUser(t *testing.T) {
	n := newNode(t)
	c := exitedContainer()
	n.runtime.containers = []*sandbox.ContainerStatus{c}
	for user, want := range map[string]string{
		"": "sha256:i", "no reference": "sha256:i", "app": "docker.io/library/app:latest", "reg.test/x/app:2": "reg.test/x/app:2",
		"reg.test/app@" + someDigest: "reg.test/app@" + someDigest,
	} {
		c.Config.Image = &runtime.ImageSpec{Image: "sha256:i", UserSpecifiedImage: user}
		resp, err := n.ContainerStatus(testContext(t), &runtime.ContainerStatusRequest{ContainerId: "c1"})
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Status.Image.Image; got != want {
			t.Errorf("image that the user wrote as %q is %q, want %q", user, got, want)
		}
	}
}

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestListedContainerHasEveryField(t *testing.T) {
	n := newNode(t)
	c := exitedContainer()
	n.runtime.containers = []*sandbox.ContainerStatus{c}
	resp, err := n.ListContainers(testContext(t), &runtime.ListContainersRequest{})
	if err != nil || len(resp.Containers) != 1 {
		t.Fatalf("got %v, %v", resp, err)
	}
	wantMessage(t, resp.Containers[0], &runtime.Container{
		Id: "c1", PodSandboxId: "s1", Metadata: c.Config.Metadata, Image: c.Config.Image,
		ImageId: "sha256:i", ImageRef: "app@sha256:d", State: runtime.ContainerState_CONTAINER_EXITED,
		CreatedAt: 1e9, Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	})
}

// TestVerboseStatusOfBytesThatAreNoText: an environment variable may be any bytes, a string field is not checked.
func TestVerboseStatusOfBytesThatAreNoText(t *testing.T) {
	c := exitedContainer()
	c.Config.Envs = []*runtime.KeyValue{{Key: "K", Value: []byte{0xff, 0}}}
	text := containerInfo(c)["info"]
	if !json.Valid([]byte(text)) || !strings.Contains(text, "/wA=") {
		t.Errorf("got %s", text)
	}
	c.Config.LogPath = "\xff"
	if text := containerInfo(c)["info"]; !json.Valid([]byte(text)) || !strings.Contains(text, "UTF-8") {
		t.Errorf("got %s", text)
	}
}

func TestContainerStates(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		status sandbox.ContainerStatus
		want   runtime.ContainerState
	}{
		{sandbox.ContainerStatus{State: sandbox.ContainerCreating}, runtime.ContainerState_CONTAINER_CREATED},
		{sandbox.ContainerStatus{State: sandbox.ContainerCreated}, runtime.ContainerState_CONTAINER_CREATED},
		{sandbox.ContainerStatus{State: sandbox.ContainerRunning}, runtime.ContainerState_CONTAINER_RUNNING},
		{sandbox.ContainerStatus{State: sandbox.ContainerExited}, runtime.ContainerState_CONTAINER_EXITED},
		{sandbox.ContainerStatus{State: sandbox.ContainerUnknown}, runtime.ContainerState_CONTAINER_UNKNOWN},
		{sandbox.ContainerStatus{State: sandbox.ContainerRemoving}, runtime.ContainerState_CONTAINER_EXITED},
		{sandbox.ContainerStatus{State: sandbox.ContainerRemoving, Started: now}, runtime.ContainerState_CONTAINER_RUNNING},
		{
			sandbox.ContainerStatus{State: sandbox.ContainerRemoving, Started: now, Finished: now},
			runtime.ContainerState_CONTAINER_EXITED,
		},
		{sandbox.ContainerStatus{State: "new one"}, runtime.ContainerState_CONTAINER_UNKNOWN},
	} {
		if got := containerState(&test.status); got != test.want {
			t.Errorf("%s: got %v, want %v", test.status.State, got, test.want)
		}
	}
}

func TestResourcesOfTheRequestUntilTheyChange(t *testing.T) {
	c := &sandbox.ContainerStatus{Config: &runtime.ContainerConfig{}}
	if got := containerResources(c); got != nil {
		t.Errorf("got %v, want none", got)
	}
	c.Config.Linux = &runtime.LinuxContainerConfig{Resources: &runtime.LinuxContainerResources{CpuShares: 2}}
	if got := containerResources(c).GetLinux().GetCpuShares(); got != 2 {
		t.Errorf("got %d, want 2", got)
	}
	c.Resources = &runtime.LinuxContainerResources{CpuShares: 3}
	if got := containerResources(c).GetLinux().GetCpuShares(); got != 3 {
		t.Errorf("got %d, want 3", got)
	}
}

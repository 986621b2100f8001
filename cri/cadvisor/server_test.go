package cadvisor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

var (
	podID       = strings.Repeat("a", 64)
	containerID = strings.Repeat("b", 64)
	secondID    = strings.Repeat("c", 64)
)

// memory is a runtime that resolves prefixes of ids, as the real one does.
type memory struct {
	sandboxes  map[string]*sandbox.SandboxStatus
	containers map[string]*sandbox.ContainerStatus
}

func lookUp[T any](all map[string]*T, id string) (*T, error) {
	for full, value := range all {
		if strings.HasPrefix(full, id) {
			return value, nil
		}
	}
	return nil, fmt.Errorf("%q: %w", id, errdefs.ErrNotFound)
}

func (m *memory) Sandbox(id string) (*sandbox.SandboxStatus, error) { return lookUp(m.sandboxes, id) }
func (m *memory) Container(id string) (*sandbox.ContainerStatus, error) {
	return lookUp(m.containers, id)
}

// newMemory has a pod with one running container.
func newMemory() *memory {
	pod := map[string]string{"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "u"}
	container := map[string]string{"io.kubernetes.container.name": "c"}
	for key, value := range pod {
		container[key] = value
	}
	return &memory{
		sandboxes: map[string]*sandbox.SandboxStatus{podID: {
			ID: podID, State: sandbox.SandboxReady, Created: time.Unix(100, 5), Containers: []string{containerID, secondID},
			Config: &runtime.PodSandboxConfig{Labels: pod},
		}},
		containers: map[string]*sandbox.ContainerStatus{containerID: {
			ID: containerID, SandboxID: podID, State: sandbox.ContainerRunning, PID: 4711, Created: time.Unix(200, 7),
			ImageRef: "registry.test/app@sha256:" + podID,
			Config: &runtime.ContainerConfig{
				Labels: container, Image: &runtime.ImageSpec{Image: "sha256:" + podID, UserSpecifiedImage: "busybox"},
				Envs: []*runtime.KeyValue{{Key: "A", Value: []byte("b=c")}},
			},
		}},
	}
}

// client is the generated client of the three services, with which cAdvisor speaks.
type client struct {
	version    version.VersionClient
	containers containers.ContainersClient
	tasks      tasks.TasksClient
}

func dial(t *testing.T, m *memory) client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			resp, err := h(ctx, req)
			return resp, errgrpc.ToGRPC(err)
		}))
	New(m, "1.2.3").Register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return client{version.NewVersionClient(conn), containers.NewContainersClient(conn), tasks.NewTasksClient(conn)}
}

func inNamespace(t *testing.T, name string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), namespaceHeader, name)
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: got %v, expected %s", what, err, want)
	}
}

func TestVersionAnswersWithoutANamespace(t *testing.T) {
	got, err := dial(t, newMemory()).version.Version(t.Context(), &emptypb.Empty{})
	if err != nil || got.GetVersion() != "gantry 1.2.3" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestContainerHasWhatCadvisorReads(t *testing.T) {
	r, err := dial(t, newMemory()).containers.Get(inNamespace(t, namespace), &containers.GetContainerRequest{ID: containerID})
	if err != nil {
		t.Fatal(err)
	}
	c := r.GetContainer()
	if c.GetID() != containerID || c.GetImage() != "docker.io/library/busybox:latest" ||
		!c.GetCreatedAt().AsTime().Equal(time.Unix(200, 7)) {
		t.Errorf("got %v", c)
	}
	for key, want := range map[string]string{"io.kubernetes.container.name": "c", "io.kubernetes.pod.uid": "u", kindLabel: "container"} {
		if c.GetLabels()[key] != want {
			t.Errorf("label %s is %q, expected %q", key, c.GetLabels()[key], want)
		}
	}
	var spec specs.Spec
	if err := json.Unmarshal(c.GetSpec().GetValue(), &spec); err != nil {
		t.Fatal(err)
	}
	if spec.Process == nil || len(spec.Process.Env) != 1 || spec.Process.Env[0] != "A=b=c" {
		t.Errorf("process of the spec is %+v", spec.Process)
	}
}

func TestImageIsTheReferenceWhereNoNameWasGiven(t *testing.T) {
	m := newMemory()
	m.containers[containerID].Config.Image.UserSpecifiedImage = ""
	if got := describeContainer(m.containers[containerID]).GetImage(); got != m.containers[containerID].ImageRef {
		t.Errorf("got %q", got)
	}
}

func TestSandboxIsOneWithTheProcessOfAContainer(t *testing.T) {
	m := newMemory()
	c := dial(t, m)
	ctx := inNamespace(t, namespace)
	r, err := c.containers.Get(ctx, &containers.GetContainerRequest{ID: podID})
	if err != nil {
		t.Fatal(err)
	}
	got := r.GetContainer()
	if got.GetLabels()[kindLabel] != "sandbox" || got.GetLabels()["io.kubernetes.pod.name"] != "web" || got.GetImage() == "" ||
		got.GetSpec() == nil || !got.GetCreatedAt().AsTime().Equal(time.Unix(100, 5)) {
		t.Errorf("got %v", got)
	}
	process := func(want uint32) {
		t.Helper()
		r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: podID})
		if err != nil || r.GetProcess().GetPid() != want || r.GetProcess().GetStatus() != task.Status_RUNNING {
			t.Errorf("process is %v, %v, expected %d", r, err, want)
		}
	}
	process(4711)
	m.sandboxes[podID].InitPID = 12
	process(12)
	m.sandboxes[podID].InitPID = 0
	m.containers[containerID].State = sandbox.ContainerExited
	_, err = c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: podID})
	wantCode(t, "nothing runs", err, codes.NotFound)
	m.containers[secondID] = &sandbox.ContainerStatus{ID: secondID, State: sandbox.ContainerRunning, PID: 13}
	process(13)
}

// cAdvisor asks again after NotFound, one cgroup after the other: it would be busy with those that have ended.
func TestProcessOfASandboxThatHasEndedIsNotAskedForAgain(t *testing.T) {
	m := newMemory()
	c := dial(t, m)
	for _, state := range []sandbox.SandboxState{sandbox.SandboxStopping, sandbox.SandboxStopped, sandbox.SandboxRemoving} {
		m.sandboxes[podID].State = state
		_, err := c.tasks.Get(inNamespace(t, namespace), &tasks.GetRequest{ContainerID: podID})
		wantCode(t, string(state), err, codes.FailedPrecondition)
	}
	m.sandboxes[podID].State = sandbox.SandboxCreating
	_, err := c.tasks.Get(inNamespace(t, namespace), &tasks.GetRequest{ContainerID: podID})
	wantCode(t, "one that is being made", err, codes.NotFound)
}

func TestTaskFollowsTheContainer(t *testing.T) {
	m := newMemory()
	c := dial(t, m)
	get := func() (*task.Process, error) {
		r, err := c.tasks.Get(inNamespace(t, namespace), &tasks.GetRequest{ContainerID: containerID})
		return r.GetProcess(), err
	}
	if p, err := get(); err != nil || p.GetPid() != 4711 || p.GetStatus() != task.Status_RUNNING {
		t.Errorf("running: %v, %v", p, err)
	}
	st := m.containers[containerID]
	st.State, st.PID, st.ExitCode, st.Finished = sandbox.ContainerExited, 0, 137, time.Unix(300, 0)
	if p, err := get(); err != nil || p.GetPid() != 0 || p.GetStatus() != task.Status_STOPPED || p.GetExitStatus() != 137 ||
		p.GetExitedAt().AsTime().Unix() != 300 {
		t.Errorf("exited: %v, %v", p, err)
	}
	// cAdvisor asks again after NotFound, and takes any other answer for the last word.
	for _, state := range []sandbox.ContainerState{sandbox.ContainerCreating, sandbox.ContainerCreated} {
		st.State = state
		_, err := get()
		wantCode(t, string(state), err, codes.NotFound)
	}
}

func TestContainerThatIsBeingMadeIsDescribed(t *testing.T) {
	m := newMemory()
	m.containers[containerID].State = sandbox.ContainerCreating
	ctx := inNamespace(t, namespace)
	if _, err := dial(t, m).containers.Get(ctx, &containers.GetContainerRequest{ID: containerID}); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	c := dial(t, newMemory())
	for _, id := range []string{"", podID[:12], containerID[:63], strings.Repeat("9", 64), "../" + podID} {
		_, err := c.containers.Get(inNamespace(t, namespace), &containers.GetContainerRequest{ID: id})
		wantCode(t, "container "+id, err, codes.NotFound)
		_, err = c.tasks.Get(inNamespace(t, namespace), &tasks.GetRequest{ContainerID: id})
		wantCode(t, "task "+id, err, codes.NotFound)
	}
}

func TestOnlyTheKubeletsNamespaceIsServed(t *testing.T) {
	c := dial(t, newMemory())
	for name, want := range map[string]codes.Code{"": codes.FailedPrecondition, "moby": codes.NotFound} {
		ctx := t.Context()
		if name != "" {
			ctx = inNamespace(t, name)
		}
		_, err := c.containers.Get(ctx, &containers.GetContainerRequest{ID: containerID})
		wantCode(t, "container in namespace "+name, err, want)
		_, err = c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: containerID})
		wantCode(t, "task in namespace "+name, err, want)
	}
}

func TestNothingElseOfContainerdIsServed(t *testing.T) {
	c := dial(t, newMemory())
	_, err := c.containers.List(inNamespace(t, namespace), &containers.ListContainersRequest{})
	wantCode(t, "list", err, codes.Unimplemented)
	_, err = c.containers.Delete(inNamespace(t, namespace), &containers.DeleteContainerRequest{ID: containerID})
	wantCode(t, "delete", err, codes.Unimplemented)
	_, err = c.tasks.Kill(inNamespace(t, namespace), &tasks.KillRequest{ContainerID: containerID, Signal: 9})
	wantCode(t, "kill", err, codes.Unimplemented)
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/cri/operator"
	"github.com/gantry-cri/gantry/trace"
)

// fakeDaemon answers with what a test set.
type fakeDaemon struct {
	runtime.UnimplementedRuntimeServiceServer
	runtime.UnimplementedImageServiceServer
	images   []*runtime.Image
	removed  []string
	imported []byte
	pulled   operator.Credentials
}

func (f *fakeDaemon) ListImages(context.Context, *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	return &runtime.ListImagesResponse{Images: f.images}, nil
}

func (f *fakeDaemon) ImageStatus(
	_ context.Context, r *runtime.ImageStatusRequest,
) (*runtime.ImageStatusResponse, error) {
	for _, i := range f.images {
		if i.GetId() == r.GetImage().GetImage() {
			return &runtime.ImageStatusResponse{Image: i}, nil
		}
	}
	return &runtime.ImageStatusResponse{}, nil
}

func (f *fakeDaemon) RemoveImage(
	_ context.Context, r *runtime.RemoveImageRequest,
) (*runtime.RemoveImageResponse, error) {
	f.removed = append(f.removed, r.GetImage().GetImage())
	return &runtime.RemoveImageResponse{}, nil
}

func (f *fakeDaemon) ListPodSandbox(
	context.Context, *runtime.ListPodSandboxRequest,
) (*runtime.ListPodSandboxResponse, error) {
	pod := func(id, name string, state runtime.PodSandboxState) *runtime.PodSandbox {
		return &runtime.PodSandbox{Id: id, State: state, CreatedAt: time.Now().Add(-3 * time.Hour).UnixNano(),
			Metadata: &runtime.PodSandboxMetadata{Namespace: "default", Name: name, Uid: "u-" + name}}
	}
	return &runtime.ListPodSandboxResponse{Items: []*runtime.PodSandbox{
		pod(strings.Repeat("2", 64), "web", runtime.PodSandboxState_SANDBOX_READY),
		pod(strings.Repeat("1", 64), "gone", runtime.PodSandboxState_SANDBOX_NOTREADY),
	}}, nil
}

func (f *fakeDaemon) PodSandboxStatus(
	_ context.Context, r *runtime.PodSandboxStatusRequest,
) (*runtime.PodSandboxStatusResponse, error) {
	if r.GetPodSandboxId()[0] == '1' {
		return nil, status.Error(codes.NotFound, "removed since")
	}
	return &runtime.PodSandboxStatusResponse{Status: &runtime.PodSandboxStatus{Network: &runtime.PodSandboxNetworkStatus{
		Ip: "10.0.0.5", AdditionalIps: []*runtime.PodIP{{Ip: "fd00::5"}}}}}, nil
}

func (f *fakeDaemon) ListContainers(
	context.Context, *runtime.ListContainersRequest,
) (*runtime.ListContainersResponse, error) {
	container := func(name string, attempt uint32, age time.Duration) *runtime.Container {
		return &runtime.Container{Id: strings.Repeat("c", 64), PodSandboxId: strings.Repeat("2", 64),
			State:     runtime.ContainerState_CONTAINER_RUNNING,
			CreatedAt: time.Now().Add(-age).UnixNano(),
			Image:     &runtime.ImageSpec{Image: "img"},
			Metadata:  &runtime.ContainerMetadata{Name: name, Attempt: attempt}}
	}
	return &runtime.ListContainersResponse{Containers: []*runtime.Container{
		container("second", 2, 2*time.Hour), container("first", 0, 3*time.Hour),
	}}, nil
}

// fakeStore is the image store behind the operator's service.
type fakeStore struct{ *fakeDaemon }

func (s fakeStore) Pull(
	_ context.Context, ref string, c operator.Credentials, progress func(*operator.BlobProgress),
) (string, error) {
	s.pulled = c
	if ref != "good" {
		return "", fmt.Errorf("pull image %q: %w", ref, errdefs.ErrNotFound)
	}
	progress(layer("a", 5, 5, true))
	return "sha256:feed", nil
}

func (s fakeStore) Import(_ context.Context, r io.Reader) (refs []string, err error) {
	s.imported, err = io.ReadAll(r)
	if string(s.imported) == "bad" {
		return nil, errors.New("no archive")
	}
	return []string{"imported:1"}, err
}

func (s fakeStore) Export(_ context.Context, w io.Writer, refs []string) error {
	if _, err := io.WriteString(w, "archive of "+strings.Join(refs, " ")); err != nil {
		return err
	}
	if refs[0] == "torn" {
		return errors.New("blob is gone")
	}
	return nil
}

func (s fakeStore) Tag(context.Context, string, string) error { return nil }

func (s fakeStore) Pin(context.Context, string, bool) error { return nil }

// start serves the fake daemon and returns its address.
func (f *fakeDaemon) start(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(server, f)
	runtime.RegisterImageServiceServer(server, f)
	operator.New(fakeStore{f}, fakeTimelines(t), func(context.Context) *operator.InfoResponse {
		return &operator.InfoResponse{Version: "v9.9.9", Pid: 42, Keeper: &operator.KeeperInfo{Build: "v8.8.8", Pid: 43}}
	}).Register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return "unix://" + socket
}

// fakeTimelines has that of one pod.
func fakeTimelines(t *testing.T) *trace.Log {
	log := trace.NewLog(nil)
	ctx, end := log.Begin(t.Context(), "RunPodSandbox")
	trace.About(ctx, trace.Subject{SandboxID: strings.Repeat("2", 64), Pod: "default/web"})
	inner, step := trace.Start(ctx, "attach network")
	_, plugin := trace.Start(inner, "bridge")
	plugin.End()
	step.End()
	end(nil)
	return log
}

// run runs the command against the fake daemon and returns what it printed.
func run(t *testing.T, address, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs(append([]string{"--address", address}, args...))
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

func TestUnreachableDaemonIsSaidPlainly(t *testing.T) {
	address := "unix://" + filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{{"pods"}, {"image", "ls"}, {"image", "pull", "a"}, {"version"}} {
		_, _, err := run(t, address, "", args...)
		if err == nil || !strings.Contains(err.Error(), "cannot reach gantryd at "+address+": is it running?") {
			t.Errorf("%v: error %v", args, err)
		}
	}
	if _, _, err := run(t, "tcp://x", "", "pods"); err == nil || !strings.Contains(err.Error(), "expected unix://") {
		t.Errorf("wrong address: error %v", err)
	}
}

func TestAddressComesFromTheEnvironment(t *testing.T) {
	t.Setenv(addressVariable, (&fakeDaemon{}).start(t))
	var out bytes.Buffer
	cmd := newCommand()
	cmd.SetArgs([]string{"version"})
	cmd.SetOut(&out)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"gantryd         v9.9.9 (pid 42)", "gantry-keeper   v8.8.8 (pid 43)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}

func TestPullPrintsTheIDAloneOnStdout(t *testing.T) {
	daemon := &fakeDaemon{}
	address := daemon.start(t)
	out, errOut, err := run(t, address, "pass\n", "image", "pull", "good", "--user", "me")
	if err != nil || out != "sha256:feed\n" || !strings.Contains(errOut, "layer aaaaaaaaaaaaa done") {
		t.Errorf("printed %q and %q, error %v", out, errOut, err)
	}
	if daemon.pulled != (operator.Credentials{Username: "me", Password: "pass"}) {
		t.Errorf("credentials %v", daemon.pulled)
	}
	if _, errOut, err = run(t, address, "", "image", "pull", "-q", "good", "--user", "a:b:c"); err != nil || errOut != "" {
		t.Errorf("quiet: printed %q, error %v", errOut, err)
	}
	if daemon.pulled != (operator.Credentials{Username: "a", Password: "b:c"}) {
		t.Errorf("credentials %v", daemon.pulled)
	}
	_, _, err = run(t, address, "", "image", "pull", "bad")
	if err == nil || describe(err) != `pull image "bad": not found` {
		t.Errorf("error %v", err)
	}
}

func TestImageListAndRemove(t *testing.T) {
	daemon := &fakeDaemon{images: []*runtime.Image{
		{Id: "sha256:" + strings.Repeat("a", 64), Size: 2 << 20, RepoTags: []string{"localhost:5000/a:1", "b:2"}},
		{Id: "sha256:" + strings.Repeat("b", 64), Size: 10, RepoDigests: []string{"quay.example/c@sha256:0"}},
	}}
	address := daemon.start(t)
	out, _, err := run(t, address, "", "image", "ls")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"REPOSITORY TAG IMAGE ID SIZE", "localhost:5000/a 1 aaaaaaaaaaaaa 2.0 MiB",
		"b 2 aaaaaaaaaaaaa 2.0 MiB", "quay.example/c <none> bbbbbbbbbbbbb 10 B"} {
		if got := strings.Join(strings.Fields(strings.Split(out, "\n")[i]), " "); got != want {
			t.Errorf("line %d is %q, expected %q", i, got, want)
		}
	}
	forHandler, _, err := run(t, (&fakeDaemon{images: []*runtime.Image{
		{Id: "sha256:" + strings.Repeat("a", 64), Size: 1, RepoTags: []string{"b:2"}, Spec: &runtime.ImageSpec{RuntimeHandler: "vm"}},
	}}).start(t), "", "image", "ls")
	if err != nil || strings.Join(strings.Fields(forHandler), " ") != "REPOSITORY TAG IMAGE ID SIZE HANDLER b 2 aaaaaaaaaaaaa 1 B vm" {
		t.Errorf("table %q, error %v", forHandler, err)
	}
	out, _, err = run(t, address, "", "image", "ls", "-o", "json")
	var images []listedImage
	if err != nil || json.Unmarshal([]byte(out), &images) != nil || len(images) != 2 || images[0].Digests == nil {
		t.Errorf("JSON %s, error %v", out, err)
	}
	if _, _, err = run(t, address, "", "image", "ls", "-o", "yaml"); err == nil {
		t.Error("unknown format: no error")
	}
	id := daemon.images[1].GetId()
	_, _, err = run(t, address, "", "image", "rm", "nonesuch", id)
	if err == nil || !strings.Contains(err.Error(), "remove nonesuch: no such image") {
		t.Errorf("error %v", err)
	}
	if len(daemon.removed) != 1 || daemon.removed[0] != id {
		t.Errorf("removed %v", daemon.removed)
	}
}

func TestPodsWithTheirContainers(t *testing.T) {
	address := (&fakeDaemon{}).start(t)
	out, _, err := run(t, address, "", "pods")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"POD / CONTAINER ID STATE IP AGE", "default/gone 1111111111111 notready - 3h",
		"default/web 2222222222222 ready 10.0.0.5,fd00::5 3h", "first ccccccccccccc running 3h",
		"second (attempt 2) ccccccccccccc running 2h"} {
		if got := strings.Join(strings.Fields(strings.Split(out, "\n")[i]), " "); got != want {
			t.Errorf("line %d is %q, expected %q", i, got, want)
		}
	}
	out, _, err = run(t, address, "", "pods", "-o", "json")
	var pods []listedPod
	if err != nil || json.Unmarshal([]byte(out), &pods) != nil || len(pods) != 2 || len(pods[1].Containers) != 2 {
		t.Errorf("JSON %s, error %v", out, err)
	}
}

func TestArchivesFromFilesAndPipes(t *testing.T) {
	daemon := &fakeDaemon{}
	address, dir := daemon.start(t), t.TempDir()
	big := strings.Repeat("x", 3*chunkSize+5)
	file := filepath.Join(dir, "in.tar")
	if err := os.WriteFile(file, []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{file, "-"} {
		out, _, err := run(t, address, big, "image", "import", source)
		if err != nil || out != "imported:1\n" || string(daemon.imported) != big {
			t.Errorf("import %s: printed %q, %d bytes arrived, error %v", source, out, len(daemon.imported), err)
		}
	}
	_, _, err := run(t, address, "bad", "image", "import", "-")
	if err == nil || describe(err) != "no archive" {
		t.Errorf("bad archive: error %v", err)
	}

	target := filepath.Join(dir, "out.tar")
	if _, _, err := run(t, address, "", "image", "export", "-o", target, "a", "b"); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(target); string(got) != "archive of a b" {
		t.Errorf("exported %q", got)
	}
	if _, _, err := run(t, address, "", "image", "export", "-o", target, "torn"); err == nil {
		t.Error("torn export: no error")
	}
	if got, _ := os.ReadFile(target); string(got) != "archive of a b" {
		t.Errorf("a failed export left %q", got)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
	var out string
	out, _, err = run(t, address, "", "image", "export", "-o", "-", "a")
	if err != nil || out != "archive of a" {
		t.Errorf("to standard output: %q, error %v", out, err)
	}
}

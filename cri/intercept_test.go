package cri

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/trace"
)

// captureLog returns what the log gets until the returned function is called, at a level at which everything is logged.
func captureLog(t *testing.T) (text func() string) {
	t.Helper()
	var b lockedBuffer
	state := klog.CaptureState()
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for name, value := range map[string]string{"logtostderr": "false", "v": "10", "one_output": "true"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	klog.SetOutput(&b)
	t.Cleanup(state.Restore)
	return func() string { klog.Flush(); return b.String() }
}

// lockedBuffer is a buffer for several goroutines: the log is written by what goes on behind the test, too.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestPanicBecomesInternal(t *testing.T) {
	log := captureLog(t)
	n := newNode(t)
	n.runtime.exec = func(context.Context, string, sandbox.ExecOptions) (int32, error) { panic("boom") }
	_, err := n.ExecSync(testContext(t), &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{"x"}})
	wantCode(t, err, codes.Internal)
	if strings.Contains(err.Error(), "boom") {
		t.Errorf("the client is told the value of the panic: %v", err)
	}
	if text := log(); !strings.Contains(text, "boom") || !strings.Contains(text, "exec_sync.go") {
		t.Errorf("want the panic and its stack in the log, got %s", text)
	}
	if _, err := n.Version(testContext(t), &runtime.VersionRequest{}); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

func TestNotReadyAnswersUnavailable(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Ready = func() error { return errors.New("recovery is not done") } })
	ctx := testContext(t)
	_, err := n.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	wantCode(t, err, codes.Unavailable)
	stream, err := n.StreamContainers(ctx, &runtime.StreamContainersRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.Unavailable)
	if _, err := n.Version(ctx, &runtime.VersionRequest{}); err != nil {
		t.Error(err)
	}
	got, err := n.Status(ctx, &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, got.Status.Conditions[0], &runtime.RuntimeCondition{
		Type: "RuntimeReady", Reason: "DaemonNotReady", Message: "recovery is not done",
	})
}

func TestSecretsAreNotLogged(t *testing.T) {
	log := captureLog(t)
	n := newNode(t)
	n.images.err = errors.New("no such registry")
	_, _ = n.image.PullImage(testContext(t), &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: "example.org/app"},
		Auth: &runtime.AuthConfig{
			Username: "secret-u", Password: "secret-p", Auth: "secret-a",
			IdentityToken: "secret-i", RegistryToken: "secret-r",
		},
	})
	text := log()
	if strings.Contains(text, "secret") {
		t.Errorf("a secret is in the log: %s", text)
	}
	if !strings.Contains(text, "example.org/app") || !strings.Contains(text, "no such registry") {
		t.Errorf("want image and error in the log, got %s", text)
	}
}

func TestLogSaysWhatARequestIsAbout(t *testing.T) {
	log := captureLog(t)
	n := newNode(t)
	ctx := testContext(t)
	_, err := n.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: sandboxConfig("web")})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = n.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: "c-unknown"})
	for _, want := range []string{
		`method="RunPodSandbox"`, `pod="shop/web"`, `sandbox="sandbox-of-web"`,
		`container="c-unknown"`, `code="NotFound"`,
	} {
		if text := log(); !strings.Contains(text, want) {
			t.Errorf("want %s in the log, got %s", want, text)
		}
	}
}

func TestStartsHaveATimeline(t *testing.T) {
	var methods []string
	n := newNode(t, func(c *Config) {
		c.Trace = trace.NewLog(func(_ context.Context, call *trace.Call) {
			methods = append(methods, fmt.Sprint(call.Method, " ", call.Err != ""))
		})
	})
	ctx := testContext(t)
	_, _ = n.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: sandboxConfig("web")})
	_, _ = n.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	_, _ = n.StartContainer(ctx, &runtime.StartContainerRequest{})
	if got := strings.Join(methods, ", "); got != "RunPodSandbox false, StartContainer true" {
		t.Errorf("timelines of %s", got)
	}
}

func TestSpansAreOfWhatChangesSomething(t *testing.T) {
	for method, want := range map[string]bool{
		"RunPodSandbox": true, "StopContainer": true, "PullImage": true, "Pull": true,
		"ListContainers": false, "ContainerStatus": false, "ExecSync": false, "GetContainerEvents": false,
	} {
		if Traced(method) != want {
			t.Errorf("%s: %t, expected %t", method, !want, want)
		}
	}
}

func TestEveryMethodHasALogLevel(t *testing.T) {
	for method, want := range map[string]bool{
		"ListContainers": true, "ContainerStatus": true, "Status": true, "StreamImages": true, "ExecSync": true,
		"RunPodSandbox": false, "StopContainer": false, "PullImage": false, "UpdateContainerResources": false,
	} {
		if asks(method) != want {
			t.Errorf("%s: got %v, want %v", method, !want, want)
		}
	}
}

func TestStatusOfWrappedError(t *testing.T) {
	inner := status.Error(codes.ResourceExhausted, "too many streams")
	err := grpcError(t.Context(), fmt.Errorf("get address: %w", inner))
	wantCode(t, err, codes.ResourceExhausted)
}

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/images"
)

// leavesNoTrace fails the test unless the node looks at the test's end as it does now: processes, mounts, cgroups,
// links, firewall rules, records. A test with it is not parallel, its subtests may be.
func leavesNoTrace(t *testing.T) {
	t.Helper()
	before, err := shared.Footprint(registry.PID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		leaks, err := shared.Leaks(before, time.Minute, registry.PID())
		if err != nil {
			t.Errorf("look for leaks: %v", err)
		}
		if len(leaks) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(leaks, "\n  "))
		}
	})
}

// atOnce makes n calls that begin together and returns their errors.
func atOnce(n int, call func(i int) error) []error {
	errs := make([]error, n)
	var ready, done sync.WaitGroup
	ready.Add(n)
	for i := range n {
		done.Go(func() {
			ready.Done()
			ready.Wait()
			errs[i] = call(i)
		})
	}
	done.Wait()
	return errs
}

// wantAllGood fails the test for each error.
func wantAllGood(t *testing.T, what string, errs []error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Errorf("%s, call %d: %v", what, i, err)
		}
	}
}

// received reads a stream to its end and returns the messages.
func received[T any](t *testing.T, stream grpc.ServerStreamingClient[T], err error) []*T {
	t.Helper()
	var messages []*T
	for err == nil {
		var m *T
		if m, err = stream.Recv(); err == nil {
			messages = append(messages, m)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatalf("read stream: %v", err)
	}
	return messages
}

// busyboxID is the id of the image of most containers, which is pulled once.
var busyboxID = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	response, err := shared.Images.PullImage(ctx, &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: images.Busybox},
	})
	return response.GetImageRef(), err
})

// shellConfig is containerConfig by the image's id, as the kubelet sends it.
func shellConfig(t *testing.T, name, scriptText string) *runtime.ContainerConfig {
	t.Helper()
	id, err := busyboxID()
	if err != nil {
		t.Fatalf("pull: %v", err)
	}
	config := containerConfig(name, scriptText)
	config.Image.Image = id
	return config
}

// createRequest is the request for a container of the pod.
func (p *pod) createRequest(config *runtime.ContainerConfig) *runtime.CreateContainerRequest {
	return &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config}
}

// containers lists the containers of a pod.
func (p *pod) containers(t *testing.T) []*runtime.Container {
	t.Helper()
	list, err := p.node.Runtime.ListContainers(timeout(t), &runtime.ListContainersRequest{
		Filter: &runtime.ContainerFilter{PodSandboxId: p.id},
	})
	if err != nil {
		t.Fatalf("list containers: %v", err)
	}
	return list.Containers
}

// stop stops the pod.
func (p *pod) stop(t *testing.T) {
	t.Helper()
	_, err := p.node.Runtime.StopPodSandbox(timeout(t), &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("stop sandbox: %v", err)
	}
}

// podsOf lists the sandboxes with all of a configuration's labels.
func podsOf(t *testing.T, config *runtime.PodSandboxConfig) []*runtime.PodSandbox {
	t.Helper()
	list, err := shared.Runtime.ListPodSandbox(timeout(t), &runtime.ListPodSandboxRequest{
		Filter: &runtime.PodSandboxFilter{LabelSelector: config.Labels},
	})
	if err != nil {
		t.Fatalf("list sandboxes: %v", err)
	}
	return list.Items
}

// processTitle is the command line of a process, "" when it is gone.
func processTitle(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")
}

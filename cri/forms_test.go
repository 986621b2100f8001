package cri

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// formNode has sandboxes and containers in many states: with everything, with nothing, with empty maps, with fields that
// this version of the CRI does not have, and with more annotations than are kept.
func formNode(t *testing.T) *node {
	n := newNode(t)
	unknown := protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), "of a later version")
	for i, labels := range []map[string]string{nil, {}, {"": ""}, {"a": "1", "b": "ü", "c": ""}} {
		for j, annotations := range []map[string]string{nil, {}, {"k": strings.Repeat("v", maxForm)}} {
			id := fmt.Sprintf("%d%d", i, j)
			pod := &runtime.PodSandboxMetadata{Name: "p" + id, Namespace: "n", Uid: "u", Attempt: uint32(i)}
			main := &runtime.ContainerMetadata{Name: "c" + id, Attempt: uint32(j)}
			pod.ProtoReflect().SetUnknown(unknown)
			main.ProtoReflect().SetUnknown(unknown)
			n.runtime.sandboxes = append(n.runtime.sandboxes,
				&sandbox.SandboxStatus{ID: "s" + id, State: sandbox.SandboxReady, Created: time.Unix(int64(i), 1), Handler: "special",
					Config: &runtime.PodSandboxConfig{Metadata: pod, Labels: labels, Annotations: annotations}},
				&sandbox.SandboxStatus{ID: "t" + id, State: sandbox.SandboxStopped, Config: &runtime.PodSandboxConfig{}})
			n.runtime.containers = append(n.runtime.containers,
				&sandbox.ContainerStatus{ID: "c" + id, SandboxID: "s" + id, State: sandbox.ContainerRunning, ImageID: "i", ImageRef: "r",
					Config: &runtime.ContainerConfig{Metadata: main, Labels: labels, Annotations: annotations,
						Image: &runtime.ImageSpec{Image: "x", Annotations: labels, UserSpecifiedImage: "y", RuntimeHandler: "special"}}},
				&sandbox.ContainerStatus{ID: "d" + id, State: sandbox.ContainerExited, Config: &runtime.ContainerConfig{}})
		}
	}
	return n
}

// wantLists checks that the lists are the messages that their items make, as one message and as a stream.
func wantLists(t *testing.T, n *node) {
	t.Helper()
	ctx := testContext(t)
	var sandboxes []*runtime.PodSandbox
	for _, status := range n.runtime.sandboxes {
		sandboxes = append(sandboxes, sandboxItem(status))
	}
	var containers []*runtime.Container
	for _, status := range n.runtime.containers {
		containers = append(containers, containerItem(status))
	}
	pods, err := n.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, pods, &runtime.ListPodSandboxResponse{Items: sandboxes})
	list, err := n.ListContainers(ctx, &runtime.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, list, &runtime.ListContainersResponse{Containers: containers})
	podStream, err := n.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	podBatch, err := podStream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, podBatch, &runtime.StreamPodSandboxesResponse{PodSandboxes: sandboxes})
	stream, err := n.StreamContainers(ctx, &runtime.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, batch, &runtime.StreamContainersResponse{Containers: containers})
}

// To a client an item is the message, whether it was encoded for this list or for another, and of the status of now.
func TestListsAreTheMessagesOfTheirItems(t *testing.T) {
	n := formNode(t)
	wantLists(t, n) // encoded for it
	wantLists(t, n) // kept
	for i, status := range n.runtime.sandboxes {
		changed := *status
		changed.State = sandbox.SandboxUnknown
		n.runtime.sandboxes[i] = &changed
	}
	for i, status := range n.runtime.containers {
		changed := *status
		changed.State, changed.ImageRef = sandbox.ContainerExited, "other"
		n.runtime.containers[i] = &changed
	}
	wantLists(t, n)
	n.runtime.sandboxes, n.runtime.containers = n.runtime.sandboxes[3:5], n.runtime.containers[2:3]
	wantLists(t, n)
}

// What protobuf cannot encode fails the list, the first and all others.
func TestItemsThatCannotBeEncodedFailTheList(t *testing.T) {
	n := formNode(t)
	n.runtime.sandboxes[0].Config.Labels = map[string]string{"not UTF-8": "\xff"}
	n.runtime.containers[0].ImageRef = "\xff"
	for range 2 {
		if resp, err := n.ListPodSandbox(testContext(t), &runtime.ListPodSandboxRequest{}); err == nil {
			t.Errorf("got %v", resp)
		}
		if resp, err := n.ListContainers(testContext(t), &runtime.ListContainersRequest{}); err == nil {
			t.Errorf("got %v", resp)
		}
	}
}

// An item is encoded once for each status, unless it is large. What is not listed any more is forgotten in the end.
func TestFormsAreKeptForTheirStatus(t *testing.T) {
	var f forms[sandbox.SandboxStatus]
	made := 0
	item := func(status *sandbox.SandboxStatus) *runtime.PodSandbox {
		made++
		return sandboxItem(status)
	}
	status := func(annotation string) *sandbox.SandboxStatus {
		return &sandbox.SandboxStatus{Config: &runtime.PodSandboxConfig{Annotations: map[string]string{"a": annotation}}}
	}
	list := []*sandbox.SandboxStatus{status(""), status("other")}
	large := []*sandbox.SandboxStatus{status(strings.Repeat("x", maxForm))}
	for _, step := range []struct {
		what string
		list []*sandbox.SandboxStatus
		made int
	}{
		{"none", nil, 0},
		{"for the first time", list, 2},
		{"again", list, 0},
		{"one of them", list[1:], 0},
		{"a large one", large, 1},
		{"a large one again", large, 1},
	} {
		made = 0
		if sent := listed(&f, step.list, 3, item); len(sent) != len(step.list) || made != step.made {
			t.Errorf("%s: %d items, of which %d were made", step.what, len(sent), made)
		}
	}
	const live = 100
	for range 10 * live {
		list = append(list[:1], status("next"))
		listed(&f, list, live, item)
		if len(f.of) > 3*live {
			t.Fatalf("%d forms of %d statuses", len(f.of), live)
		}
	}
}

func TestListsAtTheSameTime(t *testing.T) {
	n := formNode(t)
	var done sync.WaitGroup
	for range 4 {
		done.Go(func() {
			for range 5 {
				r, err := n.ListContainers(t.Context(), &runtime.ListContainersRequest{})
				if err != nil || len(r.Containers) != len(n.runtime.containers) {
					t.Errorf("got %d containers, %v", len(r.GetContainers()), err)
				}
			}
		})
	}
	done.Wait()
}

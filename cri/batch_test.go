package cri

import (
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

func items(sizes ...int) []*runtime.PodSandbox {
	list := make([]*runtime.PodSandbox, len(sizes))
	for i, n := range sizes {
		list[i] = &runtime.PodSandbox{Id: strconv.Itoa(i), RuntimeHandler: strings.Repeat("x", n)}
	}
	return list
}

func TestBatchesAreBounded(t *testing.T) {
	const third = batchBytes / 3
	for _, test := range []struct {
		name string
		in   []*runtime.PodSandbox
		want []int
	}{
		{"none", nil, nil},
		{"one", items(1), []int{1}},
		{"small ones", items(1, 2, 3, 4), []int{4}},
		{"several batches", items(third, third, third, third, third), []int{2, 2, 1}},
		{"one too large alone", items(1, 3*batchBytes, 1), []int{1, 1, 1}},
		{"last too large", items(1, 3*batchBytes), []int{1, 1}},
	} {
		var got []int
		var ids []string
		err := sendBatches(test.in, func(batch []*runtime.PodSandbox) error {
			size := proto.Size(&runtime.StreamPodSandboxesResponse{PodSandboxes: batch})
			if size > batchBytes && len(batch) > 1 {
				t.Errorf("%s: a batch of %d items has %d bytes", test.name, len(batch), size)
			}
			got = append(got, len(batch))
			for _, item := range batch {
				ids = append(ids, item.Id)
			}
			return nil
		})
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: got batches %v (%v), want %v", test.name, got, err, test.want)
		}
		for i, id := range ids {
			if id != strconv.Itoa(i) {
				t.Errorf("%s: item %s at place %d", test.name, id, i)
			}
		}
		if len(ids) != len(test.in) {
			t.Errorf("%s: got %d items, want %d", test.name, len(ids), len(test.in))
		}
	}
}

func TestBatchesEndWithTheFirstError(t *testing.T) {
	calls, broken := 0, errors.New("broken")
	err := sendBatches(items(batchBytes, batchBytes, batchBytes), func([]*runtime.PodSandbox) error {
		calls++
		return broken
	})
	if !errors.Is(err, broken) || calls != 1 {
		t.Errorf("got %v after %d calls, want %v after 1", err, calls, broken)
	}
}

func TestStreamedListsGiveEachItemOnce(t *testing.T) {
	n := newNode(t)
	ctx := testContext(t)
	const count = 40
	large := strings.Repeat("x", batchBytes/10)
	for i := range count {
		id := strconv.Itoa(1000 + i)
		config := sandboxConfig(id)
		config.Annotations = map[string]string{"large": large}
		n.runtime.sandboxes = append(n.runtime.sandboxes, &sandbox.SandboxStatus{
			ID: id, Config: config, State: sandbox.SandboxReady,
		})
		n.runtime.containers = append(n.runtime.containers, &sandbox.ContainerStatus{
			ID: id, SandboxID: id, State: sandbox.ContainerRunning,
			Config: &runtime.ContainerConfig{Annotations: config.Annotations},
		})
		n.images.images[id] = &runtime.Image{Id: id, Username: large}
	}
	sandboxes, err := n.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{})
	checkStream(t, count, err, func() (ids []string, err error) {
		resp, err := sandboxes.Recv()
		for _, item := range resp.GetPodSandboxes() {
			ids = append(ids, item.Id)
		}
		return ids, err
	})
	containers, err := n.StreamContainers(ctx, &runtime.StreamContainersRequest{})
	checkStream(t, count, err, func() (ids []string, err error) {
		resp, err := containers.Recv()
		for _, item := range resp.GetContainers() {
			ids = append(ids, item.Id)
		}
		return ids, err
	})
	images, err := n.image.StreamImages(ctx, &runtime.StreamImagesRequest{})
	checkStream(t, count, err, func() (ids []string, err error) {
		resp, err := images.Recv()
		for _, item := range resp.GetImages() {
			ids = append(ids, item.Id)
		}
		return ids, err
	})
}

// checkStream wants count different ids in several messages, none of them empty.
func checkStream(t *testing.T, count int, err error, recv func() ([]string, error)) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	seen, messages := map[string]bool{}, 0
	for {
		ids, err := recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(ids) == 0 {
			t.Error("got a message without items")
		}
		for _, id := range ids {
			if seen[id] {
				t.Errorf("got %s twice", id)
			}
			seen[id] = true
		}
		messages++
	}
	if len(seen) != count || messages < 4 {
		t.Errorf("got %d items in %d messages, want %d in several", len(seen), messages, count)
	}
}

func TestEmptyStreamedListHasNoMessage(t *testing.T) {
	n := newNode(t)
	stream, err := n.StreamPodSandboxes(testContext(t), &runtime.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, %v, want the end at once", resp, err)
	}
}

//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wantSame checks that two lists hold the same messages in the same order.
func wantSame[T proto.Message](t *testing.T, what string, streamed, listed []T) {
	t.Helper()
	if len(listed) == 0 {
		t.Errorf("%s: the list is empty, which compares nothing", what)
	}
	if !slices.EqualFunc(streamed, listed, func(a, b T) bool { return proto.Equal(a, b) }) {
		t.Errorf("%s: streamed\n%v\nlisted\n%v", what, streamed, listed)
	}
}

// Each stream gives what the list of the same filter gives, and no message with nothing in it.
func TestStreamsGiveWhatListsGive(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	p.start(t, "first", "sleep 1000", func(c *runtime.ContainerConfig) { c.Labels = p.config.Labels })
	p.create(t, "second", "sleep 1000", func(c *runtime.ContainerConfig) { c.Labels = p.config.Labels })
	r, ctx, labels := shared.Runtime, timeout(t), p.config.Labels

	t.Run("sandboxes", func(t *testing.T) {
		filter := &runtime.PodSandboxFilter{LabelSelector: labels}
		stream, err := r.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{Filter: filter})
		var streamed []*runtime.PodSandbox
		for _, m := range received(t, stream, err) {
			streamed = append(streamed, m.PodSandboxes...)
		}
		list, err := r.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "sandboxes", streamed, list.GetItems())
	})
	t.Run("containers", func(t *testing.T) {
		filter := &runtime.ContainerFilter{LabelSelector: labels}
		stream, err := r.StreamContainers(ctx, &runtime.StreamContainersRequest{Filter: filter})
		var streamed []*runtime.Container
		for _, m := range received(t, stream, err) {
			streamed = append(streamed, m.Containers...)
		}
		list, err := r.ListContainers(ctx, &runtime.ListContainersRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "containers", streamed, list.GetContainers())
	})
	t.Run("images", func(t *testing.T) {
		filter := &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: p.containers(t)[0].ImageId}}
		stream, err := shared.Images.StreamImages(ctx, &runtime.StreamImagesRequest{Filter: filter})
		var streamed []*runtime.Image
		for _, m := range received(t, stream, err) {
			streamed = append(streamed, m.Images...)
		}
		list, err := shared.Images.ListImages(ctx, &runtime.ListImagesRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "images", streamed, list.GetImages())
	})
	t.Run("stats", func(t *testing.T) { streamsOfStats(t, p) })
}

// streamsOfStats compares who is measured: what is measured changes from one call to the next.
func streamsOfStats(t *testing.T, p *pod) {
	r, ctx := shared.Runtime, timeout(t)
	containers := &runtime.ContainerStatsFilter{PodSandboxId: p.id}
	stream, err := r.StreamContainerStats(ctx, &runtime.StreamContainerStatsRequest{Filter: containers})
	var streamed, listed []*runtime.ContainerAttributes
	for _, m := range received(t, stream, err) {
		for _, s := range m.ContainerStats {
			streamed = append(streamed, s.Attributes)
		}
	}
	list, err := r.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{Filter: containers})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.GetStats() {
		listed = append(listed, s.Attributes)
	}
	wantSame(t, "container stats", streamed, listed)

	pods := &runtime.PodSandboxStatsFilter{Id: p.id}
	podStream, err := r.StreamPodSandboxStats(ctx, &runtime.StreamPodSandboxStatsRequest{Filter: pods})
	var streamedPods, listedPods []*runtime.PodSandboxAttributes
	for _, m := range received(t, podStream, err) {
		for _, s := range m.PodSandboxStats {
			streamedPods = append(streamedPods, s.Attributes)
		}
	}
	podList, err := r.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{Filter: pods})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range podList.GetStats() {
		listedPods = append(listedPods, s.Attributes)
	}
	wantSame(t, "sandbox stats", streamedPods, listedPods)

	names := func(m *runtime.PodSandboxMetrics) string {
		var all []string
		for _, c := range m.GetContainerMetrics() {
			all = append(all, c.ContainerId)
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	var streamedNames, listedNames string
	metricsStream, err := r.StreamPodSandboxMetrics(ctx, &runtime.StreamPodSandboxMetricsRequest{})
	for _, m := range received(t, metricsStream, err) {
		for _, s := range m.PodSandboxMetrics {
			if s.PodSandboxId == p.id {
				streamedNames = names(s)
			}
		}
	}
	metrics, err := r.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range metrics.PodMetrics {
		if s.PodSandboxId == p.id {
			listedNames = names(s)
		}
	}
	wantEqual(t, "containers with metrics", streamedNames, listedNames)
}

// An empty list is no message at all: the kubelet's client takes each message for a part of the answer.
func TestAnEmptyStreamHasNoMessage(t *testing.T) {
	t.Parallel()
	r, ctx, none := shared.Runtime, timeout(t), strings.Repeat("0", 64)
	sandboxes, err := r.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{
		Filter: &runtime.PodSandboxFilter{Id: none},
	})
	wantEqual(t, "messages of sandboxes", len(received(t, sandboxes, err)), 0)
	containers, err := r.StreamContainers(ctx, &runtime.StreamContainersRequest{Filter: &runtime.ContainerFilter{Id: none}})
	wantEqual(t, "messages of containers", len(received(t, containers, err)), 0)
	stats, err := r.StreamContainerStats(ctx, &runtime.StreamContainerStatsRequest{
		Filter: &runtime.ContainerStatsFilter{Id: none},
	})
	wantEqual(t, "messages of container stats", len(received(t, stats, err)), 0)
	podStats, err := r.StreamPodSandboxStats(ctx, &runtime.StreamPodSandboxStatsRequest{
		Filter: &runtime.PodSandboxStatsFilter{Id: none},
	})
	wantEqual(t, "messages of sandbox stats", len(received(t, podStats, err)), 0)
	images, err := shared.Images.StreamImages(ctx, &runtime.StreamImagesRequest{
		Filter: &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: "registry.test/no/such:1"}},
	})
	wantEqual(t, "messages of images", len(received(t, images, err)), 0)
}

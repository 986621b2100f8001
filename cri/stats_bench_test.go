package cri

import (
	"fmt"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// The lists of a node with 200 pods, from the request to the message that the client has decoded.
func BenchmarkListsOfStats(b *testing.B) {
	n := newNode(b)
	for i := range 200 {
		pod, container := fmt.Sprintf("%064d", i), fmt.Sprintf("%064d", 1000+i)
		p := &sandbox.SandboxStatus{
			ID: pod, Config: sandboxConfig(pod[54:]), State: sandbox.SandboxReady, Containers: []string{container},
		}
		c := &sandbox.ContainerStatus{
			ID: container, SandboxID: pod, State: sandbox.ContainerRunning, Config: &runtime.ContainerConfig{
				Metadata: &runtime.ContainerMetadata{Name: "main"}, Labels: map[string]string{"in": pod, "c": "main"},
			},
		}
		n.runtime.sandboxes = append(n.runtime.sandboxes, p)
		n.runtime.containers = append(n.runtime.containers, c)
		ofPod, ofContainer := fullSample(), fullSample()
		ofPod.Form, ofContainer.Form = SandboxForm(p, ofPod), ContainerForm(c, ofContainer)
		n.stats.samples[pod], n.stats.samples[container] = ofPod, ofContainer
	}
	b.Run("containers", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r, err := n.ListContainerStats(b.Context(), &runtime.ListContainerStatsRequest{})
			if err != nil || len(r.Stats) != 200 {
				b.Fatalf("%d, %v", len(r.GetStats()), err)
			}
		}
	})
	b.Run("sandboxes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r, err := n.ListPodSandboxStats(b.Context(), &runtime.ListPodSandboxStatsRequest{})
			if err != nil || len(r.Stats) != 200 {
				b.Fatalf("%d, %v", len(r.GetStats()), err)
			}
		}
	})
}

package cri

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

// The lists of a node with 500 pods as a kubelet makes them: what the server does, from the request to the encoded answer,
// and what the client does to decode that. Neither has the transport in it.
func BenchmarkLists(b *testing.B) {
	n := newNode(b)
	for i := range 500 {
		n.addPod(i)
	}
	for name, list := range map[string]struct {
		ask   func(context.Context) (proto.Message, error)
		empty func() proto.Message
	}{
		"ListContainerStats": {
			func(ctx context.Context) (proto.Message, error) { return n.server.ListContainerStats(ctx, nil) },
			func() proto.Message { return &runtime.ListContainerStatsResponse{} },
		},
		"ListPodSandboxStats": {
			func(ctx context.Context) (proto.Message, error) { return n.server.ListPodSandboxStats(ctx, nil) },
			func() proto.Message { return &runtime.ListPodSandboxStatsResponse{} },
		},
		"ListContainers": {
			func(ctx context.Context) (proto.Message, error) { return n.server.ListContainers(ctx, nil) },
			func() proto.Message { return &runtime.ListContainersResponse{} },
		},
		"ListPodSandbox": {
			func(ctx context.Context) (proto.Message, error) { return n.server.ListPodSandbox(ctx, nil) },
			func() proto.Message { return &runtime.ListPodSandboxResponse{} },
		},
		"ListPodSandboxMetrics": {
			func(ctx context.Context) (proto.Message, error) { return n.server.ListPodSandboxMetrics(ctx, nil) },
			func() proto.Message { return &runtime.ListPodSandboxMetricsResponse{} },
		},
	} {
		codec := encoding.GetCodecV2("proto")
		serve := func() []byte {
			answer, err := list.ask(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			data, err := codec.Marshal(answer)
			if err != nil {
				b.Fatal(err)
			}
			defer data.Free()
			return data.Materialize()
		}
		b.Run(name+"/serve", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.SetBytes(int64(len(serve())))
			}
		})
		b.Run(name+"/decode", func(b *testing.B) {
			b.ReportAllocs()
			data := serve()
			for b.Loop() {
				if err := proto.Unmarshal(data, list.empty()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// addPod adds a pod with one container and their samples.
func (n *node) addPod(i int) {
	pod, container := fmt.Sprintf("%064d", i), fmt.Sprintf("%064d", 1_000_000+i)
	name, uid := "web-5d4f-"+pod[58:], pod[:36]
	p := &sandbox.SandboxStatus{
		ID: pod, State: sandbox.SandboxReady, Containers: []string{container}, Config: &runtime.PodSandboxConfig{
			Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
			Labels: map[string]string{
				"app": "web", "pod-template-hash": "5d4f", "io.kubernetes.pod.name": name,
				"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid,
			},
			Annotations: map[string]string{
				"kubernetes.io/config.seen": "2026-01-02T03:04:05.678901234Z", "kubernetes.io/config.source": "api",
			},
		},
	}
	c := &sandbox.ContainerStatus{
		ID: container, SandboxID: pod, State: sandbox.ContainerRunning,
		ImageID: "sha256:" + pod, ImageRef: "registry.k8s.io/web@sha256:" + pod, Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "main"},
			Image:    &runtime.ImageSpec{Image: "sha256:" + pod, UserSpecifiedImage: "registry.k8s.io/web:1"},
			Labels: map[string]string{
				"io.kubernetes.container.name": "main", "io.kubernetes.pod.name": name,
				"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid,
			},
			Annotations: map[string]string{
				"io.kubernetes.container.hash": "a1b2c3d4", "io.kubernetes.container.restartCount": "0",
				"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
				"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
			},
		},
	}
	ofPod, ofContainer := fullSample(), fullSample()
	ofPod.Form, ofContainer.Form = SandboxForm(p, ofPod, stats.Form{}), ContainerForm(c, ofContainer, stats.Form{})
	n.runtime.sandboxes = append(n.runtime.sandboxes, p)
	n.runtime.containers = append(n.runtime.containers, c)
	n.stats.samples[pod], n.stats.samples[container] = ofPod, ofContainer
}

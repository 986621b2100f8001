package cri

import (
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

// Lists of statistics are sent in the form that their samples got when they were taken: to make and encode the messages
// of thousands of pods takes a hundred milliseconds, in which the kubelet waits. A message that holds its fields in this
// form has them where protobuf keeps those that it does not know, which it sends as they are (Protocol Buffers encoding,
// "Unknown Fields"). So such a message is for sending only.

// ContainerForm is a container's statistics in the form in which lists send them.
func ContainerForm(status *sandbox.ContainerStatus, sample *stats.Sample) stats.Form {
	return stats.Form{Usage: encoded(containerStats(status, sample))}
}

// SandboxForm is a sandbox's statistics, without those of its containers, in the form in which lists send them.
func SandboxForm(status *sandbox.SandboxStatus, sample *stats.Sample) stats.Form {
	whole := sandboxStats(status, sample, nil)
	usage := whole.Linux
	whole.Linux = nil
	return stats.Form{Subject: encoded(whole), Usage: encoded(usage)}
}

// encoded is nil for what cannot be encoded, such as a path that is not UTF-8; a list that has it fails.
func encoded(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}

func sentContainer(status *sandbox.ContainerStatus, sample *stats.Sample) *runtime.ContainerStats {
	if sample.Form.Usage == nil {
		return containerStats(status, sample)
	}
	m := &runtime.ContainerStats{}
	m.ProtoReflect().SetUnknown(sample.Form.Usage)
	return m
}

func sentSandbox(
	status *sandbox.SandboxStatus, sample *stats.Sample, containers []*runtime.ContainerStats,
) *runtime.PodSandboxStats {
	form := sample.Form
	if form.Usage == nil || form.Subject == nil {
		return sandboxStats(status, sample, containers)
	}
	m := &runtime.PodSandboxStats{Linux: &runtime.LinuxPodSandboxStats{Containers: containers}}
	m.ProtoReflect().SetUnknown(form.Subject)
	m.Linux.ProtoReflect().SetUnknown(form.Usage)
	return m
}

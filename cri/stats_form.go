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

// ContainerForm is a container's statistics in the form in which lists send them: Usage has all of it, and Subject is
// its beginning. before is that of an earlier sample of the same status, or zero.
func ContainerForm(status *sandbox.ContainerStatus, sample *stats.Sample, before stats.Form) stats.Form {
	whole := containerStats(status, sample)
	subject := before.Subject
	if subject == nil {
		subject = encoded(&runtime.ContainerStats{Attributes: whole.Attributes})
	}
	if subject == nil {
		return stats.Form{}
	}
	whole.Attributes = nil
	form := append(make([]byte, 0, len(subject)+proto.Size(whole)), subject...)
	form, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(form, whole)
	if err != nil {
		return stats.Form{}
	}
	return stats.Form{Subject: form[:len(subject):len(subject)], Usage: form}
}

// SandboxForm is a sandbox's statistics, without those of its containers, in the form in which lists send them. before is
// like ContainerForm's.
func SandboxForm(status *sandbox.SandboxStatus, sample *stats.Sample, before stats.Form) stats.Form {
	whole := sandboxStats(status, sample, nil)
	usage, subject := whole.Linux, before.Subject
	if subject == nil {
		whole.Linux = nil
		subject = encoded(whole)
	}
	return stats.Form{Subject: subject, Usage: encoded(usage)}
}

// encoded is nil for what cannot be encoded, such as a path that is not UTF-8; a list that has it fails.
func encoded(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}

// slab gives messages from arrays of some dozens, for less to allocate.
type slab[T any] struct{ rest []T }

func (s *slab[T]) next() *T {
	if len(s.rest) == 0 {
		s.rest = make([]T, 64)
	}
	m := &s.rest[0]
	s.rest = s.rest[1:]
	return m
}

// sent makes the messages of one list of statistics.
type sent struct {
	containers slab[runtime.ContainerStats]
	sandboxes  slab[runtime.PodSandboxStats]
	usages     slab[runtime.LinuxPodSandboxStats]
}

func (s *sent) container(status *sandbox.ContainerStatus, sample *stats.Sample) *runtime.ContainerStats {
	if sample.Form.Usage == nil {
		return containerStats(status, sample)
	}
	m := s.containers.next()
	m.ProtoReflect().SetUnknown(sample.Form.Usage)
	return m
}

func (s *sent) sandbox(
	status *sandbox.SandboxStatus, sample *stats.Sample, containers []*runtime.ContainerStats,
) *runtime.PodSandboxStats {
	form := sample.Form
	if form.Usage == nil || form.Subject == nil {
		return sandboxStats(status, sample, containers)
	}
	m := s.sandboxes.next()
	m.Linux = s.usages.next()
	m.Linux.Containers = containers
	m.ProtoReflect().SetUnknown(form.Subject)
	m.Linux.ProtoReflect().SetUnknown(form.Usage)
	return m
}

package cri

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

// metricLabels are the labels of every metric, before those of its own: cAdvisor's, by which dashboards ask.
var metricLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// metricDescriptors describes every metric, once for the life of the process.
var metricDescriptors = describeMetrics()

func describeMetrics() []*runtime.MetricDescriptor {
	list := make([]*runtime.MetricDescriptor, len(metrics))
	for i, m := range metrics {
		list[i] = &runtime.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(metricLabels, m.labels)}
	}
	return list
}

// ListMetricDescriptors describes the metrics of ListPodSandboxMetrics.
func (s *Server) ListMetricDescriptors(
	context.Context, *runtime.ListMetricDescriptorsRequest,
) (*runtime.ListMetricDescriptorsResponse, error) {
	return &runtime.ListMetricDescriptorsResponse{Descriptors: metricDescriptors}, nil
}

// ListPodSandboxMetrics gives the metrics of all ready sandboxes and running containers. They have the time at which
// they were sampled.
func (s *Server) ListPodSandboxMetrics(
	ctx context.Context, _ *runtime.ListPodSandboxMetricsRequest,
) (*runtime.ListPodSandboxMetricsResponse, error) {
	list, err := s.listMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: list}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in batches.
func (s *Server) StreamPodSandboxMetrics(
	_ *runtime.StreamPodSandboxMetricsRequest,
	stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse],
) error {
	list, err := s.listMetrics(stream.Context())
	if err != nil {
		return err
	}
	return sendBatches(list, func(batch []*runtime.PodSandboxMetrics) error {
		return stream.Send(&runtime.StreamPodSandboxMetricsResponse{PodSandboxMetrics: batch})
	})
}

func (s *Server) listMetrics(ctx context.Context) ([]*runtime.PodSandboxMetrics, error) {
	containers := map[string][]*sandbox.ContainerStatus{}
	for _, status := range s.runtime.Containers() {
		containers[status.SandboxID] = append(containers[status.SandboxID], status)
	}
	var list []*runtime.PodSandboxMetrics
	var sent sentMetrics
	for _, status := range s.runtime.Sandboxes() {
		sample := s.stats.Sandbox(ctx, status, stats.AnyAge)
		if sample == nil {
			continue
		}
		pod := &runtime.PodSandboxMetrics{PodSandboxId: status.ID}
		if err := sent.of(sandboxSubject(status, sample), pod); err != nil {
			return nil, err
		}
		for _, c := range containers[status.ID] {
			if sample := s.stats.Container(ctx, c, stats.AnyAge); sample != nil {
				one := &runtime.ContainerMetrics{ContainerId: c.ID}
				if err := sent.of(containerSubject(status, c, sample), one); err != nil {
					return nil, err
				}
				pod.ContainerMetrics = append(pod.ContainerMetrics, one)
			}
		}
		list = append(list, pod)
	}
	return list, nil
}

// subject is what metrics are about.
type subject struct {
	*stats.Sample
	started time.Time
	// labels are the values for metricLabels.
	labels []string
}

// sandboxSubject makes a sandbox a subject. Its metrics have no container and no image, as cAdvisor's of a pod's
// cgroup.
func sandboxSubject(status *sandbox.SandboxStatus, sample *stats.Sample) *subject {
	m := sandboxMetadata(status)
	return &subject{
		Sample: sample, started: status.Created,
		labels: []string{"", status.CgroupParent, "", status.ID, m.GetNamespace(), m.GetName()},
	}
}

func containerSubject(
	pod *sandbox.SandboxStatus, status *sandbox.ContainerStatus, sample *stats.Sample,
) *subject {
	m := sandboxMetadata(pod)
	image := or(status.Config.GetImage().GetUserSpecifiedImage(), containerImage(status).GetImage())
	return &subject{
		Sample: sample, started: status.Started,
		labels: []string{
			containerMetadata(status).GetName(), status.CgroupPath, image, status.ID, m.GetNamespace(), m.GetName(),
		},
	}
}

// metricsField is the number of the field metrics of PodSandboxMetrics and ContainerMetrics.
const metricsField = 2

// sentMetrics encodes metrics one by one, for lists as those of statistics are: a pod has a hundred, which are all made
// in one message, and most of each are the labels that all of a subject have. The zero value is ready.
type sentMetrics struct {
	// one is a metric without the labels, which are encoded in labels.
	one    runtime.Metric
	value  runtime.UInt64Value
	labels []byte
	form   []byte
	err    error
}

// of puts every metric that the subject has into the field metrics of m, which is for sending only.
func (e *sentMetrics) of(s *subject, m proto.Message) error {
	if e.labels, e.err = (proto.MarshalOptions{}).MarshalAppend(e.labels[:0], &runtime.Metric{LabelValues: s.labels}); e.err != nil {
		return fmt.Errorf("encode labels %q: %w", s.labels, e.err)
	}
	e.form = e.form[:0]
	e.one.Timestamp, e.one.Value = s.Time.UnixNano(), &e.value
	for i := range metrics {
		metric := &metrics[i]
		e.one.Name, e.one.MetricType = metric.name, metric.kind
		metric.values(s, func(value uint64, labels ...string) {
			e.value.Value = value
			e.one.LabelValues = append(e.one.LabelValues[:0], labels...)
			e.add()
		})
	}
	m.ProtoReflect().SetUnknown(bytes.Clone(e.form))
	return e.err
}

// add encodes the metric that one is. Labels of its own follow those that all have.
func (e *sentMetrics) add() {
	form := protowire.AppendTag(e.form, metricsField, protowire.BytesType)
	form = protowire.AppendVarint(form, uint64(len(e.labels)+proto.Size(&e.one)))
	form = append(form, e.labels...)
	form, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(form, &e.one)
	if err != nil {
		e.err = fmt.Errorf("encode %s of %q: %w", e.one.Name, e.one.LabelValues, err)
		return
	}
	e.form = form
}

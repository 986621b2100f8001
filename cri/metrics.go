package cri

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
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
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: s.listMetrics(ctx)}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in batches.
func (s *Server) StreamPodSandboxMetrics(
	_ *runtime.StreamPodSandboxMetricsRequest,
	stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse],
) error {
	return sendBatches(s.listMetrics(stream.Context()), func(batch []*runtime.PodSandboxMetrics) error {
		return stream.Send(&runtime.StreamPodSandboxMetricsResponse{PodSandboxMetrics: batch})
	})
}

func (s *Server) listMetrics(ctx context.Context) []*runtime.PodSandboxMetrics {
	containers := map[string][]*sandbox.ContainerStatus{}
	for _, status := range s.runtime.Containers() {
		containers[status.SandboxID] = append(containers[status.SandboxID], status)
	}
	var list []*runtime.PodSandboxMetrics
	for _, status := range s.runtime.Sandboxes() {
		sample := s.stats.Sandbox(ctx, status, stats.AnyAge)
		if sample == nil {
			continue
		}
		pod := &runtime.PodSandboxMetrics{
			PodSandboxId: status.ID,
			Metrics:      sandboxSubject(status, sample).metrics(),
		}
		for _, c := range containers[status.ID] {
			if sample := s.stats.Container(ctx, c, stats.AnyAge); sample != nil {
				pod.ContainerMetrics = append(pod.ContainerMetrics, &runtime.ContainerMetrics{
					ContainerId: c.ID,
					Metrics:     containerSubject(status, c, sample).metrics(),
				})
			}
		}
		list = append(list, pod)
	}
	return list
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

// metrics gives every metric that the subject has.
func (s *subject) metrics() []*runtime.Metric {
	timestamp := s.Time.UnixNano()
	list := make([]*runtime.Metric, 0, len(metrics))
	for i := range metrics {
		m := &metrics[i]
		m.values(s, func(value uint64, labels ...string) {
			values := s.labels
			if len(labels) > 0 {
				values = slices.Concat(s.labels, labels)
			}
			list = append(list, &runtime.Metric{
				Name: m.name, Timestamp: timestamp, MetricType: m.kind, LabelValues: values, Value: number(value),
			})
		})
	}
	return list
}

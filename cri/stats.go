package cri

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/stats"
)

// freshness is how old a sample may be for whoever asks for one container or sandbox. The lists take any.
const freshness = time.Second

// ContainerStats tells what a running container uses.
func (s *Server) ContainerStats(
	ctx context.Context, req *runtime.ContainerStatsRequest,
) (*runtime.ContainerStatsResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	status, err := s.runtime.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	sample := s.stats.Container(ctx, status, freshness)
	if err := ctx.Err(); sample == nil && err != nil {
		return nil, err
	}
	if sample == nil {
		return nil, fmt.Errorf("container %s is not running: %w", status.ID, errdefs.ErrFailedPrecondition)
	}
	return &runtime.ContainerStatsResponse{Stats: containerStats(status, sample)}, nil
}

// ListContainerStats tells what the running containers use that satisfy the filter.
func (s *Server) ListContainerStats(
	ctx context.Context, req *runtime.ListContainerStatsRequest,
) (*runtime.ListContainerStatsResponse, error) {
	list, err := s.listContainerStats(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListContainerStatsResponse{Stats: list}, nil
}

// StreamContainerStats is ListContainerStats in batches.
func (s *Server) StreamContainerStats(
	req *runtime.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamContainerStatsResponse],
) error {
	list, err := s.listContainerStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(list, func(batch []*runtime.ContainerStats) error {
		return stream.Send(&runtime.StreamContainerStatsResponse{ContainerStats: batch})
	})
}

// PodSandboxStats tells what a ready sandbox uses, with its containers.
func (s *Server) PodSandboxStats(
	ctx context.Context, req *runtime.PodSandboxStatsRequest,
) (*runtime.PodSandboxStatsResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	status, err := s.runtime.Sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	var containers []*runtime.ContainerStats
	for _, id := range status.Containers {
		if c, err := s.runtime.Container(id); err == nil {
			if sample := s.stats.Container(ctx, c, freshness); sample != nil {
				containers = append(containers, containerStats(c, sample))
			}
		}
	}
	sample := s.stats.Sandbox(ctx, status, freshness)
	if err := ctx.Err(); sample == nil && err != nil {
		return nil, err
	}
	if sample == nil {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", status.ID, errdefs.ErrFailedPrecondition)
	}
	return &runtime.PodSandboxStatsResponse{Stats: sandboxStats(status, sample, containers)}, nil
}

// ListPodSandboxStats tells what the ready sandboxes use that satisfy the filter.
func (s *Server) ListPodSandboxStats(
	ctx context.Context, req *runtime.ListPodSandboxStatsRequest,
) (*runtime.ListPodSandboxStatsResponse, error) {
	list, err := s.listSandboxStats(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListPodSandboxStatsResponse{Stats: list}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in batches.
func (s *Server) StreamPodSandboxStats(
	req *runtime.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxStatsResponse],
) error {
	list, err := s.listSandboxStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(list, func(batch []*runtime.PodSandboxStats) error {
		return stream.Send(&runtime.StreamPodSandboxStatsResponse{PodSandboxStats: batch})
	})
}

// listContainerStats returns the statistics of the running containers that satisfy every part of filter.
func (s *Server) listContainerStats(
	ctx context.Context, filter *runtime.ContainerStatsFilter,
) ([]*runtime.ContainerStats, error) {
	all, _, err := s.filterContainers(&runtime.ContainerFilter{
		Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: filter.GetLabelSelector(),
	})
	if err != nil {
		return nil, err
	}
	s.stats.CatchUp(ctx)
	var sent sent
	list := make([]*runtime.ContainerStats, 0, len(all))
	for _, status := range all {
		if sample := s.stats.Container(ctx, status, stats.AnyAge); sample != nil {
			list = append(list, sent.container(status, sample))
		}
	}
	return list, ctx.Err() // who gave up gets no list that lacks some
}

// listSandboxStats returns the statistics of the ready sandboxes that satisfy every part of filter.
func (s *Server) listSandboxStats(
	ctx context.Context, filter *runtime.PodSandboxStatsFilter,
) ([]*runtime.PodSandboxStats, error) {
	all, _, err := s.filterSandboxes(&runtime.PodSandboxFilter{
		Id: filter.GetId(), LabelSelector: filter.GetLabelSelector(),
	})
	if err != nil {
		return nil, err
	}
	s.stats.CatchUp(ctx)
	var sent sent
	containers := make(map[string][]*runtime.ContainerStats, len(all))
	for _, status := range s.runtime.Containers() {
		if sample := s.stats.Container(ctx, status, stats.AnyAge); sample != nil {
			containers[status.SandboxID] = append(containers[status.SandboxID], sent.container(status, sample))
		}
	}
	list := make([]*runtime.PodSandboxStats, 0, len(all))
	for _, status := range all {
		if sample := s.stats.Sandbox(ctx, status, stats.AnyAge); sample != nil {
			list = append(list, sent.sandbox(status, sample, containers[status.ID]))
		}
	}
	return list, ctx.Err()
}

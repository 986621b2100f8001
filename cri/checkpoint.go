package cri

import (
	"context"
	"fmt"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// CheckpointContainer writes the state of a running container to a file. The container goes on.
func (s *Server) CheckpointContainer(
	ctx context.Context, req *runtime.CheckpointContainerRequest,
) (*runtime.CheckpointContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := required("location", req.GetLocation()); err != nil {
		return nil, err
	}
	if req.GetTimeout() < 0 {
		return nil, invalidf("timeout %d: expected seconds, or 0 for the default", req.GetTimeout())
	}
	err := s.runtime.CheckpointContainer(ctx, req.GetContainerId(), req.GetLocation(), seconds(req.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return &runtime.CheckpointContainerResponse{}, nil
}

// CheckpointPod captures running containers of a sandbox at one moment into an empty directory. They go on.
func (s *Server) CheckpointPod(
	ctx context.Context, req *runtime.CheckpointPodRequest,
) (*runtime.CheckpointPodResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := required("output_path", req.GetOutputPath()); err != nil {
		return nil, err
	}
	if err := checkCheckpointCall(ctx, req.GetOptions()); err != nil {
		return nil, err
	}
	if err := s.runtime.CheckpointPod(ctx, req.GetPodSandboxId(), req.GetOutputPath(), req.GetContainerIds()); err != nil {
		return nil, err
	}
	return &runtime.CheckpointPodResponse{}, nil
}

// RestorePod makes a sandbox and its containers of what CheckpointPod wrote. StartContainer resumes each.
func (s *Server) RestorePod(ctx context.Context, req *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	if err := required("checkpoint_path", req.GetCheckpointPath()); err != nil {
		return nil, err
	}
	if req.GetConfig() == nil {
		return nil, invalidf("config is missing")
	}
	if err := checkCheckpointCall(ctx, req.GetOptions()); err != nil {
		return nil, err
	}
	request := &sandbox.RestoreRequest{
		Path: req.GetCheckpointPath(), Config: req.GetConfig(), Handler: req.GetRuntimeHandler(),
	}
	for i, config := range req.GetContainerConfigs() {
		field := fmt.Sprintf("container_configs[%d].metadata.name", i)
		if err := required(field, config.GetMetadata().GetName()); err != nil {
			return nil, err
		}
		image := config.GetImage().GetImage()
		if err := required(fmt.Sprintf("container_configs[%d].image.image", i), image); err != nil {
			return nil, err
		}
		config, imageID, imageRef, err := s.resolveImage(req.GetRuntimeHandler(), config)
		if err != nil {
			return nil, fmt.Errorf("find image %q: %w", image, err)
		}
		request.Containers = append(request.Containers,
			sandbox.RestoreContainer{Config: config, ImageID: imageID, ImageRef: imageRef})
	}
	restored, err := s.runtime.RestorePod(ctx, request)
	if err != nil {
		return nil, err
	}
	resp := &runtime.RestorePodResponse{PodSandboxId: restored.SandboxID}
	for i, id := range restored.Containers {
		resp.RestoredContainers = append(resp.RestoredContainers, &runtime.RestoredContainer{
			Name: request.Containers[i].Config.GetMetadata().GetName(), ContainerId: id,
		})
	}
	return resp, nil
}

// checkCheckpointCall refuses options, of which there are none, and a call without a deadline, which the CRI asks for.
func checkCheckpointCall(ctx context.Context, options map[string]string) error {
	for key := range options {
		return invalidf("options: %q is not known, expected none", key)
	}
	if _, ok := ctx.Deadline(); !ok {
		return invalidf("the call has no deadline, expected one")
	}
	return nil
}

package cri

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/distribution/reference"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/trace"
)

// CreateContainer makes a container of an image that is in the store. A retry with the same metadata joins the first
// call.
func (s *Server) CreateContainer(
	ctx context.Context, req *runtime.CreateContainerRequest,
) (*runtime.CreateContainerResponse, error) {
	config := req.GetConfig()
	if config == nil {
		return nil, invalidf("config is missing")
	}
	for _, field := range []struct{ name, value string }{
		{"pod_sandbox_id", req.GetPodSandboxId()},
		{"config.metadata.name", config.GetMetadata().GetName()},
		{"config.image.image", config.GetImage().GetImage()},
	} {
		if err := required(field.name, field.value); err != nil {
			return nil, err
		}
	}
	_, step := trace.Start(ctx, "find image")
	config, imageID, imageRef, err := s.resolveImage(s.handlerOf(req.GetPodSandboxId()), config)
	step.End()
	if err != nil {
		return nil, fmt.Errorf("find image %q: %w", req.GetConfig().GetImage().GetImage(), err)
	}
	id, err := s.runtime.CreateContainer(ctx, req.GetPodSandboxId(), config, imageID, imageRef)
	if err != nil {
		return nil, err
	}
	return &runtime.CreateContainerResponse{ContainerId: id}, nil
}

// resolveImage finds the image of a container as the runtime handler has it that its configuration names, or else
// handler, its sandbox's, or else the default one: what was pulled for one can be used by all. The configuration that
// it returns says which it was, so that the kubelet, which collects images by id and handler, sees that the image is in
// use.
func (s *Server) resolveImage(
	handler string, config *runtime.ContainerConfig,
) (_ *runtime.ContainerConfig, imageID, imageRef string, err error) {
	spec := config.GetImage()
	if err := s.checkImageHandlers(config); err != nil {
		return nil, "", "", err
	}
	if spec.GetRuntimeHandler() == "" && handler != "" {
		own := proto.CloneOf(config)
		own.Image.RuntimeHandler = handler
		if imageID, imageRef, err = s.images.Resolve(own.Image); err == nil {
			return own, imageID, imageRef, nil
		}
	}
	imageID, imageRef, err = s.images.Resolve(spec)
	return config, imageID, imageRef, err
}

// handlerOf is the runtime handler of a sandbox. One that is not there is reported by who needs it.
func (s *Server) handlerOf(sandboxID string) string {
	if status, err := s.runtime.Sandbox(sandboxID); err == nil {
		return status.Handler
	}
	return ""
}

// checkImageHandlers checks the runtime handlers that a container's image and those of its volumes are named with.
func (s *Server) checkImageHandlers(config *runtime.ContainerConfig) error {
	if err := s.checkImageHandler("config.image.runtime_handler", config.GetImage().GetRuntimeHandler()); err != nil {
		return err
	}
	for i, m := range config.GetMounts() {
		field := fmt.Sprintf("config.mounts[%d].image.runtime_handler", i)
		if err := s.checkImageHandler(field, m.GetImage().GetRuntimeHandler()); err != nil {
			return err
		}
	}
	return nil
}

// StartContainer starts a container that was created.
func (s *Server) StartContainer(
	ctx context.Context, req *runtime.StartContainerRequest,
) (*runtime.StartContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.runtime.StartContainer(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.StartContainerResponse{}, nil
}

// StopContainer stops a container and returns when it is gone; one that is exited or unknown is no error. A timeout
// that is not positive kills at once.
func (s *Server) StopContainer(
	ctx context.Context, req *runtime.StopContainerRequest,
) (*runtime.StopContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.runtime.StopContainer(ctx, req.GetContainerId(), seconds(req.GetTimeout())); err != nil {
		return nil, notMissing(err)
	}
	return &runtime.StopContainerResponse{}, nil
}

// RemoveContainer removes a container; one that is unknown is no error.
func (s *Server) RemoveContainer(
	ctx context.Context, req *runtime.RemoveContainerRequest,
) (*runtime.RemoveContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.runtime.RemoveContainer(ctx, req.GetContainerId()); err != nil {
		return nil, notMissing(err)
	}
	return &runtime.RemoveContainerResponse{}, nil
}

// ContainerStatus tells of a container.
func (s *Server) ContainerStatus(
	_ context.Context, req *runtime.ContainerStatusRequest,
) (*runtime.ContainerStatusResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	status, err := s.runtime.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtime.ContainerStatusResponse{Status: containerStatus(status)}
	if req.GetVerbose() {
		resp.Info = containerInfo(status)
	}
	return resp, nil
}

// ListContainers lists the containers that satisfy the filter.
func (s *Server) ListContainers(
	_ context.Context, req *runtime.ListContainersRequest,
) (*runtime.ListContainersResponse, error) {
	items, err := s.listContainers(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListContainersResponse{Containers: items}, nil
}

// StreamContainers is ListContainers in batches.
func (s *Server) StreamContainers(
	req *runtime.StreamContainersRequest, stream grpc.ServerStreamingServer[runtime.StreamContainersResponse],
) error {
	items, err := s.listContainers(req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(items, func(batch []*runtime.Container) error {
		return stream.Send(&runtime.StreamContainersResponse{Containers: batch})
	})
}

// ReopenContainerLog makes a running container's output go to a new log file.
func (s *Server) ReopenContainerLog(
	ctx context.Context, req *runtime.ReopenContainerLogRequest,
) (*runtime.ReopenContainerLogResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.runtime.ReopenLog(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.ReopenContainerLogResponse{}, nil
}

// containerState maps the states. One that is being removed is running for as long as its process lives.
func containerState(status *sandbox.ContainerStatus) runtime.ContainerState {
	switch status.State {
	case sandbox.ContainerCreating, sandbox.ContainerCreated:
		return runtime.ContainerState_CONTAINER_CREATED
	case sandbox.ContainerRunning:
		return runtime.ContainerState_CONTAINER_RUNNING
	case sandbox.ContainerExited:
		return runtime.ContainerState_CONTAINER_EXITED
	case sandbox.ContainerRemoving:
		if !status.Started.IsZero() && status.Finished.IsZero() {
			return runtime.ContainerState_CONTAINER_RUNNING
		}
		return runtime.ContainerState_CONTAINER_EXITED
	}
	return runtime.ContainerState_CONTAINER_UNKNOWN
}

func containerItem(status *sandbox.ContainerStatus) *runtime.Container {
	return &runtime.Container{
		Id:           status.ID,
		PodSandboxId: status.SandboxID,
		Metadata:     containerMetadata(status),
		Image:        containerImage(status),
		ImageId:      status.ImageID,
		ImageRef:     or(status.ImageRef, status.ImageID),
		State:        containerState(status),
		CreatedAt:    createdAt(status.Created),
		Labels:       status.Config.GetLabels(),
		Annotations:  status.Config.GetAnnotations(),
	}
}

// containerStatus translates. The mounts are those of the request and no others: the kubelet finds its termination log
// in them by the container's path.
func containerStatus(status *sandbox.ContainerStatus) *runtime.ContainerStatus {
	return &runtime.ContainerStatus{
		Id:          status.ID,
		Metadata:    containerMetadata(status),
		State:       containerState(status),
		CreatedAt:   createdAt(status.Created),
		StartedAt:   nanoseconds(status.Started),
		FinishedAt:  nanoseconds(status.Finished),
		ExitCode:    status.ExitCode,
		Image:       namedImage(status),
		ImageId:     status.ImageID,
		ImageRef:    or(status.ImageRef, status.ImageID, status.Config.GetImage().GetImage(), unknownImage),
		Reason:      status.Reason,
		Message:     status.Message,
		Labels:      status.Config.GetLabels(),
		Annotations: status.Config.GetAnnotations(),
		Mounts:      containerMounts(status),
		LogPath:     status.LogPath,
		Resources:   containerResources(status),
		User:        status.User,
		StopSignal:  status.StopSignal,
	}
}

// containerMounts are the mounts of the request, image volumes with what their image is by digest.
func containerMounts(status *sandbox.ContainerStatus) []*runtime.Mount {
	mounts := slices.Clone(status.Config.GetMounts())
	for i, m := range mounts {
		if ref := status.VolumeRefs[m.GetImage().GetImage()]; ref != "" {
			mounts[i] = proto.CloneOf(m)
			mounts[i].Image.ImageRef = ref
		}
	}
	return mounts
}

// unknownImage stands for the image of a container whose record could not be read.
const unknownImage = "unknown"

// containerMetadata and containerImage give what the kubelet's client insists on, like sandboxMetadata.
func containerMetadata(status *sandbox.ContainerStatus) *runtime.ContainerMetadata {
	m := status.Config.GetMetadata()
	if m.GetName() != "" {
		return m
	}
	return &runtime.ContainerMetadata{Name: status.ID, Attempt: m.GetAttempt()}
}

func containerImage(status *sandbox.ContainerStatus) *runtime.ImageSpec {
	if image := status.Config.GetImage(); image.GetImage() != "" {
		return image
	}
	return &runtime.ImageSpec{Image: or(status.ImageID, status.ImageRef, unknownImage)}
}

// namedImage is the image with the full form of the name that its user wrote, which the kubelet shows as the image of
// the pod's container; what it asked for was the image's id. Containerd gives the first tag of the image instead,
// whichever that is.
func namedImage(status *sandbox.ContainerStatus) *runtime.ImageSpec {
	image := containerImage(status)
	named, err := reference.ParseNormalizedNamed(image.GetUserSpecifiedImage())
	if err != nil {
		return image
	}
	image = proto.CloneOf(image)
	image.Image = reference.TagNameOnly(named).String()
	return image
}

func containerResources(status *sandbox.ContainerStatus) *runtime.ContainerResources {
	linux := status.Resources
	if linux == nil {
		linux = status.Config.GetLinux().GetResources()
	}
	if linux == nil {
		return nil
	}
	return &runtime.ContainerResources{Linux: linux}
}

// seconds makes a duration of n seconds; 0 for a negative n, the longest there is where n is longer.
func seconds(n int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Second)
	return time.Duration(min(max(n, 0), most)) * time.Second
}

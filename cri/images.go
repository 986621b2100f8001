package cri

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PullImage pulls an image for a runtime handler and returns its id.
func (s *Server) PullImage(ctx context.Context, req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	if err := required("image.image", req.GetImage().GetImage()); err != nil {
		return nil, err
	}
	if err := s.checkHandler("image.runtime_handler", req.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	id, err := s.images.PullImage(ctx, req.GetImage(), req.GetAuth())
	if err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: id}, nil
}

// ImageStatus tells of an image; for one that is not there the answer has none and is no error.
func (s *Server) ImageStatus(
	_ context.Context, req *runtime.ImageStatusRequest,
) (*runtime.ImageStatusResponse, error) {
	if err := s.checkImage(req.GetImage()); err != nil {
		return nil, err
	}
	image, ok := s.images.Status(req.GetImage())
	if !ok {
		return &runtime.ImageStatusResponse{}, nil
	}
	resp := &runtime.ImageStatusResponse{Image: image}
	if req.GetVerbose() {
		resp.Info = s.images.Info(req.GetImage())
	}
	return resp, nil
}

// checkImage checks how a request names an image.
func (s *Server) checkImage(image *runtime.ImageSpec) error {
	if err := required("image.image", image.GetImage()); err != nil {
		return err
	}
	return s.checkImageHandler("image.runtime_handler", image.GetRuntimeHandler())
}

// checkImageHandler is checkHandler for what is there already: images of a handler that was since taken out of the
// configuration can be seen and removed.
func (s *Server) checkImageHandler(field, handler string) error {
	if handler != "" && len(s.images.List(&runtime.ImageSpec{RuntimeHandler: handler})) > 0 {
		return nil
	}
	return s.checkHandler(field, handler)
}

// ListImages lists the images, each once per runtime handler that it was pulled for. A filter with a reference leaves
// the image of that reference and handler, one with a handler only those of the handler.
func (s *Server) ListImages(_ context.Context, req *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	images, err := s.listImages(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListImagesResponse{Images: images}, nil
}

func (s *Server) listImages(filter *runtime.ImageFilter) ([]*runtime.Image, error) {
	handler := filter.GetImage().GetRuntimeHandler()
	if err := s.checkImageHandler("filter.image.runtime_handler", handler); err != nil {
		return nil, err
	}
	return s.images.List(filter.GetImage()), nil
}

// StreamImages is ListImages in batches.
func (s *Server) StreamImages(
	req *runtime.StreamImagesRequest, stream grpc.ServerStreamingServer[runtime.StreamImagesResponse],
) error {
	images, err := s.listImages(req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(images, func(batch []*runtime.Image) error {
		return stream.Send(&runtime.StreamImagesResponse{Images: batch})
	})
}

// RemoveImage removes an image with all the names that it has for a handler; one that is not there is no error.
func (s *Server) RemoveImage(
	ctx context.Context, req *runtime.RemoveImageRequest,
) (*runtime.RemoveImageResponse, error) {
	if err := s.checkImage(req.GetImage()); err != nil {
		return nil, err
	}
	if err := s.images.Remove(ctx, req.GetImage()); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return nil, err
	}
	return &runtime.RemoveImageResponse{}, nil
}

// ImageFsInfo tells how much of their filesystem the images use. The containers' writable layers are on the same one,
// which is said by naming no other.
func (s *Server) ImageFsInfo(
	context.Context, *runtime.ImageFsInfoRequest,
) (*runtime.ImageFsInfoResponse, error) {
	usage := s.images.FsInfo()
	if usage == nil {
		return nil, fmt.Errorf("image filesystem usage is not known yet: %w", errdefs.ErrUnavailable)
	}
	if usage.GetUsedBytes() == nil || usage.GetInodesUsed() == nil {
		// The kubelet reads through both without asking whether they are there.
		usage = proto.CloneOf(usage)
		if usage.UsedBytes == nil {
			usage.UsedBytes = &runtime.UInt64Value{}
		}
		if usage.InodesUsed == nil {
			usage.InodesUsed = &runtime.UInt64Value{}
		}
	}
	return &runtime.ImageFsInfoResponse{ImageFilesystems: []*runtime.FilesystemUsage{usage}}, nil
}

package main

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/cri"
	"github.com/gantry-cri/gantry/cri/operator"
	"github.com/gantry-cri/gantry/imageservice"
)

// criImages is the image store as the CRI server wants it.
type criImages struct{ *imageservice.Service }

var _ cri.Images = criImages{}

// PullImage implements cri.ImageStore.
func (i criImages) PullImage(ctx context.Context, image *runtime.ImageSpec, auth *runtime.AuthConfig) (string, error) {
	return i.Pull(ctx, imageservice.PullRequest{Ref: image.GetImage(), Handler: image.GetRuntimeHandler(), Auth: auth})
}

// Info implements cri.ImageFacts. An image that is gone by now has none.
func (i criImages) Info(image *runtime.ImageSpec) map[string]string {
	info, err := i.Service.Info(image)
	if err != nil {
		klog.V(4).InfoS("No details of an image", "image", image.GetImage(), "err", err)
	}
	return info
}

// operatorImages is the image store as the operator's service wants it.
type operatorImages struct{ *imageservice.Service }

var _ operator.Images = operatorImages{}

// Pull implements operator.Images.
func (i operatorImages) Pull(
	ctx context.Context, ref string, credentials operator.Credentials, progress func(*operator.BlobProgress),
) (string, error) {
	request := imageservice.PullRequest{
		Ref: ref,
		Progress: func(p imageservice.Progress) {
			blob := &operator.BlobProgress{
				Digest: p.Digest, MediaType: p.MediaType, Offset: p.Offset, Total: p.Total,
				State: operator.BlobProgress_DOWNLOADING,
			}
			if p.Done {
				blob.State = operator.BlobProgress_DONE
			}
			progress(blob)
		},
	}
	if credentials != (operator.Credentials{}) {
		request.Auth = &runtime.AuthConfig{Username: credentials.Username, Password: credentials.Password}
	}
	return i.Service.Pull(ctx, request)
}

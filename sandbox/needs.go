package sandbox

import (
	"context"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Images is what a container needs of the image store. All methods may be called from several goroutines.
type Images interface {
	// Prepare makes the writable snapshot of a container on top of an image, or finds the one that an earlier call made,
	// and returns how to mount it (in order, Destination unused) and the image's configuration. image is any reference
	// that the store resolves, usually an image id. Nothing is mounted.
	// Errors: errdefs.ErrNotFound when the store does not have the image.
	Prepare(ctx context.Context, containerID, image string) ([]specs.Mount, *ocispec.Image, error)
	// PrepareVolume returns the mount (Destination unused) that shows subPath of an image, a directory or a regular file,
	// or all of it when empty, read-only, and the image's reference by digest, or id where it has none. Nothing is
	// mounted. The image stays until Release; a later call for the same container and image finds the same again. It
	// comes after Prepare.
	// Errors: errdefs.ErrNotFound when the store does not have the image, errdefs.ErrInvalidArgument when the image has
	// no such subPath.
	PrepareVolume(ctx context.Context, containerID, image, subPath string) (mount specs.Mount, imageRef string, err error)
	// Release removes the snapshot, and lets go of the volumes' images. It is idempotent and safe without Prepare.
	Release(ctx context.Context, containerID string) error
	// Retain removes every snapshot that Prepare made for a container that is not in containerIDs.
	Retain(ctx context.Context, containerIDs []string) error
}

// Layers is what a checkpoint needs of the image store. All methods may be called from several goroutines.
type Layers interface {
	// WriteLayer writes what a container has changed of its image, as the tar of an image's layer. The container must
	// not change it meanwhile. It ends soon after ctx.
	WriteLayer(ctx context.Context, containerID string, w io.Writer) error
	// ReadLayer puts what WriteLayer wrote into the snapshot of another container of the same image. It comes after
	// Prepare and before the container's start.
	ReadLayer(ctx context.Context, containerID string, r io.Reader) error
}

// Network is what a sandbox needs of the network. All methods may be called from several goroutines; the caller's
// context bounds them.
type Network interface {
	// Attach adds the interfaces of the sandbox to its network namespace and returns its addresses, the primary one
	// first. What it did is recorded so that Detach can undo it in another process.
	Attach(ctx context.Context, sandboxID, netns string, config *runtime.PodSandboxConfig) (ips []string, err error)
	// Detach undoes Attach. It is idempotent, safe without Attach and after an Attach that failed half-way, and works
	// when the namespace is gone (netns is then "").
	Detach(ctx context.Context, sandboxID, netns string, config *runtime.PodSandboxConfig) error
	// Retain detaches what is recorded for sandboxes that are not in sandboxIDs.
	Retain(ctx context.Context, sandboxIDs []string) error
}

package cri

import (
	"context"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

// Runtime is all that the server needs of the sandboxes and containers. *sandbox.Manager is one; its methods say what
// each does and which errors it returns. All methods may be called from several goroutines.
type Runtime interface {
	Sandboxes
	Containers
	ContainerReader
	Processes
	Checkpoints
	Node
	Events
}

var _ Runtime = (*sandbox.Manager)(nil)

// Sandboxes is the life of sandboxes. Sandbox and Sandboxes are reads of memory.
type Sandboxes interface {
	Run(ctx context.Context, config *runtime.PodSandboxConfig, handler string) (string, error)
	Stop(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	UpdateSandbox(ctx context.Context, id string, overhead, resources *runtime.LinuxContainerResources) error
	Sandbox(id string) (*sandbox.SandboxStatus, error)
	Sandboxes() []*sandbox.SandboxStatus
}

// Containers is the life of containers.
type Containers interface {
	CreateContainer(
		ctx context.Context, sandboxID string, config *runtime.ContainerConfig, imageID, imageRef string,
	) (string, error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, timeout time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	UpdateContainer(ctx context.Context, id string, resources *runtime.LinuxContainerResources) error
}

// ContainerReader tells of containers. Both are reads of memory.
type ContainerReader interface {
	Container(id string) (*sandbox.ContainerStatus, error)
	Containers() []*sandbox.ContainerStatus
}

// Processes is what can be done with a running container's processes and their output.
type Processes interface {
	Exec(ctx context.Context, id string, opts sandbox.ExecOptions) (exitCode int32, err error)
	Attach(ctx context.Context, id string, opts sandbox.AttachOptions) error
	ReopenLog(ctx context.Context, id string) error
}

// Checkpoints captures what runs.
type Checkpoints interface {
	CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error
	CheckpointPod(ctx context.Context, id, path string, containerIDs []string) error
	RestorePod(ctx context.Context, request *sandbox.RestoreRequest) (*sandbox.Restored, error)
}

// Node tells of what all containers share. Both are reads of memory.
type Node interface {
	CgroupDriver() string
	KeeperReady() error
}

// Events tells of changes of state.
type Events interface {
	Subscribe() (events <-chan sandbox.Event, cancel func())
}

// Stats is what the server needs of the sampler; *stats.Sampler says what the methods do. Container and Sandbox are
// reads of memory unless a sample is missing or older than maxAge, for which ctx bounds the wait; CatchUp is for before
// a list.
type Stats interface {
	CatchUp(ctx context.Context)
	Container(ctx context.Context, status *sandbox.ContainerStatus, maxAge time.Duration) *stats.Sample
	Sandbox(ctx context.Context, status *sandbox.SandboxStatus, maxAge time.Duration) *stats.Sample
}

var _ Stats = (*stats.Sampler)(nil)

// Images is all that the server needs of the image store. All methods may be called from several goroutines. An
// ImageSpec names an image by two fields: image, any form of its name (id, unique prefix of an id, tag, digest, short
// name), and runtime_handler, the handler that it was pulled for.
type Images interface {
	ImageStore
	ImageFacts
}

// ImageStore is what is in the image store and how it changes. Those without a context are reads of memory.
type ImageStore interface {
	// PullImage pulls an image and returns its id. auth may be nil. Two pulls of one image share the work, each obeys
	// its own ctx. An error that satisfies ErrRegistryUnavailable or ErrSignatureValidationFailed of
	// k8s.io/cri-api/pkg/errors, or whose text begins with one of their texts, gets a reason of its own in the pod.
	PullImage(ctx context.Context, image *runtime.ImageSpec, auth *runtime.AuthConfig) (string, error)
	// Status returns the image, the same for every name of one image, and whether there is one.
	Status(image *runtime.ImageSpec) (*runtime.Image, bool)
	// List returns one entry per image id and handler: all of them, with a filter those that it names, or those of its
	// handler when it has no name.
	List(filter *runtime.ImageSpec) []*runtime.Image
	// Remove removes an image with all its names for its handler. It is idempotent; an unknown image is no error.
	Remove(ctx context.Context, image *runtime.ImageSpec) error
	// Resolve returns the id of the image and its reference by digest, or its id where it has none.
	// Errors: errdefs.ErrNotFound; errdefs.ErrInvalidArgument for a name that is ambiguous or no reference.
	Resolve(image *runtime.ImageSpec) (imageID, imageRef string, err error)
}

// ImageFacts tells of images and the disk below them. Both are reads of memory.
type ImageFacts interface {
	// Info returns what a verbose ImageStatus shows besides the image, as JSON by key.
	Info(image *runtime.ImageSpec) map[string]string
	// FsInfo returns what the images use of their filesystem, as of some seconds ago; never nil.
	FsInfo() *runtime.FilesystemUsage
}

// Network is what the server needs of the network.
type Network interface {
	// Status returns nil, or why sandboxes cannot be given a network just now. It is a read of memory.
	Status() error
	// SetPodCIDR tells the node's ranges of pod addresses: one, or one of each family with a comma between. A network
	// with ranges of its own ignores it. Errors: errdefs.ErrInvalidArgument for what is no such text.
	SetPodCIDR(cidr string) error
}

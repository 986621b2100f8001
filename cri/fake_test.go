package cri

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/stats"
)

// fakeRuntime is a Runtime in memory. Each method records its call; err, if set, is what every method that can fail
// returns.
type fakeRuntime struct {
	mu         sync.Mutex
	calls      []string
	sandboxes  []*sandbox.SandboxStatus
	containers []*sandbox.ContainerStatus
	err        error
	keeperErr  error
	driver     string
	exec       func(ctx context.Context, id string, opts sandbox.ExecOptions) (int32, error)
	attach     func(ctx context.Context, id string, opts sandbox.AttachOptions) error
	events     chan sandbox.Event // nil gives one that is closed
	subscribed atomic.Int32
	created    *runtime.ContainerConfig // by the last CreateContainer
}

func (f *fakeRuntime) call(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fakeRuntime) called() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.calls, "; ")
}

func (f *fakeRuntime) Run(_ context.Context, c *runtime.PodSandboxConfig, handler string) (string, error) {
	return "sandbox-of-" + c.GetMetadata().GetName(), f.call("run %s %q", c.GetMetadata().GetName(), handler)
}

func (f *fakeRuntime) Stop(_ context.Context, id string) error   { return f.call("stop %s", id) }
func (f *fakeRuntime) Remove(_ context.Context, id string) error { return f.call("remove %s", id) }

func (f *fakeRuntime) UpdateSandbox(_ context.Context, id string, overhead, resources *runtime.LinuxContainerResources) error {
	return f.call("update %s to %d and %d", id, overhead.GetMemoryLimitInBytes(), resources.GetMemoryLimitInBytes())
}

func (f *fakeRuntime) Sandbox(id string) (*sandbox.SandboxStatus, error) {
	for _, s := range f.sandboxes {
		if strings.HasPrefix(s.ID, id) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("sandbox %s: %w", id, errdefs.ErrNotFound)
}

func (f *fakeRuntime) Sandboxes() []*sandbox.SandboxStatus { return f.sandboxes }

func (f *fakeRuntime) CreateContainer(
	_ context.Context, sandboxID string, c *runtime.ContainerConfig, imageID, imageRef string,
) (string, error) {
	f.created = c
	name := c.GetMetadata().GetName()
	return "container-of-" + name, f.call("create %s in %s of %s %s", name, sandboxID, imageID, imageRef)
}

func (f *fakeRuntime) StartContainer(_ context.Context, id string) error {
	return f.call("start %s", id)
}

func (f *fakeRuntime) StopContainer(_ context.Context, id string, timeout time.Duration) error {
	return f.call("stop %s %v", id, timeout)
}

func (f *fakeRuntime) RemoveContainer(_ context.Context, id string) error {
	return f.call("remove %s", id)
}

func (f *fakeRuntime) UpdateContainer(_ context.Context, id string, r *runtime.LinuxContainerResources) error {
	return f.call("update %s to %d", id, r.MemoryLimitInBytes)
}

func (f *fakeRuntime) Container(id string) (*sandbox.ContainerStatus, error) {
	for _, c := range f.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

func (f *fakeRuntime) Containers() []*sandbox.ContainerStatus { return f.containers }

func (f *fakeRuntime) Exec(ctx context.Context, id string, opts sandbox.ExecOptions) (int32, error) {
	if err := f.call("exec %s in %s", strings.Join(opts.Args, " "), id); err != nil || f.exec == nil {
		return 0, err
	}
	return f.exec(ctx, id, opts)
}

func (f *fakeRuntime) Attach(ctx context.Context, id string, opts sandbox.AttachOptions) error {
	if err := f.call("attach to %s", id); err != nil || f.attach == nil {
		return err
	}
	return f.attach(ctx, id, opts)
}

func (f *fakeRuntime) Subscribe() (<-chan sandbox.Event, func()) {
	f.subscribed.Add(1)
	events := f.events
	if events == nil {
		events = make(chan sandbox.Event)
		close(events)
	}
	return events, func() { f.subscribed.Add(-1) }
}

func (f *fakeRuntime) CheckpointContainer(_ context.Context, id, location string, timeout time.Duration) error {
	return f.call("checkpoint %s to %s within %v", id, location, timeout)
}

func (f *fakeRuntime) CheckpointPod(_ context.Context, id, path string, containerIDs []string) error {
	return f.call("checkpoint %v of %s to %s", containerIDs, id, path)
}

func (f *fakeRuntime) RestorePod(_ context.Context, r *sandbox.RestoreRequest) (*sandbox.Restored, error) {
	if err := f.call("restore %s of %d from %s", r.Config.GetMetadata().GetName(), len(r.Containers), r.Path); err != nil {
		return nil, err
	}
	restored := &sandbox.Restored{SandboxID: "restored"}
	for _, c := range r.Containers {
		restored.Containers = append(restored.Containers, "container-of-"+c.Config.GetMetadata().GetName())
	}
	return restored, nil
}

func (f *fakeRuntime) ReopenLog(_ context.Context, id string) error { return f.call("reopen %s", id) }
func (f *fakeRuntime) CgroupDriver() string                         { return f.driver }
func (f *fakeRuntime) KeeperReady() error                           { return f.keeperErr }

// fakeImages is an image store in memory, by every ref that it resolves, with the handler in front of it if there is one.
type fakeImages struct {
	mu      sync.Mutex
	images  map[string]*runtime.Image
	usage   *runtime.FilesystemUsage
	pull    func(ctx context.Context, image *runtime.ImageSpec, auth *runtime.AuthConfig) (string, error)
	removed []string
	err     error
}

func (f *fakeImages) PullImage(
	ctx context.Context, image *runtime.ImageSpec, auth *runtime.AuthConfig,
) (string, error) {
	if f.pull == nil {
		return "sha256:pulled", f.err
	}
	return f.pull(ctx, image, auth)
}

func (f *fakeImages) Status(spec *runtime.ImageSpec) (*runtime.Image, bool) {
	image, ok := f.images[spec.GetRuntimeHandler()+spec.GetImage()]
	return image, ok
}

func (f *fakeImages) List(filter *runtime.ImageSpec) []*runtime.Image {
	var list []*runtime.Image
	named, _ := f.Status(filter)
	for ref, image := range f.images {
		handler := image.GetSpec().GetRuntimeHandler()
		switch {
		case ref != handler+image.Id:
		case filter.GetImage() != "" && named != image:
		case filter.GetImage() == "" && filter.GetRuntimeHandler() != "" && handler != filter.RuntimeHandler:
		default:
			list = append(list, image)
		}
	}
	return list
}

func (f *fakeImages) Remove(_ context.Context, spec *runtime.ImageSpec) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = append(f.removed, spec.GetRuntimeHandler()+spec.GetImage())
	return f.err
}

func (f *fakeImages) Resolve(spec *runtime.ImageSpec) (string, string, error) {
	image, ok := f.Status(spec)
	if !ok {
		return "", "", errdefs.ErrNotFound
	}
	return image.Id, image.RepoDigests[0], nil
}

func (f *fakeImages) Info(spec *runtime.ImageSpec) map[string]string {
	return map[string]string{"info": `{"ref":"` + spec.GetImage() + `"}`}
}

func (f *fakeImages) FsInfo() *runtime.FilesystemUsage { return f.usage }

// fakeStats has samples by the ids of containers and sandboxes, and remembers how old they might have been and how often
// somebody had it catch up.
type fakeStats struct {
	samples  map[string]*stats.Sample
	maxAge   time.Duration
	caughtUp int
}

func (f *fakeStats) CatchUp(context.Context) { f.caughtUp++ }

func (f *fakeStats) Container(_ context.Context, status *sandbox.ContainerStatus, maxAge time.Duration) *stats.Sample {
	f.maxAge = maxAge
	return f.samples[status.ID]
}

func (f *fakeStats) Sandbox(ctx context.Context, status *sandbox.SandboxStatus, maxAge time.Duration) *stats.Sample {
	f.maxAge = maxAge
	if ctx.Err() != nil {
		return nil
	}
	return f.samples[status.ID]
}

type fakeNetwork struct {
	err, cidrErr error
	cidrs        []string
}

func (f *fakeNetwork) Status() error { return f.err }

func (f *fakeNetwork) SetPodCIDR(cidr string) error {
	f.cidrs = append(f.cidrs, cidr)
	return f.cidrErr
}

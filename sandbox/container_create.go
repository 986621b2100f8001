package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/host"
	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/namespace"
	"github.com/gantry-cri/gantry/sandbox/spec"
	"github.com/gantry-cri/gantry/trace"
)

// createTimeout bounds the making of a container, of which a volume on a slow disk may be the longest part.
const createTimeout = 2 * time.Minute

// CreateContainer makes a container, whose process StartContainer starts, and returns its id. imageID and imageRef are
// what the image store resolved config.Image to. The same name and attempt in the same sandbox again joins or returns
// what is there, or gives errdefs.ErrAlreadyExists when that has another configuration.
func (m *Manager) CreateContainer(
	ctx context.Context, sandboxID string, config *runtime.ContainerConfig, imageID, imageRef string,
) (string, error) {
	if config.GetMetadata().GetName() == "" {
		return "", fmt.Errorf("config.metadata.name is empty: %w", errdefs.ErrInvalidArgument)
	}
	s, err := m.findSandbox(sandboxID)
	if err != nil {
		return "", err
	}
	c := s.newContainer(newID(), config, time.Now())
	if err := c.setUp(imageID, imageRef); err != nil {
		return "", err
	}
	existing, err := s.addContainer(c)
	if err != nil {
		return "", err
	}
	if existing != nil {
		return existing.join(ctx, config)
	}
	trace.About(ctx, c.subject())
	if err := c.making.do(ctx, func() error { return c.make(ctx) }); err != nil {
		return "", fmt.Errorf("create container %s: %w", config.GetMetadata().GetName(), err)
	}
	return c.id, nil
}

// setUp fills in the status of a new container.
func (c *Container) setUp(imageID, imageRef string) (err error) {
	st, sandbox := *c.Status(), c.s.Status()
	st.ImageID, st.ImageRef = imageID, imageRef
	st.CgroupPath = c.m.cgroupfsPath(sandbox.CgroupParent, c.id)
	st.LogPath, err = logPath(sandbox.Config, st.Config)
	c.status.Store(&st)
	return err
}

// join waits for a container that is being made by an earlier call of the same name and attempt. What the first call
// brought counts: the kubelet's retry differs from it in the order of variables.
func (c *Container) join(ctx context.Context, config *runtime.ContainerConfig) (string, error) {
	creating := c.Status().State == ContainerCreating
	trace.About(ctx, c.subject())
	if err := c.making.do(ctx, func() error { return c.make(ctx) }); err != nil {
		return "", fmt.Errorf("create container %s: %w", config.GetMetadata().GetName(), err)
	}
	if !creating && !proto.Equal(c.Status().Config, config) {
		return "", fmt.Errorf("container %s of sandbox %s has the same name and attempt and another configuration: %w",
			c.id, c.s.id, errdefs.ErrAlreadyExists)
	}
	return c.id, nil
}

// maxFileName is the kernel's limit for one name in a path (NAME_MAX).
const maxFileName = 255

// logPath is where the container's log goes: below the sandbox's log directory, and nowhere else.
func logPath(sandbox *runtime.PodSandboxConfig, config *runtime.ContainerConfig) (string, error) {
	dir, rel := sandbox.GetLogDirectory(), config.GetLogPath()
	if dir == "" || rel == "" {
		return "", nil
	}
	if !filepath.IsLocal(rel) || strings.ContainsRune(rel, 0) {
		return "", fmt.Errorf("config.log_path %q: expected a path relative to the sandbox's log_directory: %w",
			rel, errdefs.ErrInvalidArgument)
	}
	for name := range strings.SplitSeq(rel, "/") {
		if len(name) > maxFileName {
			return "", fmt.Errorf("config.log_path: a name in it has %d bytes, expected at most %d: %w",
				len(name), maxFileName, errdefs.ErrInvalidArgument)
		}
	}
	return filepath.Join(dir, rel), nil
}

// make does what CreateContainer asked for, once; a later call finds it done. Of caller it takes the timeline only.
func (c *Container) make(caller context.Context) error {
	if c.Status().State != ContainerCreating {
		return nil
	}
	ctx, done := c.work(caller, createTimeout)
	defer done()
	err := c.makeSteps(ctx)
	if err == nil {
		return nil
	}
	if rmErr := c.remove(); rmErr != nil {
		// Nobody knows the id, so nobody would ask again: the sandbox's removal, or the next start's recovery, does.
		klog.ErrorS(rmErr, "Container that could not be made could not be removed either",
			"container", c.id, "sandbox", c.s.id)
		err = errors.Join(err, fmt.Errorf("undo: %w", rmErr))
	}
	return err
}

// makeSteps is the story of a container before its start: record, snapshot, spec. Whatever it leaves, remove undoes.
func (c *Container) makeSteps(ctx context.Context) error {
	c.m.keeper.expect()
	steps := trace.Steps(ctx)
	defer steps.End()
	steps.Next("write record")
	if err := os.MkdirAll(c.dir(), 0o700); err != nil {
		return fmt.Errorf("make record directory: %w", err)
	}
	if err := c.save(c.Status(), false); err != nil {
		return err
	}
	steps.End()
	b, image, err := c.prepare(ctx)
	if err != nil {
		return err
	}
	if err := c.takeCheckpoint(ctx); err != nil {
		return err
	}
	signal, err := spec.StopSignal(c.Status().Config, image.Config.StopSignal)
	if err != nil {
		return err
	}
	steps.Next("write record")
	st := *c.Status()
	st.StopSignal, st.VolumeRefs = signal, b.volumeRefs
	if err := c.save(&st, true); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.built = b
	return c.transitionLocked(ContainerCreated, func(st *ContainerStatus) {
		st.StopSignal, st.VolumeRefs = signal, b.volumeRefs
	})
}

// prepare makes the container's snapshot and its spec. It may be called again for a container that has them.
func (c *Container) prepare(ctx context.Context) (*build, *ocispec.Image, error) {
	steps := trace.Steps(ctx)
	defer steps.End()
	st := c.Status()
	rootfs, image, err := c.m.config.Images.Prepare(steps.Next("prepare snapshot"), c.id, st.ImageID)
	if err != nil {
		return nil, nil, fmt.Errorf("prepare root filesystem: %w", err)
	}
	in, volumeRefs, err := c.specInput(steps.Next("gather what the spec needs"), &image.Config)
	if err != nil {
		return nil, nil, err
	}
	steps.Next("build spec")
	s, user, err := spec.Build(in)
	if err != nil {
		return nil, nil, err
	}
	steps.Next("relabel and inject devices")
	if err := host.RequireAppArmor(s.Process.ApparmorProfile); err != nil {
		return nil, nil, err
	}
	in.Files.Shm = c.m.pins.Path(in.Files.Shm) // the spec has the keeper's name for it
	if err := host.Relabel(ctx, &in); err != nil {
		return nil, nil, err
	}
	if err := host.InjectCDI(ctx, c.m.config.CDISpecDirs, s, &user, in.Config.GetCDIDevices()); err != nil {
		return nil, nil, err
	}
	rootfs = host.LabelRootfs(rootfs, in.Labels.Mount)
	return &build{spec: s, user: user, rootfs: rootfs, volumeRefs: volumeRefs}, image, nil
}

// specInput finds out all that the spec depends on, and the references by digest of the images of volumes.
func (c *Container) specInput(
	ctx context.Context, image *ocispec.ImageConfig,
) (in spec.Input, volumeRefs map[string]string, err error) {
	st, sandbox := c.Status(), c.s.Status()
	in = spec.Input{
		ID: c.id, Sandbox: sandbox.Config, Config: configWith(st), Image: image, Files: c.s.files(sandbox),
		CgroupsPath: c.m.cgroupsPath(sandbox.CgroupParent, c.id),
	}
	if in.Node, err = c.m.nodeOf(sandbox); err != nil {
		return in, nil, err
	}
	steps := trace.Steps(ctx)
	defer steps.End()
	in.Host, err = host.Gather(steps.Next("look up host paths and devices"), sandbox.Config, st.Config,
		c.m.config.MakeMissingSources)
	if err != nil {
		return in, nil, err
	}
	volumes := steps.Next("prepare volumes")
	if in.Host.Volumes, volumeRefs, err = c.volumes(volumes, st.Config.GetMounts()); err != nil {
		return in, nil, err
	}
	if in.Labels, err = c.labels(sandbox); err != nil {
		return in, nil, err
	}
	in.Namespaces, err = c.namespaces(steps.Next("find namespaces"), sandbox)
	return in, volumeRefs, err
}

// configWith is the container's configuration with the limits in force.
func configWith(st *ContainerStatus) *runtime.ContainerConfig {
	if st.Resources == st.Config.GetLinux().GetResources() {
		return st.Config
	}
	config := proto.CloneOf(st.Config)
	if config.Linux == nil {
		config.Linux = &runtime.LinuxContainerConfig{}
	}
	config.Linux.Resources = st.Resources
	return config
}

func (s *Sandbox) files(st *SandboxStatus) spec.Files {
	dir := s.m.sandboxDir(s.id)
	f := spec.Files{
		Hostname:   filepath.Join(dir, hostnameFile),
		Hosts:      filepath.Join(dir, hostsFile),
		ResolvConf: filepath.Join(dir, resolvFile),
		Shm:        filepath.Join(s.m.pinDir(s.id), namespace.Shm),
	}
	if st.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == runtime.NamespaceMode_NODE {
		f.Shm = "/dev/shm"
	}
	return f
}

// namespaces are the paths of the namespaces that the container joins.
func (c *Container) namespaces(ctx context.Context, sandbox *SandboxStatus) (spec.Namespaces, error) {
	pins := c.m.pinDir(c.s.id)
	ns := spec.Namespaces{Network: c.s.netnsPin(sandbox), User: c.s.userNS()}
	if sandbox.NetNS != "" {
		ns.UTS = filepath.Join(pins, namespace.UTS)
	}
	if sandbox.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() != runtime.NamespaceMode_NODE {
		ns.IPC = filepath.Join(pins, namespace.IPC)
	}
	opts := c.Status().Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	pid := 0
	var err error
	switch opts.GetPid() {
	case runtime.NamespaceMode_POD:
		pid, err = c.s.ensurePodInit(ctx)
	case runtime.NamespaceMode_TARGET:
		pid, err = c.targetPID(opts.GetTargetId())
	}
	if err != nil {
		return ns, err
	}
	if pid != 0 {
		ns.PID = fmt.Sprintf("/proc/%d/ns/pid", pid)
	}
	return ns, nil
}

// targetPID is the process whose PID namespace a debugging container joins.
func (c *Container) targetPID(targetID string) (int, error) {
	const field = "linux.security_context.namespace_options.target_id"
	target, err := c.m.findContainer(targetID)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", field, err)
	}
	st := target.Status()
	if st.SandboxID != c.s.id {
		return 0, fmt.Errorf("%s %q: expected a container of the same sandbox: %w", field, targetID,
			errdefs.ErrInvalidArgument)
	}
	if st.State != ContainerRunning {
		return 0, fmt.Errorf("%s %q: container is %s, expected running: %w", field, targetID, st.State,
			errdefs.ErrFailedPrecondition)
	}
	return st.PID, nil
}

// ensurePodInit starts the tiny init of the sandbox's shared PID namespace, when the first container needs it.
func (s *Sandbox) ensurePodInit(ctx context.Context) (int, error) {
	err := s.podInit.do(ctx, func() error {
		if s.Status().InitPID != 0 {
			return nil
		}
		work, cancel := background(createTimeout)
		defer cancel()
		pid, err := s.m.keeper.podInit(trace.With(work, ctx), keeper.PodInitRequest{
			ID: s.id, Dir: s.m.sandboxDir(s.id), CgroupsPath: s.m.cgroupsPath(s.Status().CgroupParent, s.id),
			SystemdCgroup: s.m.config.CgroupDriver == DriverSystemd, UserNS: s.userNS(), NetNS: s.netnsPin(s.Status()),
		})
		if err != nil {
			return err
		}
		s.setPodInit(pid)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("start the init of the shared PID namespace: %w", err)
	}
	return s.Status().InitPID, nil
}

func (s *Sandbox) setPodInit(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setLocked(func(st *SandboxStatus) { st.InitPID = pid })
}

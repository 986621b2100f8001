package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const podVersion = 1

// Pod is what was captured of a pod. It is pod.json.
type Pod struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Handler string `json:"handler,omitempty"`
	// Config is the sandbox's configuration, as the CRI's message.
	Config     json.RawMessage `json:"config"`
	Containers []PodContainer  `json:"containers"`
}

// PodContainer is one container of a pod. Its files are in the directory that is named after its id.
type PodContainer struct {
	ID       string `json:"id"`
	ImageID  string `json:"imageID"`
	ImageRef string `json:"imageRef"`
	// Config is the container's configuration, as the CRI's message.
	Config json.RawMessage `json:"config"`

	config *runtime.ContainerConfig
}

// NewPod describes a pod without containers.
func NewPod(id, handler string, config *runtime.PodSandboxConfig) (*Pod, error) {
	b, err := protojson.Marshal(config)
	return &Pod{Version: podVersion, ID: id, Handler: handler, Config: b}, err
}

// Add adds a container.
func (p *Pod) Add(id, imageID, imageRef string, config *runtime.ContainerConfig) error {
	b, err := protojson.Marshal(config)
	p.Containers = append(p.Containers,
		PodContainer{ID: id, ImageID: imageID, ImageRef: imageRef, Config: b, config: config})
	return err
}

// Write completes the checkpoint in dir.
func (p *Pod) Write(dir string) error { return writeJSON(filepath.Join(dir, PodFile), p) }

// ReadPod reads the checkpoint in dir. Errors: errdefs.ErrInvalidArgument when there is none that can be read.
func ReadPod(dir string) (*Pod, error) {
	var p Pod
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("checkpoint_path %q: "+format+": %w",
			append(append([]any{dir}, args...), errdefs.ErrInvalidArgument)...)
	}
	err := readJSON(filepath.Join(dir, PodFile), &p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, invalid("there is no checkpoint of a pod (no %s)", PodFile)
	}
	if err != nil {
		return nil, invalid("%v", err)
	}
	if p.Version != podVersion {
		return nil, invalid("version %d, expected %d", p.Version, podVersion)
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		if c.ID == "" || !filepath.IsLocal(c.ID) || strings.ContainsRune(c.ID, '/') {
			return nil, invalid("id %q of a container", c.ID)
		}
		c.config = &runtime.ContainerConfig{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(c.Config, c.config); err != nil {
			return nil, invalid("container %s: %v", c.ID, err)
		}
	}
	return &p, nil
}

// MatchSandbox returns an error unless a sandbox of this configuration can have the processes.
func (p *Pod) MatchSandbox(config *runtime.PodSandboxConfig) error {
	was := &runtime.PodSandboxConfig{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(p.Config, was); err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	old, new := was.GetLinux().GetSecurityContext(), config.GetLinux().GetSecurityContext()
	if !proto.Equal(old.GetNamespaceOptions(), new.GetNamespaceOptions()) {
		return mismatch("config.linux.security_context.namespace_options", old.GetNamespaceOptions(),
			new.GetNamespaceOptions())
	}
	return nil
}

// Container finds a container by the name of its metadata, or nil.
func (p *Pod) Container(name string) *PodContainer {
	for i := range p.Containers {
		if p.Containers[i].config.GetMetadata().GetName() == name {
			return &p.Containers[i]
		}
	}
	return nil
}

// Names are the names of the containers, sorted.
func (p *Pod) Names() []string {
	var names []string
	for _, c := range p.Containers {
		names = append(names, c.config.GetMetadata().GetName())
	}
	slices.Sort(names)
	return names
}

// mismatch says that a configuration does not describe what was captured.
func mismatch(field string, was, now any) error {
	return fmt.Errorf("%s is %v, in the checkpoint it is %v: %w", field, now, was, errdefs.ErrFailedPrecondition)
}

// Match returns an error unless a container of this configuration can be given the process: what describes the process
// must be as it was, and so must be what is mounted where, and the limits of its rights.
func (c *PodContainer) Match(config *runtime.ContainerConfig, imageID string) error {
	was := c.config
	if imageID != c.ImageID {
		return mismatch("image", c.ImageID, imageID)
	}
	for _, f := range []struct {
		name     string
		was, now []string
	}{
		{"command", was.GetCommand(), config.GetCommand()},
		{"args", was.GetArgs(), config.GetArgs()},
		{"envs", variables(was), variables(config)},
		{"working_dir", []string{was.GetWorkingDir()}, []string{config.GetWorkingDir()}},
		{"mounts", places(was), places(config)},
		{"devices", devices(was), devices(config)},
	} {
		if !slices.Equal(f.was, f.now) {
			return mismatch(f.name, f.was, f.now)
		}
	}
	if old, new := was.GetLinux().GetSecurityContext(), config.GetLinux().GetSecurityContext(); !proto.Equal(old, new) {
		return mismatch("linux.security_context", old, new)
	}
	if was.GetStdin() != config.GetStdin() || was.GetStdinOnce() != config.GetStdinOnce() ||
		was.GetTty() != config.GetTty() {
		return mismatch("stdin, stdin_once, tty", []bool{was.GetStdin(), was.GetStdinOnce(), was.GetTty()},
			[]bool{config.GetStdin(), config.GetStdinOnce(), config.GetTty()})
	}
	return nil
}

// variables are the environment without its order, which the kubelet does not keep.
func variables(c *runtime.ContainerConfig) (list []string) {
	for _, e := range c.GetEnvs() {
		list = append(list, e.GetKey()+"="+string(e.GetValue()))
	}
	slices.Sort(list)
	return list
}

// places are where something is mounted and how. What is mounted may be another thing.
func places(c *runtime.ContainerConfig) (list []string) {
	for _, m := range c.GetMounts() {
		place := filepath.Clean(m.GetContainerPath()) + ":rw"
		if m.GetReadonly() {
			place = filepath.Clean(m.GetContainerPath()) + ":ro"
		}
		list = append(list, place)
	}
	slices.Sort(list)
	return list
}

func devices(c *runtime.ContainerConfig) (list []string) {
	for _, d := range c.GetDevices() {
		list = append(list, d.GetContainerPath()+":"+d.GetPermissions())
	}
	for _, d := range c.GetCDIDevices() {
		list = append(list, d.GetName())
	}
	slices.Sort(list)
	return list
}

package sandbox

import (
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxState is where a sandbox is in its life; see the drawing above Sandbox.
type SandboxState string

// The states of a sandbox.
const (
	SandboxCreating SandboxState = "creating"
	SandboxReady    SandboxState = "ready"
	SandboxStopping SandboxState = "stopping"
	SandboxStopped  SandboxState = "stopped"
	SandboxRemoving SandboxState = "removing"
	// SandboxUnknown is a sandbox whose record cannot be read. It is listed and can be removed.
	SandboxUnknown SandboxState = "unknown"
)

// ContainerState is where a container is in its life; see the drawing above Container.
type ContainerState string

// The states of a container.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
	// ContainerUnknown is a container whose record cannot be read. It is listed and can be removed.
	ContainerUnknown ContainerState = "unknown"
)

// SandboxStatus is all there is to know of a sandbox at one moment. It is immutable: neither the sandbox nor a reader
// changes it or what it points to.
type SandboxStatus struct {
	ID string
	// Config is what RunPodSandbox was given, verbatim; never nil.
	Config *runtime.PodSandboxConfig
	// Handler is the runtime handler, "" for the default one.
	Handler string
	State   SandboxState
	Created time.Time
	// IPs are the pod's addresses, the primary one first; empty on the host network.
	IPs []string
	// NetNS is the path of the network namespace, for this process and those that it tells; empty on the host network.
	NetNS string
	// CgroupParent is the cgroup (cgroupfs form) below which the containers' cgroups are.
	CgroupParent string
	// InitPID is the tiny init of the shared PID namespace, which has the cgroup of the sandbox's id below CgroupParent;
	// 0 when there is none.
	InitPID int
	// SELinuxLevel is the level of the containers' labels; empty without SELinux.
	SELinuxLevel string
	// Overhead and Resources are those of Config or of the last update: what the pod uses beside its containers, and the
	// sum of their limits, as the kubelet has it.
	Overhead, Resources *runtime.LinuxContainerResources
	// Containers are the ids of the sandbox's containers.
	Containers []string
}

// HostNetwork reports whether the sandbox is on the host's network.
func (s *SandboxStatus) HostNetwork() bool { return hostNetwork(s.Config) }

// ContainerStatus is all there is to know of a container at one moment. It is immutable like SandboxStatus.
type ContainerStatus struct {
	ID        string
	SandboxID string
	// Config is what CreateContainer was given, verbatim; never nil.
	Config *runtime.ContainerConfig
	State  ContainerState
	// ImageID is the image's id (the digest of its configuration), ImageRef its reference by digest (repo@sha256:...),
	// or its id where it has none.
	ImageID, ImageRef          string
	Created, Started, Finished time.Time
	// PID is the process id on the host; 0 unless running.
	PID int
	// ExitCode, Reason and Message are set when exited. Reason is Completed, Error, OOMKilled, StartError or Unknown.
	ExitCode        int32
	Reason, Message string
	// LogPath is the absolute path of the log file; "" when the container has none.
	LogPath string
	// Resources are the limits in force: those of Config and of every update since.
	Resources *runtime.LinuxContainerResources
	// User is whom the process runs as; nil before the start.
	User *runtime.ContainerUser
	// StopSignal is the signal in force.
	StopSignal runtime.Signal
	// CgroupPath is the container's cgroup in cgroupfs form.
	CgroupPath string
	// VolumeRefs maps each image of a volume, as Config names it, to its reference by digest, or id where it has none.
	VolumeRefs map[string]string
}

func hostNetwork(c *runtime.PodSandboxConfig) bool {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtime.NamespaceMode_NODE
}

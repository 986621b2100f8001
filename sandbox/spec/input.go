// Package spec translates a container's CRI configuration into an OCI runtime spec. It is pure: no file is read, no
// system call made; what has to be looked up on the node comes in as Node and Host.
package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Input is everything that Build needs.
type Input struct {
	// ID is the container's id.
	ID      string
	Sandbox *runtime.PodSandboxConfig
	Config  *runtime.ContainerConfig
	// Image is the configuration of the container's image.
	Image *ocispec.ImageConfig
	Node  Node
	Host  Host
	Files Files
	// Labels are the SELinux labels; empty without SELinux.
	Labels Labels
	// Namespaces are the paths of namespaces to join.
	Namespaces Namespaces
	// CgroupsPath is linux.cgroupsPath: /a/b for the cgroupfs driver, slice:prefix:name for systemd.
	CgroupsPath string
}

// Node is what is true of the node for all containers.
type Node struct {
	// Hostname is the node's host name: what HOSTNAME says in a sandbox that has none of its own.
	Hostname string
	// CgroupV2 says that the unified hierarchy is in use.
	CgroupV2 bool
	// Capabilities are the names (CAP_...) that the daemon may give: what "all" means here.
	Capabilities []string
	// OOMScoreFloor is the lowest oom_score_adj that the daemon may set; -1000 where nothing holds it back.
	OOMScoreFloor int
	// HugePageSizes are the sizes that can be limited, as in cgroup file names: "2MB", "1GB". Empty when the kernel has
	// no huge pages or no controller for them.
	HugePageSizes []string
	// SwapAccounting says that swap can be limited.
	SwapAccounting bool
	// SeccompNativeOnly makes the RuntimeDefault filter for the native architecture only: programs of another one, such
	// as 32-bit ones, are then killed at their first system call.
	SeccompNativeOnly bool
	// X32 says that the kernel runs programs of the x32 ABI. Where it does not, as nearly everywhere, the RuntimeDefault
	// filter leaves that architecture out: it would only make the filter bigger, and each start and exec slower.
	X32 bool
	// NoHostDevices leaves the host's devices out of privileged containers.
	NoHostDevices bool
	// Rlimits are the resource limits of every process; who starts the container lowers what it may not give. Those that
	// are not named are inherited.
	Rlimits []specs.POSIXRlimit
	// Seccomp says that the kernel has seccomp filters; AppArmor and SELinux that these modules are in force.
	Seccomp, AppArmor, SELinux bool
}

// Host is what was looked up on the host for this container.
type Host struct {
	// Sources maps each mount's host_path to the path with symbolic links resolved.
	Sources map[string]string
	// SharedSources holds those resolved sources that lie on a shared mount, SlaveSources those on a slave mount:
	// what mount propagation asks for.
	SharedSources, SlaveSources map[string]bool
	// Volumes are the mounts that show an image, by index in the configuration's mounts. Their options are what shows
	// it; what the configuration asks for is added, and the Destination.
	Volumes map[int]specs.Mount
	// Devices maps each device's host_path to the device nodes there: one, whose Path is the host_path, or those of a
	// directory, whose Paths begin with the host_path. Either way symbolic links are followed but not shown.
	Devices map[string][]specs.LinuxDevice
	// AllDevices are the device nodes that a privileged container gets.
	AllDevices []specs.LinuxDevice
	// SeccompProfile is the content of the Localhost profile's file.
	SeccompProfile []byte
}

// Files are the paths on the host of the files and directories that the runtime itself mounts into a container; empty
// ones are left out.
type Files struct {
	Hostname, Hosts, ResolvConf, Shm string
}

// Labels are SELinux labels of a container's process and of what is mounted for it. Empty ones are left out.
type Labels struct {
	Process, Mount string
}

// Namespaces are paths of namespaces to join. An empty Network, IPC or UTS means the host's. PID follows the
// container's mode: empty with POD or TARGET is an error; so is an empty User in a sandbox with a user namespace.
type Namespaces struct {
	Network, IPC, UTS, PID, User string
}

// User is whom the process is to be, as names or numbers to be resolved in the container's own files.
type User struct {
	User, Group string
	Groups      []uint32
	Strict      bool
}

// Package keeper is the protocol between gantryd and the keeper process, and gantryd's side of it: how the keeper is
// spawned, dialled and spoken to. It is not the keeper itself (that is package keeperd) and knows nothing of pods.
//
// # Wire format
//
// The keeper listens on a unix stream socket, <state>/keeper/keeper.sock. Every call has a connection of its own: the
// client sends one request frame, the keeper answers with one reply frame (exec, attach and watch: several), and either
// side closes. A frame is an 8-byte header (big endian: uint32 length of the body, uint32 number of descriptors) and a
// JSON body; descriptors travel by SCM_RIGHTS with the header's bytes. Giving up on a call is closing its connection.
package keeper

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ProtocolVersion is raised when one side has to know something of the other that it cannot ignore. A daemon that meets
// a keeper whose version it cannot speak replaces it if nothing lives in it (VerbHello and VerbShutdown are the same in
// all versions), else it refuses to start and leaves keeper and containers alone.
const ProtocolVersion = 2

// ProtocolTablePins is the version of keepers that look for a sandbox's pins in the node's table of mounts, and not in
// the mount namespace of package pins. A daemon still speaks it: it makes the pins where such a keeper finds them. The
// other way round, a daemon of that version takes the sandboxes of this one for dead, so it must not start beside them.
const ProtocolTablePins = 1

// HoldMarker is the environment variable that makes the keeper's binary a process that does nothing until its standard
// input ends: new namespaces are made with it (see namespace.User).
const HoldMarker = "_GANTRY_HOLD"

// Verb names what a request asks for.
type Verb string

// The verbs of the keeper. Create is part of start: a container that was created but not started has no process.
const (
	VerbHello    Verb = "hello"    // HelloRequest -> HelloReply
	VerbExpect   Verb = "expect"   // ExpectRequest -> empty: a start follows soon
	VerbStart    Verb = "start"    // StartRequest -> StartReply + its descriptors
	VerbPodInit  Verb = "podinit"  // PodInitRequest -> StartReply + pidfd
	VerbKill     Verb = "kill"     // KillRequest -> empty
	VerbDelete   Verb = "delete"   // DeleteRequest -> empty; idempotent, safe on half-made and unknown containers
	VerbExec     Verb = "exec"     // ExecRequest + stdio -> ExecStarted [+ terminal master], later ExecExited
	VerbUpdate   Verb = "update"   // UpdateRequest -> empty
	VerbReopen   Verb = "reopen"   // ReopenRequest -> empty
	VerbWatch    Verb = "watch"    // WatchRequest -> WatchEvent, WatchEvent, ...
	VerbAdopt    Verb = "adopt"    // AdoptRequest + pidfd [+ terminal master] -> empty
	VerbSettle   Verb = "settle"   // SettleRequest -> empty: no more adopts follow
	VerbShutdown Verb = "shutdown" // ShutdownRequest -> empty: exit if no container and no pod init lives

	VerbCloseStdin Verb = "closestdin" // CloseStdinRequest -> empty
	VerbAttach     Verb = "attach"     // AttachRequest + pipes -> AttachStarted [+ input], later AttachEnded
	VerbCheckpoint Verb = "checkpoint" // CheckpointRequest -> CheckpointCaptured, later CheckpointResumed
	VerbRestore    Verb = "restore"    // RestoreRequest -> StartReply + its descriptors
)

// ExpectRequest says what to expect. A keeper of an older build passes over what is in it.
type ExpectRequest struct {
	// Seccomp is a profile that containers will have. The keeper compiles it once, while nobody waits.
	Seccomp *specs.LinuxSeccomp `json:"seccomp,omitempty"`
}

// Request is the body of a request frame.
type Request struct {
	Verb Verb `json:"verb"`
	// Body is the verb's request message, as JSON.
	Body rawJSON `json:"body,omitempty"`
}

// Reply is the body of a reply frame: an error or the verb's reply message.
type Reply struct {
	Error *Error  `json:"error,omitempty"`
	Body  rawJSON `json:"body,omitempty"`
}

// HelloRequest opens the acquaintance.
type HelloRequest struct {
	Protocol int    `json:"protocol"`
	Build    string `json:"build"`
}

// HelloReply says who the keeper is. It is answered whatever the client's protocol version.
type HelloReply struct {
	Protocol int    `json:"protocol"`
	Build    string `json:"build"`
	PID      int    `json:"pid"`
	// Settled is false in a keeper that replaced a dead one until VerbSettle: it waits for the descriptors that the
	// daemon kept (VerbAdopt) before it calls anything lost.
	Settled bool `json:"settled"`
	// Live is the number of containers and pod inits that live.
	Live int `json:"live"`
}

// User says who the process is to be; the keeper resolves names in the container's own /etc/passwd and /etc/group,
// because only it sees the root filesystem.
type User struct {
	// User is a user name or a decimal uid; empty means 0.
	User string `json:"user,omitempty"`
	// Group is a group name or a decimal gid; empty means the user's primary group, or 0.
	Group string `json:"group,omitempty"`
	// Groups are supplementary gids.
	Groups []uint32 `json:"groups,omitempty"`
	// Strict leaves out the supplementary groups that /etc/group gives the user.
	Strict bool `json:"strict,omitempty"`
}

// ResolvedUser is what a User came to. Groups includes GID (CRI: LinuxContainerUser.supplemental_groups).
type ResolvedUser struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// StartRequest creates a container and starts its process.
type StartRequest struct {
	// ID is the container's id: 64 hexadecimal digits.
	ID string `json:"id"`
	// Dir is the container's record directory; the keeper writes status.json there (see Status) and nothing else.
	Dir string `json:"dir"`
	// Spec is the OCI runtime spec. Root.Path is filled in by the keeper, Process.User by User. A user namespace to join
	// comes with its mappings, one of uids and one of gids, from 0 on; an overlay among the mounts that has the option
	// idmap gets the owners of its lower directories mapped by it.
	Spec *specs.Spec `json:"spec"`
	// Rootfs is mounted, in order, to make the root filesystem; Destination is ignored. The mounts are made in a private
	// mount namespace of the creating thread and never appear on the host. With a user namespace the lower directories'
	// owners are mapped, and the owners of what is in the upper one are changed at the first start.
	Rootfs []specs.Mount `json:"rootfs"`
	User   User          `json:"user"`
	// SystemdCgroup says that Spec.Linux.CgroupsPath has the form slice:prefix:name.
	SystemdCgroup bool `json:"systemdCgroup,omitempty"`
	// LogPath is the absolute path of the CRI log file; empty means that output is read and dropped.
	LogPath string `json:"logPath,omitempty"`
	// Stdin keeps the container's standard input open for a later attach; otherwise it is /dev/null.
	Stdin bool `json:"stdin,omitempty"`
	// StdinOnce lets VerbCloseStdin end that input. The price: the death of a keeper ends it too.
	StdinOnce bool `json:"stdinOnce,omitempty"`
}

// StartReply describes a started process. The reply frame carries descriptors for the daemon to keep: the pidfd, then
// the master if Terminal, else the read ends of stdout and stderr (of a pod init only the pidfd). The daemon never
// reads from them: they keep the exit code and the last words of a container that dies while no keeper lives.
type StartReply struct {
	PID     int          `json:"pid"`
	Started time.Time    `json:"started"`
	User    ResolvedUser `json:"user"`
	// Terminal says that the second descriptor is a terminal master.
	Terminal bool `json:"terminal,omitempty"`
	// Steps are how long what took, one after the other. A keeper of an older build does not tell.
	Steps []Step `json:"steps,omitempty"`
}

// Step is a part of a start. From and To are of CLOCK_MONOTONIC, which daemon and keeper share, in nanoseconds.
type Step struct {
	Name string `json:"name"`
	From int64  `json:"from"`
	To   int64  `json:"to"`
}

// PodInitRequest starts the tiny init of a PID namespace that the containers of one pod share.
type PodInitRequest struct {
	// ID is the sandbox's id.
	ID string `json:"id"`
	// Dir is the sandbox's record directory; status.json there tells of the init.
	Dir string `json:"dir"`
	// CgroupsPath is where the init goes, in the form of the OCI spec's linux.cgroupsPath.
	CgroupsPath   string `json:"cgroupsPath"`
	SystemdCgroup bool   `json:"systemdCgroup,omitempty"`
	// UserNS is the path of the user namespace that the PID namespace is to belong to; empty for the keeper's own.
	UserNS string `json:"userNS,omitempty"`
	// NetNS is the path of the network namespace that the init is to be in, so that the pod's network can be read by its
	// pid; empty for the host's.
	NetNS string `json:"netNS,omitempty"`
}

// KillRequest sends a signal.
type KillRequest struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	// All kills every process of the container's cgroup with SIGKILL, whatever Signal says (cgroup.kill on v2, freeze,
	// kill and thaw on v1).
	All bool `json:"all,omitempty"`
}

// DeleteRequest removes what is left of a container or pod init: its processes, its cgroup, its run directory. The
// record directory is the daemon's. It is final: a start of the id that comes after it is refused.
type DeleteRequest struct {
	ID string `json:"id"`
	// CgroupsPath lets the keeper remove the cgroup of a container that it knows nothing of (any more).
	CgroupsPath   string `json:"cgroupsPath,omitempty"`
	SystemdCgroup bool   `json:"systemdCgroup,omitempty"`
}

// ExecRequest runs one more process in a container, with the container's own environment, user, capabilities and
// limits. The frame carries three descriptors (stdin, stdout, stderr), or none for a terminal. The process goes into a
// cgroup of its own below the container's, so that its whole tree can be killed: closing the connection before
// ExecExited does that.
type ExecRequest struct {
	ID       string   `json:"id"`
	Args     []string `json:"args"`
	Terminal bool     `json:"terminal,omitempty"`
}

// ExecStarted is the first reply to an exec. For a terminal the frame carries the master.
type ExecStarted struct {
	PID int `json:"pid"`
}

// ExecExited is the second reply to an exec; ExitCode is 128+n for a process killed by signal n.
type ExecExited struct {
	ExitCode int32 `json:"exitCode"`
}

// UpdateRequest sets a running container's resources to Resources, whole: the caller merges. On error the limits are
// as before.
type UpdateRequest struct {
	ID        string                `json:"id"`
	Resources *specs.LinuxResources `json:"resources"`
	// OOMScoreAdj is set for every process of the container; nil leaves them as they are.
	OOMScoreAdj *int `json:"oomScoreAdj,omitempty"`
}

// ReopenRequest makes the keeper open the container's log path anew; when it is answered nothing more is written to
// the file of before. On error no new file exists.
type ReopenRequest struct {
	ID string `json:"id"`
}

// CloseStdinRequest ends the standard input of a container that was started with StdinOnce; the container reads what
// was written before. For another container it does nothing.
type CloseStdinRequest struct {
	ID string `json:"id"`
}

// AttachRequest connects a client to a container's streams, beside its log and other clients. The frame carries the
// write end of a pipe for each wanted output, stdout first: what the container writes from now on is copied there.
// Closing the connection ends it.
//
// No client holds up the container, its log or another client: what a pipe does not take waits in the keeper, up to
// AttachBacklog bytes for each output, and a client that is further behind is cut off with a KindState error.
//
// The keepers of before do not know the verb and answer KindInvalid, which nothing else of an attach does.
type AttachRequest struct {
	ID string `json:"id"`
	// Stdin asks for the container's input.
	Stdin bool `json:"stdin,omitempty"`
	// StdinOnce ends the container's input, as VerbCloseStdin does, when an attach that had it ends.
	StdinOnce bool `json:"stdinOnce,omitempty"`
	Stdout    bool `json:"stdout,omitempty"`
	// Stderr is not for a terminal, which has one output.
	Stderr bool `json:"stderr,omitempty"`
}

// AttachBacklog is how many bytes of one output an attached client may be behind.
const AttachBacklog = 16 << 20

// AttachStarted is the first reply to an attach. With a terminal the frame carries the master, for its size and as the
// input; else, if Stdin was asked for, the write end of the container's input. Both are non-blocking.
type AttachStarted struct {
	Terminal bool `json:"terminal,omitempty"`
}

// AttachEnded is the second reply to an attach: the container has exited, and all it wrote is in the pipes, which are
// closed.
type AttachEnded struct{}

// WatchRequest asks for all live processes and then for every exit, until the connection is closed.
type WatchRequest struct{}

// WatchEvent is one reply of a watch. First one event with Live for each live container and pod init (the frame
// carries the descriptors, in the order of StartReply), then one with Synced, then one with Exited for each
// exit. Exits that happened before the watch are not told: they are in status.json.
type WatchEvent struct {
	Live   *WatchLive `json:"live,omitempty"`
	Synced bool       `json:"synced,omitempty"`
	Exited *WatchExit `json:"exited,omitempty"`
}

// WatchLive names a live process. Terminal is as in StartReply.
type WatchLive struct {
	ID       string `json:"id"`
	PID      int    `json:"pid"`
	Terminal bool   `json:"terminal,omitempty"`
}

// WatchExit tells of an exit. Status is what status.json holds.
type WatchExit struct {
	ID     string `json:"id"`
	Status Status `json:"status"`
}

// AdoptRequest hands a new keeper the descriptors that the daemon kept of a container: its pidfd and, if Terminal, the
// master after it.
type AdoptRequest struct {
	ID       string `json:"id"`
	Terminal bool   `json:"terminal,omitempty"`
}

// SettleRequest ends the adoption.
type SettleRequest struct{}

// ShutdownRequest asks the keeper to exit if nothing lives.
type ShutdownRequest struct{}

// CheckpointRequest captures running containers with CRIU as they are at one moment: all are frozen before the first is
// captured, and all stay frozen until the client closes its direction of the connection, which it does after
// CheckpointCaptured when it has copied what belongs to that moment, or before it to give up. They are resumed before
// CheckpointResumed or the error is sent, and also when the client dies. What is in Dir after an error is the client's
// to remove.
//
// The keepers of before do not know the verb, nor VerbRestore, and answer KindInvalid, which nothing else of them does.
type CheckpointRequest struct {
	// CRIU is the absolute path of the program.
	CRIU       string             `json:"criu"`
	Containers []CheckpointTarget `json:"containers"`
}

// CheckpointTarget is one container. Dir is an existing directory in which the keeper makes CheckpointImages and
// CheckpointSpec.
type CheckpointTarget struct {
	ID  string `json:"id"`
	Dir string `json:"dir"`
}

// What the keeper writes of a container: the directory with CRIU's images, in it the file that tells a restore what is
// outside of the container, and the OCI spec that it was started with.
const (
	CheckpointImages = "checkpoint"
	CheckpointSpec   = "spec.dump"
	OutsideFile      = "gantry.json"
)

// CheckpointCaptured is the first reply to a checkpoint: the containers are captured, and still frozen.
type CheckpointCaptured struct{}

// CheckpointResumed is the second reply to a checkpoint: the containers run. Frozen is how long they did not.
type CheckpointResumed struct {
	Frozen time.Duration `json:"frozen"`
}

// RestoreRequest is a start whose process is not executed but resumed from CRIU's images.
type RestoreRequest struct {
	Start StartRequest `json:"start"`
	// CRIU is the absolute path of the program.
	CRIU string `json:"criu"`
	// Images is the directory CheckpointImages of a checkpoint. Nothing is written there.
	Images string `json:"images"`
}

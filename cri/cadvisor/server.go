// Package cadvisor tells the kubelet's cAdvisor of pods and containers. cAdvisor finds cgroups by itself and reads them
// itself, but whose they are it asks containerd only, by three calls: Version, Containers.Get and Tasks.Get. This
// package answers those three from the same memory as the CRI, with what cAdvisor reads of the answers.
//
// It is not containerd's API: no other method is served, nothing can be changed by it, and it keeps no state.
package cadvisor

import (
	"context"
	"fmt"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gantry-cri/gantry/sandbox"
	"github.com/gantry-cri/gantry/sandbox/standin"
)

const (
	// namespaceHeader and namespace are how a client of containerd says whose containers it means.
	namespaceHeader = "containerd-namespace"
	namespace       = "k8s.io"
)

// Server answers cAdvisor's calls. Errors satisfy errdefs: ErrNotFound, ErrFailedPrecondition for a call that names no
// namespace and for the process of a sandbox that has ended. It may be used from several goroutines.
type Server struct {
	containers.UnimplementedContainersServer
	runtime standin.Reader
	version string
}

// New makes a server. version is that of Gantry.
func New(runtime standin.Reader, version string) *Server {
	return &Server{runtime: runtime, version: version}
}

// Register adds the three services to a gRPC server that does not serve yet.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	version.RegisterVersionServer(r, versionServer{version: s.version})
	containers.RegisterContainersServer(r, s)
	tasks.RegisterTasksServer(r, taskServer{runtime: s.runtime})
}

type versionServer struct {
	version.UnimplementedVersionServer
	version string
}

// Version says that somebody is there. cAdvisor makes nothing of the text; whoever takes this for containerd, such as
// ctr or a dockerd that finds the socket, is told here what it is.
func (s versionServer) Version(context.Context, *emptypb.Empty) (*version.VersionResponse, error) {
	return &version.VersionResponse{Version: "gantry " + s.version}, nil
}

// Get describes a container or a sandbox. One that is still being made is described too: cAdvisor never asks again
// about a cgroup that it once took for nobody's.
func (s *Server) Get(
	ctx context.Context, req *containers.GetContainerRequest,
) (*containers.GetContainerResponse, error) {
	if err := checkNamespace(ctx); err != nil {
		return nil, err
	}
	id := req.GetID()
	if c, err := s.runtime.Container(id); err == nil && c.ID == id {
		return &containers.GetContainerResponse{Container: describeContainer(c)}, nil
	}
	if sb, err := s.runtime.Sandbox(id); err == nil && sb.ID == id {
		return &containers.GetContainerResponse{Container: describeSandbox(sb)}, nil
	}
	return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
}

type taskServer struct {
	tasks.UnimplementedTasksServer
	runtime standin.Reader
}

// Get describes the process of a container, or one that is in the sandbox's namespaces. What has no process yet is not
// found: cAdvisor then asks again for three seconds, in which it looks at no other cgroup. So a sandbox that will never
// have one is refused, which cAdvisor takes for the last word.
func (s taskServer) Get(ctx context.Context, req *tasks.GetRequest) (*tasks.GetResponse, error) {
	if err := checkNamespace(ctx); err != nil {
		return nil, err
	}
	id := req.GetContainerID()
	if c, err := s.runtime.Container(id); err == nil && c.ID == id {
		if p := containerProcess(c); p != nil {
			return &tasks.GetResponse{Process: p}, nil
		}
	} else if sb, err := s.runtime.Sandbox(id); err == nil && sb.ID == id {
		if pid := standin.Process(s.runtime, sb); pid != 0 {
			return &tasks.GetResponse{Process: runningProcess(id, pid)}, nil
		}
		if sb.State != sandbox.SandboxReady && sb.State != sandbox.SandboxCreating {
			return nil, fmt.Errorf("process of sandbox %q, which is %s: %w", id, sb.State, errdefs.ErrFailedPrecondition)
		}
	}
	return nil, fmt.Errorf("process of container %q: %w", id, errdefs.ErrNotFound)
}

// checkNamespace lets through who asks for what the kubelet runs.
func checkNamespace(ctx context.Context) error {
	values := metadata.ValueFromIncomingContext(ctx, namespaceHeader)
	if len(values) == 0 || values[0] == "" {
		return fmt.Errorf("metadata %s is missing, expected %q: %w", namespaceHeader, namespace,
			errdefs.ErrFailedPrecondition)
	}
	if values[0] != namespace {
		return fmt.Errorf("metadata %s %q, expected %q: %w", namespaceHeader, values[0], namespace, errdefs.ErrNotFound)
	}
	return nil
}

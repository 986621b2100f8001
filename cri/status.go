package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// What Version answers. The kubelet compares interfaceVersion with its own literally.
const (
	interfaceVersion  = "0.1.0"
	runtimeName       = "gantry"
	runtimeAPIVersion = "v1"
)

// Version tells who answers.
func (s *Server) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{
		Version:           interfaceVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.version,
		RuntimeApiVersion: runtimeAPIVersion,
	}, nil
}

// Status tells whether the node can run pods. It waits for nothing: half a minute without an answer makes the node not
// ready.
func (s *Server) Status(_ context.Context, req *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	resp := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{
			s.runtimeCondition(),
			condition(runtime.NetworkReady, "NetworkPluginNotReady", s.network.Status()),
		}},
		RuntimeHandlers: s.handlers,
		Features: &runtime.RuntimeFeatures{
			SupplementalGroupsPolicy: true,
			MountOptions:             true,
			// The default handler is the first, and in this all are the same.
			UserNamespacesHostNetwork: s.handlers[0].GetFeatures().GetUserNamespaces(),
		},
	}
	if req.GetVerbose() {
		config, err := json.Marshal(s.info)
		if err != nil {
			return nil, fmt.Errorf("encode the configuration: %w", err)
		}
		resp.Info = map[string]string{"config": string(config)}
	}
	return resp, nil
}

func (s *Server) runtimeCondition() *runtime.RuntimeCondition {
	if err := s.ready(); err != nil {
		return condition(runtime.RuntimeReady, "DaemonNotReady", err)
	}
	return condition(runtime.RuntimeReady, "KeeperNotReady", s.runtime.KeeperReady())
}

func condition(kind, reason string, err error) *runtime.RuntimeCondition {
	if err == nil {
		return &runtime.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtime.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *Server) RuntimeConfig(
	context.Context, *runtime.RuntimeConfigRequest,
) (*runtime.RuntimeConfigResponse, error) {
	driver := runtime.CgroupDriver_CGROUPFS
	if s.runtime.CgroupDriver() == "systemd" {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig hands the node's range of pod addresses to the network, which uses it or has its own. None is no
// change.
func (s *Server) UpdateRuntimeConfig(
	_ context.Context, req *runtime.UpdateRuntimeConfigRequest,
) (*runtime.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if err := s.network.SetPodCIDR(cidr); err != nil {
			return nil, fmt.Errorf("set range of pod addresses: %w", err)
		}
	}
	return &runtime.UpdateRuntimeConfigResponse{}, nil
}

// runtimeHandlers describes the default handler, whose name is empty, and those with a name.
func runtimeHandlers(names []string, userNamespaces bool) []*runtime.RuntimeHandler {
	features := &runtime.RuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: kernelHasMountSetattr(), UserNamespaces: userNamespaces,
	}
	handlers := []*runtime.RuntimeHandler{{Features: features}}
	for i, name := range names {
		if name != "" && !slices.Contains(names[:i], name) {
			handlers = append(handlers, &runtime.RuntimeHandler{Name: name, Features: features})
		}
	}
	return handlers
}

// kernelHasMountSetattr reports whether the kernel (5.12 or later) can make a tree of mounts read-only. An empty change
// to no mount has no effect, whatever else is wrong with it.
func kernelHasMountSetattr() bool {
	return !errors.Is(unix.MountSetattr(-1, "", 0, &unix.MountAttr{}), unix.ENOSYS)
}

// sandboxInfo is what a verbose status shows of a sandbox.
func sandboxInfo(status *sandbox.SandboxStatus) map[string]string {
	return info(struct {
		State          sandbox.SandboxState `json:"state"`
		RuntimeHandler string               `json:"runtimeHandler"`
		NetNS          string               `json:"netns,omitempty"`
		CgroupParent   string               `json:"cgroupParent,omitempty"`
		Containers     []string             `json:"containers,omitempty"`
		Overhead       json.RawMessage      `json:"overhead,omitempty"`
		Resources      json.RawMessage      `json:"resources,omitempty"`
		Config         json.RawMessage      `json:"config"`
	}{
		status.State, status.Handler, status.NetNS, status.CgroupParent, status.Containers,
		messageJSON(status.Overhead), messageJSON(status.Resources), messageJSON(status.Config),
	})
}

// containerInfo is what a verbose status shows of a container.
func containerInfo(status *sandbox.ContainerStatus) map[string]string {
	return info(struct {
		SandboxID  string                 `json:"sandboxID"`
		State      sandbox.ContainerState `json:"state"`
		PID        int                    `json:"pid"`
		CgroupPath string                 `json:"cgroupPath,omitempty"`
		Config     json.RawMessage        `json:"config"`
	}{status.SandboxID, status.State, status.PID, status.CgroupPath, messageJSON(status.Config)})
}

// info puts value as JSON below the key that crictl shows.
func info(value any) map[string]string {
	text, err := json.Marshal(value)
	if err != nil {
		text, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	return map[string]string{"info": string(text)}
}

// messageJSON gives a message as JSON with the names of the API; a message that cannot be encoded gives the reason.
func messageJSON(m proto.Message) json.RawMessage {
	if !m.ProtoReflect().IsValid() {
		return nil
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		text, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	return text
}

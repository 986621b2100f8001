package cri

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// RunPodSandbox makes a sandbox. A retry with the same metadata joins the first call.
func (s *Server) RunPodSandbox(
	ctx context.Context, req *runtime.RunPodSandboxRequest,
) (*runtime.RunPodSandboxResponse, error) {
	if req.GetConfig() == nil {
		return nil, invalidf("config is missing")
	}
	if err := s.checkHandler("runtime_handler", req.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	id, err := s.runtime.Run(ctx, req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtime.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox stops a sandbox; one that is stopped or unknown is no error.
func (s *Server) StopPodSandbox(
	ctx context.Context, req *runtime.StopPodSandboxRequest,
) (*runtime.StopPodSandboxResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.runtime.Stop(ctx, req.GetPodSandboxId()); err != nil {
		return nil, notMissing(err)
	}
	return &runtime.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a sandbox with its containers; one that is unknown is no error.
func (s *Server) RemovePodSandbox(
	ctx context.Context, req *runtime.RemovePodSandboxRequest,
) (*runtime.RemovePodSandboxResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.runtime.Remove(ctx, req.GetPodSandboxId()); err != nil {
		return nil, notMissing(err)
	}
	return &runtime.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus tells of a sandbox and of its containers. It has no timestamp: to the kubelet (1.37, with
// EventedPLEG) one means to take the containers from here, which leaves it without those of the active sandbox and in
// our order, and with that it runs init containers for ever. Without a timestamp it asks for each container.
func (s *Server) PodSandboxStatus(
	_ context.Context, req *runtime.PodSandboxStatusRequest,
) (*runtime.PodSandboxStatusResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	status, err := s.runtime.Sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtime.PodSandboxStatusResponse{Status: sandboxStatus(status)}
	for _, id := range status.Containers {
		// A container that is gone by now is not the sandbox's any more.
		if c, err := s.runtime.Container(id); err == nil && c.State != sandbox.ContainerCreating {
			resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(c))
		}
	}
	if req.GetVerbose() {
		resp.Info = sandboxInfo(status)
	}
	return resp, nil
}

// ListPodSandbox lists the sandboxes that satisfy the filter.
func (s *Server) ListPodSandbox(
	_ context.Context, req *runtime.ListPodSandboxRequest,
) (*runtime.ListPodSandboxResponse, error) {
	items, err := s.listSandboxes(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListPodSandboxResponse{Items: items}, nil
}

// StreamPodSandboxes is ListPodSandbox in batches.
func (s *Server) StreamPodSandboxes(
	req *runtime.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse],
) error {
	items, err := s.listSandboxes(req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(items, func(batch []*runtime.PodSandbox) error {
		return stream.Send(&runtime.StreamPodSandboxesResponse{PodSandboxes: batch})
	})
}

// checkHandler returns an error unless name is a runtime handler of this server.
func (s *Server) checkHandler(field, name string) error {
	known := func(h *runtime.RuntimeHandler) bool { return h.GetName() == name }
	if slices.ContainsFunc(s.handlers, known) {
		return nil
	}
	names := make([]string, len(s.handlers))
	for i, h := range s.handlers {
		names[i] = h.GetName()
	}
	return invalidf("%s is %q, expected one of %q", field, name, names)
}

// sandboxState maps every state but ready to NOTREADY: such a sandbox can be stopped and removed, and no more.
func sandboxState(status *sandbox.SandboxStatus) runtime.PodSandboxState {
	if status.State == sandbox.SandboxReady {
		return runtime.PodSandboxState_SANDBOX_READY
	}
	return runtime.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxItem(status *sandbox.SandboxStatus) *runtime.PodSandbox {
	return &runtime.PodSandbox{
		Id:             status.ID,
		Metadata:       sandboxMetadata(status),
		State:          sandboxState(status),
		CreatedAt:      createdAt(status.Created),
		Labels:         status.Config.GetLabels(),
		Annotations:    status.Config.GetAnnotations(),
		RuntimeHandler: status.Handler,
	}
}

func sandboxStatus(status *sandbox.SandboxStatus) *runtime.PodSandboxStatus {
	options := status.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if options == nil {
		options = &runtime.NamespaceOption{}
	}
	return &runtime.PodSandboxStatus{
		Id:             status.ID,
		Metadata:       sandboxMetadata(status),
		State:          sandboxState(status),
		CreatedAt:      createdAt(status.Created),
		Network:        sandboxNetwork(status),
		Linux:          &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: options}},
		Labels:         status.Config.GetLabels(),
		Annotations:    status.Config.GetAnnotations(),
		RuntimeHandler: status.Handler,
	}
}

// sandboxNetwork gives the addresses. It is never nil, and without an address on the host network: for another sandbox
// the kubelet takes an empty address as a reason to make it anew.
func sandboxNetwork(status *sandbox.SandboxStatus) *runtime.PodSandboxNetworkStatus {
	network := &runtime.PodSandboxNetworkStatus{}
	if status.HostNetwork() || len(status.IPs) == 0 {
		return network
	}
	network.Ip = status.IPs[0]
	for _, ip := range status.IPs[1:] {
		network.AdditionalIps = append(network.AdditionalIps, &runtime.PodIP{Ip: ip})
	}
	return network
}

// sandboxMetadata gives the metadata with every field that the kubelet's client insists on. They are missing only where
// the record could not be read; without them the client drops the whole answer, and the sandbox could not be removed.
func sandboxMetadata(status *sandbox.SandboxStatus) *runtime.PodSandboxMetadata {
	m := status.Config.GetMetadata()
	if m.GetName() != "" && m.GetNamespace() != "" && m.GetUid() != "" {
		return m
	}
	return &runtime.PodSandboxMetadata{
		Name:      or(m.GetName(), status.ID),
		Namespace: or(m.GetNamespace(), "unknown"),
		Uid:       or(m.GetUid(), status.ID),
		Attempt:   m.GetAttempt(),
	}
}

// createdAt gives t in nanoseconds, never 0: the kubelet's client drops an answer with 0.
func createdAt(t time.Time) int64 {
	return max(nanoseconds(t), 1)
}

// nanoseconds gives t in nanoseconds since 1970, 0 for the zero time.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// or returns the first value that is not empty.
func or(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}

package cri

import (
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// GetContainerEvents sends an event for each change of a container's or a sandbox's state, until the client goes or the
// daemon ends. A client that reads too slowly has missed events: the stream ends with ResourceExhausted, and it has to
// look at the lists.
func (s *Server) GetContainerEvents(
	_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse],
) error {
	events, cancel := s.runtime.Subscribe()
	defer cancel()
	// The header tells the client that it misses nothing from now on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.ending.Done():
			return fmt.Errorf("the daemon ends: %w", errdefs.ErrUnavailable)
		case event, ok := <-events:
			if !ok {
				return fmt.Errorf("events came faster than they were read, some are lost: %w", errdefs.ErrResourceExhausted)
			}
			if err := stream.Send(containerEvent(&event)); err != nil {
				return err
			}
		}
	}
}

var eventTypes = map[sandbox.EventType]runtime.ContainerEventType{
	sandbox.EventCreated: runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
	sandbox.EventStarted: runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
	sandbox.EventStopped: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
	sandbox.EventDeleted: runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func containerEvent(event *sandbox.Event) *runtime.ContainerEventResponse {
	resp := &runtime.ContainerEventResponse{
		ContainerId:        event.ContainerID,
		ContainerEventType: eventTypes[event.Type],
		CreatedAt:          event.Time.UnixNano(),
		PodSandboxStatus:   sandboxStatus(event.Sandbox),
	}
	for _, status := range event.Containers {
		resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(status))
	}
	return resp
}

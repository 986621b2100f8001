//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventsOf collects the events of the pod until done says that there are enough.
func eventsOf(
	t *testing.T, stream runtime.RuntimeService_GetContainerEventsClient, p *pod, done func(*runtime.ContainerEventResponse) bool,
) []*runtime.ContainerEventResponse {
	t.Helper()
	var list []*runtime.ContainerEventResponse
	for {
		event, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d events: %v", len(list), err)
		}
		if event.GetPodSandboxStatus().GetMetadata().GetUid() != p.config.Metadata.Uid {
			continue
		}
		list = append(list, event)
		if done(event) {
			return list
		}
	}
}

func TestEventsTellALifeInOrder(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	stream, err := shared.Runtime.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // nothing is missed from now on
		t.Fatal(err)
	}
	p := runPod(t)
	c := p.start(t, "c", "exit 3")
	c.waitExit(t)
	p.remove(t)
	got := eventsOf(t, stream, p, func(e *runtime.ContainerEventResponse) bool {
		return e.ContainerId == p.id && e.ContainerEventType == runtime.ContainerEventType_CONTAINER_DELETED_EVENT
	})
	const (
		created = runtime.ContainerEventType_CONTAINER_CREATED_EVENT
		started = runtime.ContainerEventType_CONTAINER_STARTED_EVENT
		stopped = runtime.ContainerEventType_CONTAINER_STOPPED_EVENT
		deleted = runtime.ContainerEventType_CONTAINER_DELETED_EVENT
		none    = runtime.ContainerState(-1)
	)
	want := []struct {
		id        string
		kind      runtime.ContainerEventType
		ready     bool
		container runtime.ContainerState
	}{
		{p.id, created, true, none}, {p.id, started, true, none},
		{c.id, created, true, runtime.ContainerState_CONTAINER_CREATED},
		{c.id, started, true, runtime.ContainerState_CONTAINER_RUNNING},
		{c.id, stopped, true, runtime.ContainerState_CONTAINER_EXITED},
		{p.id, stopped, false, runtime.ContainerState_CONTAINER_EXITED},
		{c.id, deleted, false, none},
		{p.id, deleted, false, none},
	}
	if len(got) != len(want) {
		t.Fatalf("got %d events, expected %d: %v", len(got), len(want), got)
	}
	last := int64(0)
	for i, w := range want {
		e := got[i]
		state := none
		for _, s := range e.ContainersStatuses {
			state = s.State
			if s.State == runtime.ContainerState_CONTAINER_EXITED {
				wantEqual(t, "exit code", s.ExitCode, 3)
			}
		}
		ready := e.PodSandboxStatus.State == runtime.PodSandboxState_SANDBOX_READY
		if e.ContainerId != w.id || e.ContainerEventType != w.kind || ready != w.ready || state != w.container {
			t.Errorf("event %d is %v of %s, pod ready %t, container %v; expected %+v", i, e.ContainerEventType, e.ContainerId,
				ready, state, w)
		}
		if e.CreatedAt < last {
			t.Errorf("event %d is older than the one before", i)
		}
		last = e.CreatedAt
	}
}

// A daemon with an open stream of events ends as fast as without.
func TestEventsDoNotDelayTheEndOfTheDaemon(t *testing.T) {
	n, err := newNode("events", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	// What takes long may be the machine. Calls that go on would delay each end by 10 s.
	took := time.Hour
	for try := 0; took > 5*time.Second && try < 5; try++ {
		if err := n.Start(timeout(t)); err != nil {
			t.Fatal(err)
		}
		stream, err := n.Runtime.GetContainerEvents(timeout(t), &runtime.GetEventsRequest{})
		if err == nil {
			_, err = stream.Header()
		}
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := stream.Recv()
			ended <- err
		}()
		begin := time.Now()
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		took = time.Since(begin)
		if err := <-ended; err == nil {
			t.Error("the stream gave an event")
		}
	}
	if took > 5*time.Second {
		t.Errorf("the daemon took %s to end", took)
	}
}

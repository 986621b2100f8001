package cri

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// eventsNode has an open stream of events.
func eventsNode(t *testing.T, ctx context.Context) (*node, runtime.RuntimeService_GetContainerEventsClient) {
	t.Helper()
	n := listNode(t)
	n.runtime.events = make(chan sandbox.Event, 10)
	stream, err := n.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	waitSubscribed(t, n, 1)
	return n, stream
}

func waitSubscribed(t *testing.T, n *node, want int32) {
	t.Helper()
	for end := time.Now().Add(time.Minute); n.runtime.subscribed.Load() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d subscriptions, want %d", n.runtime.subscribed.Load(), want)
		}
	}
}

func TestAnEventHasTheSandboxAndAllContainers(t *testing.T) {
	n, stream := eventsNode(t, testContext(t))
	for kind, want := range map[sandbox.EventType]runtime.ContainerEventType{
		sandbox.EventCreated: runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
		sandbox.EventStarted: runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
		sandbox.EventStopped: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
		sandbox.EventDeleted: runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
	} {
		n.runtime.events <- sandbox.Event{
			Type: kind, ContainerID: "ca1", Time: time.Unix(7, 9),
			Sandbox: n.runtime.sandboxes[0], Containers: n.runtime.containers[:2],
		}
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		wantMessage(t, got, &runtime.ContainerEventResponse{
			ContainerId: "ca1", ContainerEventType: want, CreatedAt: 7_000_000_009,
			PodSandboxStatus: sandboxStatus(n.runtime.sandboxes[0]),
			ContainersStatuses: []*runtime.ContainerStatus{
				containerStatus(n.runtime.containers[0]), containerStatus(n.runtime.containers[1]),
			},
		})
	}
}

// What was queued before the cut comes first, then the reason.
func TestALostEventEndsTheStream(t *testing.T) {
	n, stream := eventsNode(t, testContext(t))
	n.runtime.events <- sandbox.Event{ContainerID: "ca1", Sandbox: n.runtime.sandboxes[0]}
	close(n.runtime.events)
	if got, err := stream.Recv(); err != nil || got.ContainerId != "ca1" {
		t.Errorf("got %v (%v), want the queued event", got, err)
	}
	_, err := stream.Recv()
	wantCode(t, err, codes.ResourceExhausted)
	waitSubscribed(t, n, 0)
}

func TestTheSubscriptionEndsWithTheClient(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	n, _ := eventsNode(t, ctx)
	cancel()
	waitSubscribed(t, n, 0)
}

// A client that never reads blocks its own stream; when it goes, everything is let go.
func TestAClientThatDoesNotReadIsLetGo(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	n, _ := eventsNode(t, ctx)
	large := sandboxConfig("one")
	large.Annotations = map[string]string{"large": string(make([]byte, 1<<20))}
	go func() {
		for range 100 {
			select {
			case n.runtime.events <- sandbox.Event{Sandbox: &sandbox.SandboxStatus{ID: "aaa1", Config: large}}:
			case <-ctx.Done():
				return
			}
		}
	}()
	for end := time.Now().Add(time.Minute); len(n.runtime.events) < cap(n.runtime.events); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the stream took everything although nobody reads")
		}
	}
	cancel()
	waitSubscribed(t, n, 0)
}

func TestEventsEndWithTheDaemon(t *testing.T) {
	n, stream := eventsNode(t, testContext(t))
	n.server.EndEvents()
	_, err := stream.Recv()
	wantCode(t, err, codes.Unavailable)
}

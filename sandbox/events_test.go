package sandbox

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func nextEvent(t *testing.T, events <-chan Event) Event {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatal("the subscription ended")
		}
		return e
	case <-time.After(time.Minute):
		t.Fatal("no event")
	}
	panic("unreachable")
}

func TestSlowSubscriberIsDroppedAndDelaysNobody(t *testing.T) {
	m := &Manager{}
	slow, cancelSlow := m.Subscribe()
	quick, cancelQuick := m.Subscribe()
	heard := make(chan int)
	go func() {
		n := 0
		for range quick {
			n++
			heard <- n
		}
		close(heard)
	}()
	for i := range 2 * eventQueue {
		m.events.send(Event{Type: EventStarted})
		if n := <-heard; n != i+1 {
			t.Fatalf("the quick subscriber heard %d events of %d", n, i+1)
		}
	}
	n := 0
	for range slow {
		n++
	}
	if n != eventQueue {
		t.Errorf("the slow subscriber had %d events before the end, want %d", n, eventQueue)
	}
	cancelSlow()
	cancelQuick()
	cancelQuick()
	if _, more := <-heard; more {
		t.Error("events after the end of the subscription")
	}
	if m.events.wanted() {
		t.Error("subscribers are left")
	}
}

func TestEventsTellTheLifeOfAPodInOrder(t *testing.T) {
	r := newRig(t)
	events, cancel := r.m.Subscribe()
	defer cancel()
	sandboxID := r.run("pod")
	id := r.create(sandboxID, "c")
	r.start(id)
	ctx := t.Context()
	for _, step := range []func() error{
		func() error { return r.m.StopContainer(ctx, id, 0) },
		func() error { return r.m.RemoveContainer(ctx, id) },
		func() error { return r.m.Stop(ctx, sandboxID) },
		func() error { return r.m.Remove(ctx, sandboxID) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []struct {
		kind      EventType
		id        string
		sandbox   SandboxState
		container ContainerState // "" for none
	}{
		{EventCreated, sandboxID, SandboxReady, ""},
		{EventStarted, sandboxID, SandboxReady, ""},
		{EventCreated, id, SandboxReady, ContainerCreated},
		{EventStarted, id, SandboxReady, ContainerRunning},
		{EventStopped, id, SandboxReady, ContainerExited},
		{EventDeleted, id, SandboxReady, ""},
		{EventStopped, sandboxID, SandboxStopped, ""},
		{EventDeleted, sandboxID, SandboxRemoving, ""},
	} {
		got := nextEvent(t, events)
		if got.Type != want.kind || got.ContainerID != want.id || got.Sandbox.State != want.sandbox || got.Time.IsZero() {
			t.Errorf("event %d: type %d of %s, sandbox %s, want %+v", i, got.Type, got.ContainerID, got.Sandbox.State, want)
		}
		state := ContainerState("")
		if len(got.Containers) == 1 {
			state = got.Containers[0].State
		}
		if state != want.container || len(got.Containers) > 1 {
			t.Errorf("event %d: %d containers, the first %q, want %q", i, len(got.Containers), state, want.container)
		}
	}
}

func TestWhatCannotBeMadeGivesNoEvent(t *testing.T) {
	r := newRig(t)
	events, cancel := r.m.Subscribe()
	defer cancel()
	sandboxID := r.run("pod")
	nextEvent(t, events)
	nextEvent(t, events)
	r.images.mu.Lock()
	r.images.err = errdefs.ErrNotFound
	r.images.mu.Unlock()
	if _, err := r.m.CreateContainer(t.Context(), sandboxID, containerConfig("c"), "sha256:feed", ""); err == nil {
		t.Fatal("a container without an image was made")
	}
	select {
	case e := <-events:
		t.Errorf("event %d of %s", e.Type, e.ContainerID)
	default:
	}
}

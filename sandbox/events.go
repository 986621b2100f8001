package sandbox

import (
	"sync"
	"time"
)

// EventType says what happened.
type EventType int

// The types of events, for containers and for sandboxes alike.
const (
	EventCreated EventType = iota
	EventStarted
	EventStopped
	EventDeleted
)

// Event tells that a container or a sandbox has come into a new state.
type Event struct {
	Type EventType
	// ContainerID is the container's id; for an event of the sandbox it is the sandbox's.
	ContainerID string
	Time        time.Time
	// Sandbox and Containers are the sandbox and all its containers at that moment, the event's included; what was
	// deleted is not among the containers.
	Sandbox    *SandboxStatus
	Containers []*ContainerStatus
}

// eventQueue is how many events a subscriber may leave unread: a few for each container of a full node.
const eventQueue = 1024

// events are the subscribers. The zero value has none.
type events struct {
	mu   sync.Mutex
	subs map[chan Event]bool
}

// Subscribe returns the events from now on, in their order. A channel that is not read fast enough is closed: events
// are lost then, and the reader has to look at the lists. No subscriber delays what it hears of. cancel ends the
// subscription; it is idempotent.
func (m *Manager) Subscribe() (stream <-chan Event, cancel func()) {
	ch := make(chan Event, eventQueue)
	m.events.mu.Lock()
	defer m.events.mu.Unlock()
	if m.events.subs == nil {
		m.events.subs = map[chan Event]bool{}
	}
	m.events.subs[ch] = true
	return ch, func() { m.events.drop(ch) }
}

func (e *events) drop(ch chan Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropLocked(ch)
}

func (e *events) dropLocked(ch chan Event) {
	if e.subs[ch] {
		delete(e.subs, ch)
		close(ch)
	}
}

func (e *events) wanted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.subs) > 0
}

// send never waits.
func (e *events) send(event Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.subs {
		select {
		case ch <- event:
		default:
			e.dropLocked(ch)
		}
	}
}

// publish tells the subscribers. The caller may hold the lock of the sandbox or of one of its containers, and should
// where it changes the state, so that the events of one thing come in the order of its states; not the Manager's.
func (s *Sandbox) publish(kind EventType, containerID string) {
	if !s.m.events.wanted() {
		return
	}
	event := Event{Type: kind, ContainerID: containerID, Time: time.Now(), Sandbox: s.Status()}
	s.m.mu.RLock()
	for _, id := range event.Sandbox.Containers {
		if c := s.m.containers[id]; c != nil && c.Status().State != ContainerCreating {
			event.Containers = append(event.Containers, c.Status())
		}
	}
	s.m.mu.RUnlock()
	s.m.events.send(event)
}

// publishLocked tells of the state that the container has just come into.
func (c *Container) publishLocked() {
	switch c.Status().State {
	case ContainerCreated:
		c.s.publish(EventCreated, c.id)
	case ContainerRunning:
		c.s.publish(EventStarted, c.id)
	case ContainerExited:
		c.s.publish(EventStopped, c.id)
	}
}

// publishLocked tells of the state that the sandbox has just come into. It is started when it is made.
func (s *Sandbox) publishLocked() {
	switch s.Status().State {
	case SandboxReady:
		s.publish(EventCreated, s.id)
		s.publish(EventStarted, s.id)
	case SandboxStopped:
		s.publish(EventStopped, s.id)
	}
}

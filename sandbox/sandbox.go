package sandbox

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/namespace"
	"github.com/gantry-cri/gantry/trace"
)

// Sandbox is a pod sandbox: shared namespaces, a network and the containers in them.
//
//	creating ──▶ (gone)          make failed, or Stop or Remove came before it was done
//	   │ made          │ and could not be undone
//	   ▼      Stop     ▼            all undone            Remove
//	 ready ───────▶ stopping ───────────────────▶ stopped ───────▶ removing ──▶ (gone)
//	                ▲  ▲  │ a step failed                          ▲     │ a step failed
//	    unknown ────┘  └──┘ and is retried                         └─────┘ and is retried
//
// transition is the one place where the state changes. Persisted are the configuration, the addresses and two marks,
// ready and stopped (see sandboxRecordV1); everything else is derived at start.
//
// A Sandbox may be used from several goroutines.
type Sandbox struct {
	id string
	m  *Manager

	making, updating, stopping, removing, podInit flight
	// cancelMake ends the steps of a sandbox that is being made.
	cancelMake context.CancelFunc
	makeCtx    context.Context

	status atomic.Pointer[SandboxStatus]

	mu sync.Mutex
	// byName is the index of the containers by name and attempt, which are unique in a sandbox.
	byName map[containerKey]*Container
	// ownCgroup says that the cgroup parent is ours to remove.
	ownCgroup bool
}

// containerKey is what makes two requests for a container of one sandbox the same (CRI: ContainerMetadata).
type containerKey struct {
	name    string
	attempt uint32
}

var sandboxTransitions = map[SandboxState][]SandboxState{
	SandboxCreating: {SandboxReady, SandboxStopping},
	SandboxReady:    {SandboxStopping},
	SandboxStopping: {SandboxStopping, SandboxStopped},
	SandboxStopped:  {SandboxRemoving},
	SandboxRemoving: {SandboxRemoving},
	SandboxUnknown:  {SandboxStopping},
}

// subject is what the sandbox's calls are about, for their timelines.
func (s *Sandbox) subject() trace.Subject {
	m := s.Status().Config.GetMetadata()
	return trace.Subject{SandboxID: s.id, Pod: m.GetNamespace() + "/" + m.GetName()}
}

// Status returns the sandbox's status at this moment.
func (s *Sandbox) Status() *SandboxStatus { return s.status.Load() }

// transition changes the state, with whatever else change sets on the copy that becomes the status.
func (s *Sandbox) transition(to SandboxState, change func(*SandboxStatus)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.status.Load().State
	if !slices.Contains(sandboxTransitions[from], to) {
		return fmt.Errorf("sandbox %s is %s, which cannot become %s: %w", s.id, from, to, errdefs.ErrFailedPrecondition)
	}
	s.setLocked(func(st *SandboxStatus) {
		st.State = to
		if change != nil {
			change(st)
		}
	})
	s.publishLocked()
	return nil
}

// netnsPin is the name of the network namespace that is the same for every daemon and for the keeper, or empty.
func (s *Sandbox) netnsPin(st *SandboxStatus) string {
	if st.NetNS == "" {
		return ""
	}
	return filepath.Join(s.m.pinDir(s.id), namespace.Net)
}

func (s *Sandbox) setLocked(change func(*SandboxStatus)) {
	st := *s.status.Load()
	change(&st)
	s.status.Store(&st)
}

// save writes the record. stopped is the stop mark.
func (s *Sandbox) save(st *SandboxStatus, ready, stopped bool) error {
	config, err := encodeMessage(st.Config)
	if err != nil {
		return err
	}
	overhead, err := encodeMessage(st.Overhead)
	if err != nil {
		return err
	}
	resources, err := encodeMessage(st.Resources)
	if err != nil {
		return err
	}
	return writeRecord(s.m.sandboxDir(s.id), sandboxRecord, &sandboxRecordV1{
		Version: recordVersion, BootID: s.m.bootID, ID: s.id, Handler: st.Handler, Created: st.Created,
		Ready: ready, Stopped: stopped, IPs: st.IPs, NetNS: s.netnsPin(st), CgroupParent: st.CgroupParent,
		SELinuxLevel: st.SELinuxLevel, Config: config, Overhead: overhead, Resources: resources,
	})
}

// addContainer enters a container under its name, or returns the one that has the name already.
func (s *Sandbox) addContainer(c *Container) (existing *Container, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status.Load()
	if st.State != SandboxReady {
		return nil, fmt.Errorf("sandbox %s is %s, expected ready: %w", s.id, st.State, errdefs.ErrFailedPrecondition)
	}
	if existing := s.byName[c.key()]; existing != nil {
		return existing, nil
	}
	s.insertLocked(c)
	return nil, nil
}

func (s *Sandbox) insertLocked(c *Container) {
	s.byName[c.key()] = c
	s.setLocked(func(st *SandboxStatus) { st.Containers = append(slices.Clone(st.Containers), c.id) })
	s.m.mu.Lock()
	s.m.containers[c.id] = c
	s.m.mu.Unlock()
}

// dropContainer forgets a container that was removed.
func (s *Sandbox) dropContainer(c *Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[c.key()] == c {
		delete(s.byName, c.key())
	}
	s.setLocked(func(st *SandboxStatus) {
		st.Containers = slices.DeleteFunc(slices.Clone(st.Containers), func(id string) bool { return id == c.id })
	})
	s.m.mu.Lock()
	delete(s.m.containers, c.id)
	s.m.mu.Unlock()
	if c.Status().State != ContainerCreating { // of one that could not be made nobody has heard
		s.publish(EventDeleted, c.id)
	}
}

// members returns the containers.
func (s *Sandbox) members() []*Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Container, 0, len(s.byName))
	for _, c := range s.byName {
		list = append(list, c)
	}
	return list
}

func (m *Manager) newSandbox(id string, config *runtime.PodSandboxConfig, created time.Time) *Sandbox {
	s := &Sandbox{id: id, m: m, byName: map[containerKey]*Container{}, cancelMake: func() {}}
	s.status.Store(&SandboxStatus{
		ID: id, Config: config, State: SandboxCreating, Created: created,
		Overhead: config.GetLinux().GetOverhead(), Resources: config.GetLinux().GetResources(),
	})
	return s
}

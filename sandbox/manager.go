// Package sandbox is the life of pod sandboxes and their containers: records on disk, processes in the keeper,
// recovery after a restart. It is not the CRI server (package cri), not the image store and not the network: those it
// reaches by the interfaces Images and Network.
package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/host"
	"github.com/gantry-cri/gantry/sandbox/keeper/pins"
	"github.com/gantry-cri/gantry/sandbox/namespace"
	"github.com/gantry-cri/gantry/sandbox/spec"
)

// Cgroup drivers.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
)

// Config says where a Manager works and with what. All fields are required but those after Network.
type Config struct {
	// Root is the directory of what survives a reboot, State of what does not.
	Root, State string
	// CgroupDriver is DriverCgroupfs or DriverSystemd.
	CgroupDriver string
	// CgroupParent is the cgroup, in cgroupfs form, of sandboxes whose configuration names none.
	CgroupParent string
	// Keeper is the path of the keeper's binary.
	Keeper string
	// Build is this daemon's version; a keeper of another build is used, and said so.
	Build   string
	Images  Images
	Layers  Layers
	Network Network
	// Handlers are the runtime handlers by name; the default one, "", need not be among them.
	Handlers map[string]Handler
	// Rlimits are the resource limits of containers' processes, lowered to what the keeper may give.
	Rlimits []specs.POSIXRlimit
	// MakeMissingSources makes a directory where a mount's host_path does not exist, as other runtimes do; the CRI asks
	// for an error.
	MakeMissingSources bool
	// Plugins says that other programs than the daemon make the network: they get paths of network namespaces that are
	// the same for every daemon. It costs a mount for each sandbox in the node's table.
	Plugins bool
	// CDISpecDirs are the directories of CDI specs; of a device that is in several the last counts.
	CDISpecDirs []string
}

// Manager owns every sandbox and container of one state directory. All methods may be called from several goroutines;
// those that read take no lock that is held across I/O and make no system call.
//
// Errors satisfy errdefs: ErrNotFound, ErrInvalidArgument (the text names the field, the value and what was expected),
// ErrFailedPrecondition (wrong state), ErrAlreadyExists (the same name with another configuration), ErrUnavailable
// (the keeper is being replaced); or context's.
//
// An id argument may be any unique prefix of an id.
type Manager struct {
	config Config
	node   spec.Node
	bootID string
	keeper *keeperLink
	pins   *pins.View
	// noUserns is why user namespaces cannot be had, or nil.
	noUserns error

	mu sync.RWMutex
	// The maps are the index of what is on disk. A sandbox that is being made is in sandboxes but not yet listed.
	sandboxes  map[string]*Sandbox
	containers map[string]*Container
	// running holds the sandbox that answers for a metadata: the one that is being made or is ready.
	running map[sandboxKey]*Sandbox

	events events
}

// sandboxKey is what makes two requests for a sandbox the same (CRI: PodSandboxMetadata).
type sandboxKey struct {
	namespace, name, uid string
	attempt              uint32
}

func keyOf(c *runtime.PodSandboxConfig) sandboxKey {
	m := c.GetMetadata()
	return sandboxKey{m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt()}
}

// Open makes a Manager of what is on disk, spawns or joins the keeper, and returns when every sandbox and container is
// in its right state.
func Open(ctx context.Context, config Config) (*Manager, error) {
	m := &Manager{
		config:     config,
		node:       host.Facts(),
		sandboxes:  map[string]*Sandbox{},
		containers: map[string]*Container{},
		running:    map[sandboxKey]*Sandbox{},
	}
	if err := os.MkdirAll(filepath.Join(config.Root, sandboxesDir), 0o700); err != nil {
		return nil, fmt.Errorf("make record directory: %w", err)
	}
	if err := m.discardCheckpoints(); err != nil {
		return nil, err
	}
	if err := pins.Open(m.pinsDir()); err != nil {
		return nil, err
	}
	var err error
	if m.pins, err = pins.Look(m.pinsDir()); err != nil {
		return nil, err
	}
	if err := m.recover(ctx); err != nil {
		m.pins.Close()
		return nil, err
	}
	m.probeUserns()
	return m, nil
}

// Close lets go of the keeper, which goes on as long as a container lives; else it ends too.
func (m *Manager) Close(ctx context.Context) error {
	err := m.keeper.close(ctx)
	m.withdraw()
	m.pins.Close()
	pins.Close(m.pinsDir())
	m.leaveCgroupParent()
	return err
}

// withdraw takes back what leads through this process in /run/netns: the next daemon announces it anew.
func (m *Manager) withdraw() {
	for _, s := range m.Sandboxes() {
		if s.NetNS != "" && s.NetNS != filepath.Join(m.pinDir(s.ID), namespace.Net) {
			namespace.Withdraw(s.ID)
		}
	}
}

// Sandbox returns the status of a sandbox.
func (m *Manager) Sandbox(id string) (*SandboxStatus, error) {
	s, err := m.findSandbox(id)
	if err != nil {
		return nil, err
	}
	return s.Status(), nil
}

// Sandboxes returns the status of all sandboxes, oldest first. One that is still being made is not among them.
func (m *Manager) Sandboxes() []*SandboxStatus {
	m.mu.RLock()
	list := make([]*SandboxStatus, 0, len(m.sandboxes))
	for _, s := range m.sandboxes {
		if st := s.Status(); st.State != SandboxCreating {
			list = append(list, st)
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(list, func(a, b *SandboxStatus) int { return a.Created.Compare(b.Created) })
	return list
}

// Container returns the status of a container.
func (m *Manager) Container(id string) (*ContainerStatus, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return nil, err
	}
	return c.Status(), nil
}

// Containers returns the status of all containers, oldest first. One that is still being made is not among them.
func (m *Manager) Containers() []*ContainerStatus {
	m.mu.RLock()
	list := make([]*ContainerStatus, 0, len(m.containers))
	for _, c := range m.containers {
		if st := c.Status(); st.State != ContainerCreating {
			list = append(list, st)
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(list, func(a, b *ContainerStatus) int { return a.Created.Compare(b.Created) })
	return list
}

// CgroupDriver is DriverCgroupfs or DriverSystemd.
func (m *Manager) CgroupDriver() string { return m.config.CgroupDriver }

// KeeperReady returns nil, or why the keeper cannot be used just now.
func (m *Manager) KeeperReady() error { return m.keeper.ready() }

func (m *Manager) findSandbox(id string) (*Sandbox, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.sandboxes, "sandbox", id)
}

func (m *Manager) findContainer(id string) (*Container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.containers, "container", id)
}

// find resolves an id or a unique prefix of one.
func find[T any](all map[string]T, kind, id string) (T, error) {
	var found T
	if x, ok := all[id]; ok {
		return x, nil
	}
	if id == "" {
		return found, fmt.Errorf("%s id is empty: %w", kind, errdefs.ErrInvalidArgument)
	}
	n := 0
	for full, x := range all {
		if strings.HasPrefix(full, id) {
			found = x
			n++
		}
	}
	var none T
	switch n {
	case 0:
		return none, fmt.Errorf("%s %q: %w", kind, id, errdefs.ErrNotFound)
	case 1:
		return found, nil
	}
	return none, fmt.Errorf("%s id %q is ambiguous: %d ids begin with it: %w", kind, id, n, errdefs.ErrInvalidArgument)
}

// gone reports whether err means that what was to be stopped or removed does not exist, which is what the caller
// wanted.
func gone(err error) bool { return errors.Is(err, errdefs.ErrNotFound) }

// newID gives 64 hexadecimal digits: no '-', which the kubelet would take for a separator in log file names.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func (m *Manager) sandboxDir(id string) string {
	return filepath.Join(m.config.Root, sandboxesDir, id)
}

func (m *Manager) containerDir(sandboxID, id string) string {
	return filepath.Join(m.sandboxDir(sandboxID), containersDir, id)
}

func (m *Manager) pinsDir() string { return pins.Dir(m.config.State) }

func (m *Manager) pinDir(id string) string { return filepath.Join(m.pinsDir(), id) }

// netns is where this daemon, and who it tells, finds the network namespace of a sandbox; its name if there is none.
func (m *Manager) netns(id string) string {
	pin := filepath.Join(m.pinDir(id), namespace.Net)
	if path := m.pins.Path(pin); pins.Alive(path) {
		return path
	}
	return pin
}

// background returns the context of work that outlives the call that asked for it, with a deadline, since no external
// step may take for ever.
func background(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), timeout)
}

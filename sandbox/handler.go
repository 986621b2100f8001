package sandbox

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// Handler is how a runtime handler differs from others. All run containers in the same way, by libcontainer.
type Handler struct {
	// SeccompNativeOnly compiles seccomp filters for the native architecture only.
	SeccompNativeOnly bool
	// PrivilegedWithoutHostDevices gives a privileged container only the devices that it asks for.
	PrivilegedWithoutHostDevices bool
}

// handler finds a runtime handler; the default one, "", is always there.
func (m *Manager) handler(name string) (Handler, bool) {
	h, ok := m.config.Handlers[name]
	return h, ok || name == ""
}

func (m *Manager) checkHandler(name string) error {
	if _, ok := m.handler(name); ok {
		return nil
	}
	return fmt.Errorf("runtime_handler %q: expected one of %q: %w", name, m.handlerNames(), errdefs.ErrInvalidArgument)
}

func (m *Manager) handlerNames() []string {
	names := slices.AppendSeq([]string{""}, maps.Keys(m.config.Handlers))
	slices.Sort(names)
	return slices.Compact(names)
}

// nodeOf is the node as the containers of a sandbox see it: its handler decides.
func (m *Manager) nodeOf(sandbox *SandboxStatus) (spec.Node, error) {
	node := m.node
	h, ok := m.handler(sandbox.Handler)
	if !ok {
		// The sandbox is older than the configuration.
		return node, fmt.Errorf("runtime handler %q of sandbox %s is not configured any more: %w", sandbox.Handler,
			sandbox.ID, errdefs.ErrFailedPrecondition)
	}
	node.SeccompNativeOnly = h.SeccompNativeOnly
	node.NoHostDevices = h.PrivilegedWithoutHostDevices
	node.Rlimits = m.config.Rlimits
	return node, nil
}

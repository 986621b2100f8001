package sandbox

import (
	"slices"

	"github.com/gantry-cri/gantry/sandbox/host"
	"github.com/gantry-cri/gantry/sandbox/spec"
)

// What keeps pods apart under SELinux is the level: each sandbox has one of its own, which its containers share. It is
// in the record, so that no other sandbox gets it while this one exists, whatever daemon runs.

// releaseLevel gives back the level of a sandbox that is gone, unless another was configured to have the same.
func (m *Manager) releaseLevel(level string) {
	if level == "" {
		return // without SELinux; not worth a look at all sandboxes
	}
	shared := slices.ContainsFunc(m.Sandboxes(), func(other *SandboxStatus) bool { return other.SELinuxLevel == level })
	if !shared {
		host.ReleaseLevel(level)
	}
}

// labels are the SELinux labels of the container; none without SELinux.
func (c *Container) labels(sandbox *SandboxStatus) (spec.Labels, error) {
	if !c.m.node.SELinux {
		return spec.Labels{}, nil
	}
	return host.Labels(sandbox.Config, c.Status().Config, sandbox.SELinuxLevel)
}

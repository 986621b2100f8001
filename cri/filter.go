package cri

import (
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// listSandboxes returns the sandboxes that satisfy every part of filter; a nil filter is satisfied by all.
//
// A sandbox that is still being made is left out. The kubelet gives the retry of a RunPodSandbox that timed out the
// next attempt number if it sees a sandbox, and the same one if it sees none: only the latter joins the job that runs.
func (s *Server) listSandboxes(filter *runtime.PodSandboxFilter) ([]*runtime.PodSandbox, error) {
	list, live, err := s.filterSandboxes(filter)
	if err != nil {
		return nil, err
	}
	return listed(&s.sandboxForms, list, live, sandboxItem), nil
}

// filterSandboxes returns the statuses that satisfy filter, and how many there are.
func (s *Server) filterSandboxes(
	filter *runtime.PodSandboxFilter,
) (list []*sandbox.SandboxStatus, live int, err error) {
	all := visibleSandboxes(s.runtime.Sandboxes())
	id, ok, err := resolveID("filter.id", filter.GetId(), sandboxIDs(all))
	if err != nil || !ok {
		return nil, len(all), err
	}
	list = make([]*sandbox.SandboxStatus, 0, len(all))
	for _, status := range all {
		switch {
		case id != "" && status.ID != id:
		case filter.GetState() != nil && sandboxState(status) != filter.GetState().GetState():
		case !matchLabels(filter.GetLabelSelector(), status.Config.GetLabels()):
		default:
			list = append(list, status)
		}
	}
	return list, len(all), nil
}

// listContainers returns the containers that satisfy every part of filter; a nil filter is satisfied by all. A
// container that is still being made is left out: the kubelet takes one that it finds created as one whose start
// failed.
func (s *Server) listContainers(filter *runtime.ContainerFilter) ([]*runtime.Container, error) {
	list, live, err := s.filterContainers(filter)
	if err != nil {
		return nil, err
	}
	return listed(&s.containerForms, list, live, containerItem), nil
}

// filterContainers returns the statuses that satisfy filter, and how many there are.
func (s *Server) filterContainers(
	filter *runtime.ContainerFilter,
) (list []*sandbox.ContainerStatus, live int, err error) {
	all := visibleContainers(s.runtime.Containers())
	id, ok, err := resolveID("filter.id", filter.GetId(), containerIDs(all))
	if err != nil || !ok {
		return nil, len(all), err
	}
	sandboxID := filter.GetPodSandboxId()
	if sandboxID != "" {
		ids := sandboxIDs(visibleSandboxes(s.runtime.Sandboxes()))
		sandboxID, ok, err = resolveID("filter.pod_sandbox_id", sandboxID, ids)
		if err != nil || !ok {
			return nil, len(all), err
		}
	}
	list = make([]*sandbox.ContainerStatus, 0, len(all))
	for _, status := range all {
		switch {
		case id != "" && status.ID != id:
		case sandboxID != "" && status.SandboxID != sandboxID:
		case filter.GetState() != nil && containerState(status) != filter.GetState().GetState():
		case !matchLabels(filter.GetLabelSelector(), status.Config.GetLabels()):
		default:
			list = append(list, status)
		}
	}
	return list, len(all), nil
}

// resolveID finds the one id that prefix begins or equals. An empty prefix gives an empty id, found. A prefix of
// several ids is an error unless it equals one of them.
func resolveID(field, prefix string, ids []string) (id string, found bool, err error) {
	if prefix == "" {
		return "", true, nil
	}
	for _, candidate := range ids {
		switch {
		case candidate == prefix:
			return candidate, true, nil
		case !strings.HasPrefix(candidate, prefix):
		case id == "":
			id = candidate
		default:
			// Not final: a later candidate may equal the prefix.
			err = invalidf("%s %q begins more than one id, expected a unique prefix", field, prefix)
		}
	}
	if err != nil {
		return "", false, err
	}
	return id, id != "", nil
}

// matchLabels reports whether labels has every key of selector with the same value.
func matchLabels(selector, labels map[string]string) bool {
	for key, want := range selector {
		if got, ok := labels[key]; !ok || got != want {
			return false
		}
	}
	return true
}

func visibleSandboxes(all []*sandbox.SandboxStatus) []*sandbox.SandboxStatus {
	visible := make([]*sandbox.SandboxStatus, 0, len(all))
	for _, status := range all {
		if status.State != sandbox.SandboxCreating {
			visible = append(visible, status)
		}
	}
	return visible
}

func visibleContainers(all []*sandbox.ContainerStatus) []*sandbox.ContainerStatus {
	visible := make([]*sandbox.ContainerStatus, 0, len(all))
	for _, status := range all {
		if status.State != sandbox.ContainerCreating {
			visible = append(visible, status)
		}
	}
	return visible
}

func sandboxIDs(all []*sandbox.SandboxStatus) []string {
	ids := make([]string, len(all))
	for i, status := range all {
		ids[i] = status.ID
	}
	return ids
}

func containerIDs(all []*sandbox.ContainerStatus) []string {
	ids := make([]string, len(all))
	for i, status := range all {
		ids[i] = status.ID
	}
	return ids
}

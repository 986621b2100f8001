package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// addNamespaces joins the sandbox's namespaces and makes the container's own ones.
func (b *builder) addNamespaces() error {
	options := b.security.GetNamespaceOptions()
	sandbox := b.in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if err := b.addUserNamespace(options.GetUsernsOptions()); err != nil {
		return err
	}
	b.makeNamespace(specs.MountNamespace)
	if b.in.Node.CgroupV2 && !b.privileged {
		b.makeNamespace(specs.CgroupNamespace)
	}
	paths := b.in.Namespaces
	network := podScope{specs.NetworkNamespace, "network", options.GetNetwork(), sandbox.GetNetwork(), paths.Network}
	ipc := podScope{specs.IPCNamespace, "ipc", options.GetIpc(), sandbox.GetIpc(), paths.IPC}
	// The CRI has no option for the UTS namespace: a pod on the host's network has the host's name.
	uts := podScope{specs.UTSNamespace, "network", options.GetNetwork(), sandbox.GetNetwork(), paths.UTS}
	for _, ns := range []podScope{network, ipc, uts} {
		if err := b.addPodNamespace(ns); err != nil {
			return err
		}
	}
	return b.addPIDNamespace(options)
}

// podScope is a namespace that all containers of a sandbox have in common.
type podScope struct {
	kind            specs.LinuxNamespaceType
	option          string
	mode, sandboxes runtime.NamespaceMode
	path            string
}

// addPodNamespace joins the sandbox's namespace. POD in a sandbox that is on the host means just that; NODE in one that
// is not would leave the pod. Without a path in a sandbox that should have one nothing starts, for it would be on the
// host.
func (b *builder) addPodNamespace(ns podScope) error {
	field := securityField("namespace_options." + ns.option)
	onHost := ns.sandboxes == runtime.NamespaceMode_NODE
	switch {
	case ns.mode != runtime.NamespaceMode_POD && ns.mode != runtime.NamespaceMode_NODE:
		return invalid(field, ns.mode.String(), "POD or NODE")
	case ns.mode == runtime.NamespaceMode_NODE && !onHost:
		return invalid(field, ns.mode.String(), "the mode of the sandbox, "+ns.sandboxes.String())
	case ns.path != "":
		b.joinNamespace(ns.kind, ns.path)
	case !onHost:
		return invalid(field, ns.mode.String(), "the path of the sandbox's "+string(ns.kind)+" namespace")
	}
	return nil
}

func (b *builder) addPIDNamespace(options *runtime.NamespaceOption) error {
	field := securityField("namespace_options.pid")
	path := b.in.Namespaces.PID
	switch mode := options.GetPid(); mode {
	case runtime.NamespaceMode_NODE:
		return nil
	case runtime.NamespaceMode_CONTAINER:
		b.makeNamespace(specs.PIDNamespace)
		return nil
	case runtime.NamespaceMode_TARGET:
		if target := options.GetTargetId(); target == "" {
			return invalid(securityField("namespace_options.target_id"), target, "the id of a container")
		}
	case runtime.NamespaceMode_POD:
	default:
		return invalid(field, mode.String(), "POD, CONTAINER, NODE or TARGET")
	}
	if path == "" {
		return invalid(field, options.GetPid().String(), "a PID namespace to join")
	}
	b.joinNamespace(specs.PIDNamespace, path)
	return nil
}

func (b *builder) makeNamespace(kind specs.LinuxNamespaceType) { b.joinNamespace(kind, "") }

func (b *builder) joinNamespace(kind specs.LinuxNamespaceType, path string) {
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
}

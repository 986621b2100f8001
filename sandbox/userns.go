package sandbox

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/namespace"
	"github.com/gantry-cri/gantry/sandbox/spec"
)

const usernsField = "linux.security_context.namespace_options.userns_options"

// UserNamespaces says whether sandboxes can have user namespaces of their own on this node.
func (m *Manager) UserNamespaces() bool { return m.noUserns == nil }

// probeUserns finds out, once, by making one.
func (m *Manager) probeUserns() {
	ids := &runtime.IDMapping{HostId: 1 << 16, Length: 1 << 16}
	m.noUserns = checkOpen(m.config.State)
	if m.noUserns == nil {
		m.noUserns = namespace.ProbeUser(m.config.Root, m.userOptions(ids, ids))
	}
	if m.noUserns != nil {
		klog.InfoS("User namespaces cannot be had on this node", "reason", m.noUserns)
	}
}

// checkOpen refuses a state directory that others than root cannot reach: root filesystems are mounted below it, and
// the root of a user namespace, who is another outside, has to get there.
func checkOpen(dir string) error {
	for ; dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("look at the state directory: %w", err)
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("directory %s has mode %#o, expected others to be allowed to search it", dir, info.Mode().Perm())
		}
	}
	return nil
}

func (m *Manager) userOptions(uids, gids *runtime.IDMapping) *namespace.User {
	return &namespace.User{
		UIDs:   namespace.IDMap{Host: uids.GetHostId(), Length: uids.GetLength()},
		GIDs:   namespace.IDMap{Host: gids.GetHostId(), Length: gids.GetLength()},
		Holder: m.config.Keeper, Env: []string{keeper.HoldMarker + "=1"},
	}
}

// userOptionsOf is the user namespace that a sandbox's configuration asks for, or nil.
func (m *Manager) userOptionsOf(config *runtime.PodSandboxConfig) (*namespace.User, error) {
	u := spec.UserNamespace(config)
	if u == nil {
		return nil, nil
	}
	if m.noUserns != nil {
		return nil, fmt.Errorf("%s.mode POD: this node cannot have user namespaces: %w: %w", usernsField, m.noUserns,
			errdefs.ErrFailedPrecondition)
	}
	return m.userOptions(u.GetUids()[0], u.GetGids()[0]), nil
}

// checkUserns refuses a user namespace that cannot be, or beside the node's IPC or PID namespace: what is mounted of
// those, /dev/mqueue and /proc, can only be mounted by the root of the user namespace that owns them. On the node's
// network /sys is the node's, read-only (package spec).
func checkUserns(ns *runtime.NamespaceOption) error {
	if err := spec.CheckUserNamespace(usernsField, ns.GetUsernsOptions()); err != nil {
		return err
	}
	if ns.GetUsernsOptions() == nil || ns.GetUsernsOptions().GetMode() == runtime.NamespaceMode_NODE {
		return nil
	}
	for _, other := range []struct {
		field string
		mode  runtime.NamespaceMode
	}{{"ipc", ns.GetIpc()}, {"pid", ns.GetPid()}} {
		if other.mode == runtime.NamespaceMode_NODE {
			return fmt.Errorf("linux.security_context.namespace_options.%s %s: expected one of the sandbox's own "+
				"with userns_options.mode POD: %w", other.field, other.mode, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// giveFiles lets the root of a user namespace change hostname, hosts and resolv.conf, as root can without one.
func giveFiles(dir string, user *namespace.User) error {
	if user == nil {
		return nil
	}
	for _, name := range []string{hostnameFile, hostsFile, resolvFile} {
		if err := os.Chown(filepath.Join(dir, name), int(user.UIDs.Host), int(user.GIDs.Host)); err != nil {
			return fmt.Errorf("give file to user namespace: %w", err)
		}
	}
	return nil
}

// userNS is the path of the sandbox's user namespace, or empty.
func (s *Sandbox) userNS() string {
	if spec.UserNamespace(s.Status().Config) == nil {
		return ""
	}
	return filepath.Join(s.m.pinDir(s.id), namespace.Userns)
}

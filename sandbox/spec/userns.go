package spec

import (
	"fmt"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idMapOption makes libcontainer map the owners of a bind mount, and of what is mounted below it, by the container's
// user namespace; of an overlay, which the kernel cannot map, the keeper maps the layers.
const (
	idMapBindOption    = "ridmap"
	idMapOverlayOption = "idmap"
)

// terminalGroup is the group of terminals that devpts is told.
const terminalGroup = 5

// CheckUserNamespace checks the user namespace that a sandbox is to have, which field names. Errors:
// errdefs.ErrInvalidArgument.
func CheckUserNamespace(field string, u *runtime.UserNamespace) error {
	switch mode := u.GetMode(); {
	case u == nil:
		return nil
	case mode == runtime.NamespaceMode_NODE && len(u.GetUids())+len(u.GetGids()) > 0:
		return invalid(field+".mode", mode.String(), "POD where there are mappings")
	case mode == runtime.NamespaceMode_NODE:
		return nil
	case mode != runtime.NamespaceMode_POD:
		return invalid(field+".mode", mode.String(), "POD or NODE")
	}
	if err := checkMappings(field+".uids", u.GetUids()); err != nil {
		return err
	}
	return checkMappings(field+".gids", u.GetGids())
}

// checkMappings: the CRI wants exactly one, and a container without a root could not be set up.
func checkMappings(field string, mappings []*runtime.IDMapping) error {
	if n := len(mappings); n != 1 {
		return refused(field, fmt.Sprintf("%d mappings, expected exactly one", n))
	}
	field += "[0]"
	m := mappings[0]
	switch last := uint64(m.GetHostId()) + uint64(m.GetLength()) - 1; {
	case m.GetContainerId() != 0:
		return invalid(field+".container_id", m.GetContainerId(), "0")
	case m.GetLength() == 0:
		return invalid(field+".length", 0, "a number above 0")
	case last >= math.MaxUint32: // which stands for no id
		return invalid(field+".host_id", m.GetHostId(),
			fmt.Sprintf("that and the %d above it below 4294967295", m.GetLength()-1))
	}
	return nil
}

// UserNamespace returns the user namespace of a sandbox's own, or nil.
func UserNamespace(sandbox *runtime.PodSandboxConfig) *runtime.UserNamespace {
	u := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if u == nil || u.GetMode() == runtime.NamespaceMode_NODE {
		return nil
	}
	return u
}

// addUserNamespace joins the sandbox's. The container must ask for what the sandbox has.
func (b *builder) addUserNamespace(asked *runtime.UserNamespace) error {
	field := securityField("namespace_options.userns_options")
	own, path := UserNamespace(b.in.Sandbox), b.in.Namespaces.User
	if err := CheckUserNamespace(field, asked); err != nil {
		return err
	}
	if asked.GetMode() == runtime.NamespaceMode_NODE {
		asked = nil
	}
	switch {
	case own == nil && asked == nil:
		return nil
	case asked == nil:
		return invalid(field, "of the node", "the sandbox's")
	case own == nil:
		return invalid(field, asked.GetMode().String(), "the sandbox's, which is the node's")
	case !proto.Equal(own, asked):
		return refused(field, fmt.Sprintf("{%v}, expected the sandbox's, {%v}", asked, own))
	case path == "":
		return invalid(field, asked.GetMode().String(), "the path of the sandbox's user namespace")
	}
	b.joinNamespace(specs.UserNamespace, path)
	b.spec.Linux.UIDMappings = []specs.LinuxIDMapping{mapping(own.GetUids()[0])}
	b.spec.Linux.GIDMappings = []specs.LinuxIDMapping{mapping(own.GetGids()[0])}
	return nil
}

func mapping(m *runtime.IDMapping) specs.LinuxIDMapping {
	return specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()}
}

// mapsOwners says whether the owners of a mount are to be mapped, which can only be as the sandbox's user namespace
// maps them.
func (b *builder) mapsOwners(field string, m *runtime.Mount) (bool, error) {
	if len(m.GetUidMappings())+len(m.GetGidMappings()) == 0 {
		return false, nil
	}
	own := UserNamespace(b.in.Sandbox)
	for _, list := range []struct {
		field       string
		given, want []*runtime.IDMapping
	}{
		{field + ".uidMappings", m.GetUidMappings(), own.GetUids()},
		{field + ".gidMappings", m.GetGidMappings(), own.GetGids()},
	} {
		same := slices.EqualFunc(list.given, list.want, func(x, y *runtime.IDMapping) bool { return proto.Equal(x, y) })
		if own == nil && len(list.given) > 0 {
			return false, refused(list.field, "mappings in a sandbox without a user namespace")
		} else if !same {
			return false, refused(list.field, fmt.Sprintf("%v, expected those of the sandbox, %v", list.given, list.want))
		}
	}
	return true, nil
}

// hasGroup says whether a group exists in the container: in a user namespace some may not.
func (b *builder) hasGroup(gid uint32) bool {
	maps := b.spec.Linux.GIDMappings
	return len(maps) == 0 || gid < maps[0].Size
}

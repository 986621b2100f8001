package spec

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// builder carries what the steps of Build read and write.
type builder struct {
	in         Input
	image      *ocispec.ImageConfig
	security   *runtime.LinuxContainerSecurityContext // nil is possible; only its getters are used
	privileged bool

	spec *specs.Spec
	user User
}

// Build makes the OCI spec and the user of a container. Root.Path, Process.User and Hostname are left to who starts the
// container. An error satisfies errdefs.ErrInvalidArgument and names the field, the value and what was expected.
func Build(in Input) (*specs.Spec, User, error) {
	b := newBuilder(in)
	for _, step := range []func(*builder) error{
		(*builder).checkPrivileged,
		(*builder).addArgs,
		(*builder).addEnv,
		(*builder).addCwd,
		(*builder).addUser,
		(*builder).addCapabilities,
		(*builder).addNamespaces,
		(*builder).addMounts,
		(*builder).addResources,
		(*builder).addDevices,
		(*builder).addSeccomp, // looks at the capabilities
		(*builder).addAppArmor,
		(*builder).addPaths,
	} {
		if err := step(b); err != nil {
			return nil, User{}, err
		}
	}
	return b.spec, b.user, nil
}

func newBuilder(in Input) *builder {
	image := in.Image
	if image == nil {
		image = &ocispec.ImageConfig{}
	}
	security := in.Config.GetLinux().GetSecurityContext()
	return &builder{
		in:         in,
		image:      image,
		security:   security,
		privileged: security.GetPrivileged(),
		spec: &specs.Spec{
			Version: specs.Version,
			Root:    &specs.Root{Readonly: security.GetReadonlyRootfs()},
			Process: &specs.Process{
				SelinuxLabel:    in.Labels.Process,
				Terminal:        in.Config.GetTty(),
				NoNewPrivileges: security.GetNoNewPrivs(),
				Rlimits:         slices.Clone(in.Node.Rlimits),
			},
			Linux: &specs.Linux{CgroupsPath: in.CgroupsPath, MountLabel: in.Labels.Mount},
		},
	}
}

// invalid is the error for a value of the configuration that cannot be used: which field, what it is, what was expected
// of it.
func invalid(field string, value any, want string) error {
	if s, ok := value.(string); ok {
		value = strconv.Quote(s)
	}
	return fmt.Errorf("%s %v: expected %s: %w", field, value, want, errdefs.ErrInvalidArgument)
}

// refused is the error for a value that is best told in words of its own.
func refused(field, what string) error {
	return fmt.Errorf("%s: %s: %w", field, what, errdefs.ErrInvalidArgument)
}

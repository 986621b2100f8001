package spec

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a filter may say. The process that compiles it checks again, but only at the start.
var seccompActions = []specs.LinuxSeccompAction{
	specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace,
	specs.ActAllow, specs.ActLog, specs.ActNotify,
}

// SeccompFile returns the path of the Localhost profile that a container asks for and the field it is in; empty when it
// asks for none. What is there belongs in Host.SeccompProfile.
func SeccompFile(config *runtime.ContainerConfig) (file, field string) {
	sc := config.GetLinux().GetSecurityContext()
	p, err := seccompProfile(sc)
	if err != nil || sc.GetPrivileged() {
		return "", ""
	}
	return p.ref, p.field
}

func (b *builder) addSeccomp() error {
	if b.privileged {
		return nil
	}
	p, err := seccompProfile(b.security)
	if err != nil {
		return err
	}
	switch p.kind {
	case runtime.SecurityProfile_RuntimeDefault:
		return b.addDefaultSeccomp()
	case runtime.SecurityProfile_Localhost:
		return b.addLocalhostSeccomp(p)
	}
	return nil
}

// seccompProfile: the new field, else the deprecated one, else unconfined.
func seccompProfile(sc *runtime.LinuxContainerSecurityContext) (profile, error) {
	p := profile{kind: runtime.SecurityProfile_Unconfined}
	var err error
	if sp := sc.GetSeccomp(); sp != nil {
		p, err = parseProfile(securityField("seccomp"), sp)
	} else if s := sc.GetSeccompProfilePath(); s != "" { //nolint:staticcheck // SA1019: older clients send only this one.
		p, err = parseProfileString(securityField("seccomp_profile_path"), s)
	}
	if err == nil && p.kind == runtime.SecurityProfile_Localhost && !path.IsAbs(p.ref) {
		err = invalid(p.field, p.ref, "an absolute path")
	}
	return p, err
}

// DefaultSeccomp returns the filter of a container that asks for RuntimeDefault and for no capabilities of its own, nil
// on a node without seccomp.
func DefaultSeccomp(node Node) (*specs.LinuxSeccomp, error) {
	b := newBuilder(Input{Node: node})
	if err := b.addCapabilities(); err != nil {
		return nil, err
	}
	err := b.addDefaultSeccomp()
	return b.spec.Linux.Seccomp, err
}

func (b *builder) addDefaultSeccomp() error {
	if !b.in.Node.Seccomp {
		return nil
	}
	filter, err := seccomp.GetDefaultProfile(b.spec)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", securityField("seccomp"), errdefs.ErrInvalidArgument, err)
	}
	// The first architecture is the native one. Each further one makes the filter bigger and slower to compile.
	if b.in.Node.SeccompNativeOnly && len(filter.Architectures) > 1 {
		filter.Architectures = filter.Architectures[:1]
	}
	if !b.in.Node.X32 {
		filter.Architectures = slices.DeleteFunc(filter.Architectures,
			func(arch specs.Arch) bool { return arch == specs.ArchX32 })
	}
	b.spec.Linux.Seccomp = filter
	return nil
}

// addLocalhostSeccomp takes the file's architectures as they are: a profile of the user's own says what it means.
func (b *builder) addLocalhostSeccomp(p profile) error {
	if !b.in.Node.Seccomp {
		return invalid(p.field, p.ref, "no profile on a node without seccomp")
	}
	if err := checkSeccompFile(b.in.Host.SeccompProfile); err != nil {
		return fmt.Errorf("%s %q: %w: %w", p.field, p.ref, errdefs.ErrInvalidArgument, err)
	}
	filter, err := seccomp.LoadProfile(string(b.in.Host.SeccompProfile), b.spec)
	if err != nil {
		return fmt.Errorf("%s %q: %w: %w", p.field, p.ref, errdefs.ErrInvalidArgument, err)
	}
	b.spec.Linux.Seccomp = filter
	return nil
}

// checkSeccompFile finds what LoadProfile takes without a look (and, for a null entry, with a panic).
func checkSeccompFile(content []byte) error {
	var file seccomp.Seccomp
	if err := json.Unmarshal(content, &file); err != nil {
		return fmt.Errorf("parse profile: %w", err)
	}
	if !slices.Contains(seccompActions, file.DefaultAction) {
		return fmt.Errorf("defaultAction %q is not known", file.DefaultAction)
	}
	for i, call := range file.Syscalls {
		if call == nil {
			return fmt.Errorf("syscalls[%d] is null", i)
		}
		if !slices.Contains(seccompActions, call.Action) {
			return fmt.Errorf("syscalls[%d].action %q is not known", i, call.Action)
		}
	}
	return nil
}

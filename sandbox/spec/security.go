package spec

import (
	"fmt"
	"path"
	"slices"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// securityField names a field of the container's security context in an error.
func securityField(name string) string { return "linux.security_context." + name }

// What a container without a security context does not see of /proc and /sys, and what it cannot write there. Whoever
// sends a security context (the kubelet always) sends the lists too, and there empty means none.
var (
	defaultMaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// checkPrivileged refuses a privileged container in a sandbox that was not announced to hold one.
func (b *builder) checkPrivileged() error {
	if b.privileged && !b.in.Sandbox.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid(securityField("privileged"), true, "a privileged sandbox for a privileged container")
	}
	return nil
}

func (b *builder) addPaths() error {
	masked, readonly := b.security.GetMaskedPaths(), b.security.GetReadonlyPaths()
	if b.security == nil {
		masked, readonly = defaultMaskedPaths, defaultReadonlyPaths
	}
	for _, list := range []struct {
		field string
		paths []string
	}{{"masked_paths", masked}, {"readonly_paths", readonly}} {
		for i, p := range list.paths {
			if !path.IsAbs(p) {
				return invalid(fmt.Sprintf("%s[%d]", securityField(list.field), i), p, "an absolute path")
			}
		}
	}
	if !b.privileged {
		b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths = slices.Clone(masked), slices.Clone(readonly)
	}
	return nil
}

// profile is a security profile with the deprecated form resolved: it has no other difference left.
type profile struct {
	kind runtime.SecurityProfile_ProfileType
	// ref names the Localhost profile, and field where that name came from.
	ref, field string
}

// parseProfile checks the form of a SecurityProfile.
func parseProfile(field string, p *runtime.SecurityProfile) (profile, error) {
	kind, ref := p.GetProfileType(), p.GetLocalhostRef()
	refField := field + ".localhost_ref"
	switch kind {
	case runtime.SecurityProfile_RuntimeDefault, runtime.SecurityProfile_Unconfined:
		if ref != "" {
			return profile{}, invalid(refField, ref, "it only with the profile type Localhost")
		}
	case runtime.SecurityProfile_Localhost:
		if ref == "" {
			return profile{}, invalid(refField, ref, "the name of the profile")
		}
	default:
		return profile{}, invalid(field+".profile_type", kind.String(), "RuntimeDefault, Unconfined or Localhost")
	}
	return profile{kind: kind, ref: ref, field: refField}, nil
}

// parseProfileString reads the deprecated form; empty is for the caller to decide.
func parseProfileString(field, s string) (profile, error) {
	const localhost = "localhost/"
	switch {
	case s == "runtime/default", s == "docker/default":
		return profile{kind: runtime.SecurityProfile_RuntimeDefault, field: field}, nil
	case s == "unconfined":
		return profile{kind: runtime.SecurityProfile_Unconfined, field: field}, nil
	case len(s) > len(localhost) && s[:len(localhost)] == localhost:
		return profile{kind: runtime.SecurityProfile_Localhost, ref: s[len(localhost):], field: field}, nil
	}
	return profile{}, invalid(field, s, "runtime/default, unconfined or localhost/<profile>")
}

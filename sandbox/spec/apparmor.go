package spec

import (
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DefaultAppArmorProfile is the name of the profile that RuntimeDefault stands for. Whoever starts containers must have
// loaded it into the kernel when Node.AppArmor is set.
const DefaultAppArmorProfile = "gantry-default"

func (b *builder) addAppArmor() error {
	if b.privileged {
		return nil
	}
	p, err := appArmorProfile(b.security)
	if err != nil {
		return err
	}
	switch {
	case p.kind == runtime.SecurityProfile_Localhost:
		if !b.in.Node.AppArmor {
			return invalid(p.field, p.ref, "no profile on a node without AppArmor")
		}
		// The kubelet sends the name with the prefix of the deprecated form in the new field too.
		name := strings.TrimPrefix(p.ref, "localhost/")
		if name == "" || strings.ContainsAny(name, "\x00\n") {
			return invalid(p.field, p.ref, "the name of a profile")
		}
		b.spec.Process.ApparmorProfile = name
	case p.kind == runtime.SecurityProfile_RuntimeDefault && b.in.Node.AppArmor:
		b.spec.Process.ApparmorProfile = DefaultAppArmorProfile
	}
	return nil
}

// appArmorProfile: the new field, else the deprecated one, else the default.
func appArmorProfile(sc *runtime.LinuxContainerSecurityContext) (profile, error) {
	if p := sc.GetApparmor(); p != nil {
		return parseProfile(securityField("apparmor"), p)
	}
	if s := sc.GetApparmorProfile(); s != "" { //nolint:staticcheck // SA1019: older clients send only this one.
		return parseProfileString(securityField("apparmor_profile"), s)
	}
	return profile{kind: runtime.SecurityProfile_RuntimeDefault}, nil
}

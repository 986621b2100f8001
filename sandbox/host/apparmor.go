package host

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/apparmor"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// apparmorTimeout bounds the loading of the default profile, which runs apparmor_parser(8).
const apparmorTimeout = 20 * time.Second

// loadAppArmor loads the profile that RuntimeDefault means into the kernel. Where that cannot be done, on a node whose
// kernel has AppArmor and which lacks the tools, the node counts as one without it: containers then run unconfined by
// AppArmor, and one that asks for a profile of its own is refused.
func loadAppArmor(node *spec.Node) {
	if !node.AppArmor {
		return
	}
	if err := installDefaultProfile(); err != nil {
		klog.ErrorS(err, "AppArmor's default profile could not be loaded; containers run without AppArmor",
			"profile", spec.DefaultAppArmorProfile)
		node.AppArmor = false
	}
}

func installDefaultProfile() error {
	loaded := make(chan error, 1)
	go func() { loaded <- apparmor.InstallDefault(spec.DefaultAppArmorProfile) }()
	select {
	case err := <-loaded:
		return err
	case <-time.After(apparmorTimeout):
		return errors.New("apparmor_parser did not end in time")
	}
}

// apparmorProfiles lists the profiles in the kernel, one "name (mode)" a line.
const apparmorProfiles = "/sys/kernel/security/apparmor/profiles"

// RequireAppArmor makes sure that the kernel has a profile that a container is to run under: else its start would say
// no more than that some file does not exist. The default profile is loaded again if somebody removed it, as
// aa-remove-unknown(8) does. "" is no profile.
//
// Errors: errdefs.ErrFailedPrecondition for a profile that is not loaded.
func RequireAppArmor(profile string) error {
	if profile == "" || profileLoaded(apparmorProfiles, profile) {
		return nil
	}
	if profile == spec.DefaultAppArmorProfile {
		if err := installDefaultProfile(); err != nil {
			return fmt.Errorf("load AppArmor profile %s: %w", profile, err)
		}
		return nil
	}
	return fmt.Errorf("AppArmor profile %q is not loaded: %w", profile, errdefs.ErrFailedPrecondition)
}

// profileLoaded looks a profile up in the kernel's list. What cannot be looked up counts as loaded: the kernel decides.
func profileLoaded(list, profile string) bool {
	if strings.HasPrefix(profile, ":") || strings.Contains(profile, "//&") {
		return true // of another namespace, or several at once
	}
	b, err := os.ReadFile(list)
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		if mode := strings.LastIndex(line, " ("); mode >= 0 && line[:mode] == profile {
			return true
		}
	}
	return false
}

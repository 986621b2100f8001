package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// InjectCDI edits a container's spec, and the groups of its user, as the CDI specs of its devices say. dirs are where
// those are; they are read anew for each container that has such devices, so that a vendor's change counts at once and
// nothing has to be watched. A device that no spec has, or that more than one of the same directory has, is
// errdefs.ErrInvalidArgument. On error the spec is half edited, or about to be: not to be used.
func InjectCDI(
	ctx context.Context, dirs []string, s *specs.Spec, user *spec.User, devices []*runtime.CDIDevice,
) error {
	if len(devices) == 0 {
		return nil
	}
	var names []string
	for i, d := range devices {
		if _, _, _, err := parser.ParseQualifiedName(d.GetName()); err != nil {
			return fmt.Errorf("CDI_devices[%d].name %q: expected vendor/class=name: %v: %w", i, d.GetName(), err,
				errdefs.ErrInvalidArgument)
		}
		if !slices.Contains(names, d.GetName()) {
			names = append(names, d.GetName())
		}
	}
	// Whose spec this is makes the key its own: the edits are of this spec.
	key := fmt.Sprintf("CDI %p %s", s, strings.Join(names, " "))
	_, err := lookup(ctx, &lookups, key, func() (struct{}, error) {
		return struct{}{}, editByCDI(dirs, s, names)
	})
	if err != nil {
		return fmt.Errorf("CDI_devices: %w", err)
	}
	for _, gid := range s.Process.User.AdditionalGids {
		if !slices.Contains(user.Groups, gid) {
			user.Groups = append(user.Groups, gid)
		}
	}
	return nil
}

func editByCDI(dirs []string, s *specs.Spec, names []string) error {
	registry, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI specs: %w", err)
	}
	unresolved, err := registry.InjectDevices(s, names...)
	if len(unresolved) > 0 {
		return fmt.Errorf("%q: expected devices of the CDI specs in %s%s: %w", unresolved, strings.Join(dirs, ", "),
			unreadable(registry), errdefs.ErrInvalidArgument)
	}
	return err
}

// unreadable tells which CDI specs are wrong: a device may be missing for that.
func unreadable(registry *cdi.Cache) string {
	var all []error
	for _, errs := range registry.GetErrors() {
		all = append(all, errs...)
	}
	if len(all) == 0 {
		return ""
	}
	return fmt.Sprintf(" (of which some cannot be used: %v)", strings.ReplaceAll(errors.Join(all...).Error(), "\n", "; "))
}

package host

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// What keeps pods apart under SELinux is the level: each sandbox has one of its own, which its containers share. It is
// in the record, so that no other sandbox gets it while this one exists, whatever daemon runs.

// selinuxLevel matches a sensitivity or a range of them, with categories: s0, s0:c1,c2, s0-s0:c0.c1023.
var selinuxLevel = regexp.MustCompile(`^s\d{1,3}(` + categories + `)?(-s\d{1,3}(` + categories + `)?)?$`)

const categories = `:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*`

// selinuxName matches a user, role or type.
var selinuxName = regexp.MustCompile(`^[A-Za-z0-9_.-]*$`)

// checkSELinux finds what is wrong with the form of options. Whether the policy has them only the kernel knows.
func checkSELinux(o *runtime.SELinuxOption) error {
	for _, part := range []struct{ field, value string }{
		{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()},
	} {
		if !selinuxName.MatchString(part.value) {
			return fmt.Errorf("linux.security_context.selinux_options.%s %q: expected a name of the policy: %w", part.field,
				part.value, errdefs.ErrInvalidArgument)
		}
	}
	if level := o.GetLevel(); level != "" && !selinuxLevel.MatchString(level) {
		return fmt.Errorf("linux.security_context.selinux_options.level %q: expected a level such as s0:c1,c2: %w", level,
			errdefs.ErrInvalidArgument)
	}
	return nil
}

// mergeSELinux lays a container's options over its pod's, over the sandbox's level.
func mergeSELinux(pod, container *runtime.SELinuxOption, level string) []string {
	var options []string
	for _, part := range []struct{ name, container, pod string }{
		{"user", container.GetUser(), pod.GetUser()},
		{"role", container.GetRole(), pod.GetRole()},
		{"type", container.GetType(), pod.GetType()},
		{"level", container.GetLevel(), level},
	} {
		if part.container == "" {
			part.container = part.pod
		}
		if part.container != "" {
			options = append(options, part.name+":"+part.container)
		}
	}
	return options
}

// ChooseLevel gives a sandbox its level: the configured one, or one that no other sandbox has. Empty where the policy
// knows no containers. Preconditions: the node has SELinux. Errors: errdefs.ErrInvalidArgument for bad options.
func ChooseLevel(options *runtime.SELinuxOption) (string, error) {
	if err := checkSELinux(options); err != nil {
		return "", err
	}
	if level := options.GetLevel(); level != "" {
		ReserveLevel(level)
		return level, nil
	}
	process, _, err := label.InitLabels(nil)
	if err != nil {
		return "", fmt.Errorf("choose SELinux level: %w", err)
	}
	if process == "" {
		return "", nil
	}
	parts, err := selinux.NewContext(process)
	if err != nil {
		return "", fmt.Errorf("choose SELinux level: %w", err)
	}
	return parts["level"], nil
}

// ReserveLevel keeps a level from being chosen for another sandbox. The library wants a whole label.
func ReserveLevel(level string) {
	if level != "" {
		selinux.ReserveLabel(":::" + level)
	}
}

// ReleaseLevel gives a level back. An empty one is none.
func ReleaseLevel(level string) {
	if level != "" {
		selinux.ReleaseLabel(":::" + level)
	}
}

// Labels are the SELinux labels of a container's process and mounts, in a sandbox with that configuration and level. A
// privileged container has none of its own for its process. Preconditions: the node has SELinux. Errors:
// errdefs.ErrInvalidArgument for options that are malformed or not in the policy.
func Labels(sandbox *runtime.PodSandboxConfig, config *runtime.ContainerConfig, level string) (spec.Labels, error) {
	sc := config.GetLinux().GetSecurityContext()
	if err := checkSELinux(sc.GetSelinuxOptions()); err != nil {
		return spec.Labels{}, err
	}
	pod := sandbox.GetLinux().GetSecurityContext().GetSelinuxOptions()
	process, mount, err := label.InitLabels(mergeSELinux(pod, sc.GetSelinuxOptions(), level))
	if err != nil {
		return spec.Labels{}, fmt.Errorf("make SELinux labels: %w", err)
	}
	for _, l := range []string{process, mount} {
		if err := selinux.SecurityCheckContext(l); l != "" && err != nil {
			return spec.Labels{}, fmt.Errorf("linux.security_context.selinux_options: label %q: %w: %w", l, err,
				errdefs.ErrInvalidArgument)
		}
	}
	if sc.GetPrivileged() {
		process = ""
	}
	return spec.Labels{Process: process, Mount: mount}, nil
}

// Relabel labels what a container mounts, as its input says: the runtime's own files, and volumes that ask for it.
// Without a label it does nothing. A volume may hold millions of files and lie on a slow disk: a run that is left
// behind goes on, and the kubelet's retry joins it.
func Relabel(ctx context.Context, in *spec.Input) error {
	mountLabel := in.Labels.Mount
	if mountLabel == "" {
		return nil
	}
	for _, file := range []string{in.Files.Hostname, in.Files.Hosts, in.Files.ResolvConf, in.Files.Shm} {
		if file == "" || file == "/dev/shm" { // the host's
			continue
		}
		if err := label.SetFileLabel(file, mountLabel); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("label %s: %w", file, err)
		}
	}
	for i, m := range in.Config.GetMounts() {
		source := in.Host.Sources[m.GetHostPath()]
		if !m.GetSelinuxRelabel() || source == "" {
			continue
		}
		_, err := lookup(ctx, &lookups, "relabel "+mountLabel+" "+source, func() (struct{}, error) {
			return struct{}{}, label.Relabel(source, mountLabel, false) // which refuses /, /usr and the like
		})
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("mounts[%d].selinux_relabel of %s: %w", i, source, err)
		}
	}
	return nil
}

// LabelRootfs makes the root filesystem appear with the label.
func LabelRootfs(rootfs []specs.Mount, mountLabel string) []specs.Mount {
	if mountLabel == "" {
		return rootfs
	}
	labelled := slices.Clone(rootfs)
	for i, m := range labelled {
		if m.Type == "overlay" {
			labelled[i].Options = append(slices.Clone(m.Options), fmt.Sprintf("context=%q", mountLabel))
		}
	}
	return labelled
}

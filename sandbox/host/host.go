// Package host finds out on the node what the containers' specs depend on: facts about the kernel, volumes, devices,
// CDI specs, SELinux labels and AppArmor's default profile. It keeps no state but the SELinux levels that are taken,
// and knows nothing of sandboxes' lives; what it finds is in the terms of package spec.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// maxSeccompProfile bounds what is read of a seccomp profile, in bytes. The largest in use are about 100 KB.
const maxSeccompProfile = 4 << 20

// Gather looks up on the host what spec.Build needs to know for one container: volumes, devices and the seccomp
// profile. With makeMissing a host_path that does not exist becomes a directory; else it is an error.
//
// Every path may lie on a disk that never answers, so each is looked up where it can be abandoned (see lookupTable):
// Gather returns soon after ctx has ended, whatever the disk does. What is wrong with the configuration is
// errdefs.ErrInvalidArgument and names the field.
func Gather(
	ctx context.Context, sandbox *runtime.PodSandboxConfig, config *runtime.ContainerConfig, makeMissing bool,
) (spec.Host, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var host spec.Host
	if err := gatherSources(ctx, &host, config.GetMounts(), makeMissing); err != nil {
		return spec.Host{}, err
	}
	if err := gatherDevices(ctx, &host, config.GetDevices()); err != nil {
		return spec.Host{}, err
	}
	// Elsewhere a privileged container is refused anyway.
	if config.GetLinux().GetSecurityContext().GetPrivileged() && sandbox.GetLinux().GetSecurityContext().GetPrivileged() {
		devices, err := lookup(ctx, &lookups, "devices", func() ([]specs.LinuxDevice, error) {
			return allDevices("/dev")
		})
		if err != nil {
			return spec.Host{}, fmt.Errorf("list devices: %w", err)
		}
		host.AllDevices = devices
	}
	if file, field := spec.SeccompFile(config); file != "" {
		content, err := lookup(ctx, &lookups, "seccomp "+file, func() ([]byte, error) { return readProfile(file) })
		if err != nil {
			return spec.Host{}, hostPathError(field, file, err)
		}
		host.SeccompProfile = content
	}
	return host, nil
}

// gatherSources resolves the host_path of each mount and, where propagation asks for it, what mount it is on.
func gatherSources(ctx context.Context, host *spec.Host, mounts []*runtime.Mount, makeMissing bool) error {
	host.Sources = make(map[string]string)
	host.SharedSources, host.SlaveSources = make(map[string]bool), make(map[string]bool)
	for i, m := range mounts {
		hostPath := m.GetHostPath()
		if hostPath == "" {
			continue // An image's mount, or an error that Build finds.
		}
		field := fmt.Sprintf("mounts[%d].host_path", i)
		source, err := lookup(ctx, &lookups, fmt.Sprintf("source %t %s", makeMissing, hostPath),
			func() (string, error) { return resolveSource(hostPath, makeMissing) })
		if err != nil {
			return hostPathError(field, hostPath, err)
		}
		host.Sources[hostPath] = source
		if m.GetPropagation() == runtime.MountPropagation_PROPAGATION_PRIVATE {
			continue
		}
		on, err := lookup(ctx, &lookups, "propagation "+source, func() (propagation, error) {
			return propagationOf(source)
		})
		if err != nil {
			return hostPathError(field, hostPath, err)
		}
		host.SharedSources[source], host.SlaveSources[source] = on.shared, on.slave
	}
	return nil
}

// resolveSource follows the symbolic links of a host_path.
func resolveSource(hostPath string, makeMissing bool) (string, error) {
	if !filepath.IsAbs(hostPath) {
		return "", errNotAbsolute
	}
	source, err := filepath.EvalSymlinks(hostPath)
	if !makeMissing || !errors.Is(err, os.ErrNotExist) {
		return source, err
	}
	if err := os.MkdirAll(hostPath, 0o755); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(hostPath)
}

// propagation is where mount events of a mount go to (shared) and come from (slave). It can be both.
type propagation struct{ shared, slave bool }

// propagationOf returns the propagation of the mount that a resolved path lies on. It asks the kernel which mount that
// is: a path in the mount table may be hidden below a later mount.
func propagationOf(source string) (propagation, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, source, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return propagation{}, &os.PathError{Op: "statx", Path: source, Err: err}
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return propagation{}, errors.New("find mount: the kernel does not tell mount ids (5.8 does)")
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := uint64(m.ID) == st.Mnt_id
		return !found, found
	})
	if err != nil {
		return propagation{}, fmt.Errorf("read mount table: %w", err)
	}
	if len(mounts) == 0 {
		return propagation{}, fmt.Errorf("find mount %d of %s in the mount table", st.Mnt_id, source)
	}
	return parsePropagation(mounts[0].Optional), nil
}

// parsePropagation reads the optional fields of a line of the mount table: "shared:12 master:3".
func parsePropagation(fields string) propagation {
	var p propagation
	for field := range strings.FieldsSeq(fields) {
		p.shared = p.shared || strings.HasPrefix(field, "shared:")
		p.slave = p.slave || strings.HasPrefix(field, "master:")
	}
	return p
}

// readProfile reads a file of ordinary size.
func readProfile(file string) ([]byte, error) {
	// Not blocking, should somebody have put a FIFO there.
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	content, err := io.ReadAll(io.LimitReader(f, maxSeccompProfile+1))
	if err == nil && len(content) > maxSeccompProfile {
		err = errTooLarge
	}
	return content, err
}

// What a path can be that is the configuration's fault and that the kernel has no errno for.
var (
	errNotAbsolute = errors.New("expected an absolute path")
	errNotRegular  = errors.New("expected a regular file")
	errTooLarge    = fmt.Errorf("expected at most %d bytes", maxSeccompProfile)
	errNoDevice    = errors.New("expected a device or a directory of devices")
)

// hostPathError names the field and tells a wrong path, which is the caller's, from a disk in trouble.
func hostPathError(field, path string, err error) error {
	wrong := []error{
		unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL,
		errNotAbsolute, errNotRegular, errTooLarge, errNoDevice,
	}
	if slices.ContainsFunc(wrong, func(target error) bool { return errors.Is(err, target) }) {
		return fmt.Errorf("%s %q: %w: %w", field, path, err, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s %q: %w", field, path, err)
}

package spec

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// What a bind mount of our own is: none of the options that touch mount flags, for each such option makes libcontainer
// remount with these flags only, which would clear the source's nosuid, nodev and noexec.
const (
	bindOption    = "rbind"
	privateOption = "rprivate"
)

// addMounts puts the configuration's mounts over the runtime's own, parents before children.
func (b *builder) addMounts() error {
	configured, err := b.configuredMounts()
	if err != nil {
		return err
	}
	given := make(map[string]bool)
	for _, m := range configured {
		given[m.Destination] = true
	}
	own := slices.DeleteFunc(append(b.kernelMounts(), b.fileMounts()...), func(m specs.Mount) bool {
		// What is given at /dev has its own pts and mqueue; the sandbox's shm stays the sandbox's.
		hidden := given["/dev"] && strings.HasPrefix(m.Destination, "/dev/") && m.Destination != "/dev/shm"
		return given[m.Destination] || hidden
	})
	mounts := append(own, configured...)
	slices.SortStableFunc(mounts, func(x, y specs.Mount) int {
		return cmp.Compare(strings.Count(x.Destination, "/"), strings.Count(y.Destination, "/"))
	})
	b.spec.Mounts = mounts
	return nil
}

// kernelMounts are the file systems that the kernel makes. Mounted inside the container's namespaces they show those:
// mqueue is the host's in the host's IPC namespace, sysfs has the devices of the container's network.
func (b *builder) kernelMounts() []specs.Mount {
	access := "ro"
	if b.privileged {
		access = "rw"
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if b.hasGroup(terminalGroup) {
		pts = append(pts, "gid="+strconv.Itoa(terminalGroup))
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{
			Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"},
		},
		b.sysMount(access),
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", access},
		},
	}
}

// sysMount is sysfs. Only the root of the user namespace that owns a network namespace can mount it there; beside the
// node's network a user namespace gets the node's own, which it cannot write to.
func (b *builder) sysMount(access string) specs.Mount {
	network := b.in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork()
	if UserNamespace(b.in.Sandbox) != nil && network == runtime.NamespaceMode_NODE {
		return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys",
			Options: []string{bindOption, privateOption, "rro"}}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs",
		Options: []string{"nosuid", "noexec", "nodev", access}}
}

// fileMounts are the sandbox's files. A read-only root filesystem has them read-only, but for /dev/shm.
func (b *builder) fileMounts() []specs.Mount {
	files := b.in.Files
	var mounts []specs.Mount
	for _, f := range []struct{ source, destination string }{
		{files.Hostname, "/etc/hostname"},
		{files.Hosts, "/etc/hosts"},
		{files.ResolvConf, "/etc/resolv.conf"},
		{files.Shm, "/dev/shm"},
	} {
		if f.source == "" {
			continue
		}
		options := []string{bindOption, privateOption}
		if b.spec.Root.Readonly && f.destination != "/dev/shm" {
			options = append(options, "ro")
		}
		mounts = append(mounts, specs.Mount{
			Destination: f.destination, Type: "bind", Source: f.source, Options: options,
		})
	}
	return mounts
}

// configuredMounts are the mounts of the configuration; of several at one place only the last.
func (b *builder) configuredMounts() ([]specs.Mount, error) {
	var mounts []specs.Mount
	for i, m := range b.in.Config.GetMounts() {
		field := fmt.Sprintf("mounts[%d]", i)
		translate := b.bindMount
		if m.GetImage() != nil {
			translate = b.imageMount
		}
		mount, err := translate(field, i, m)
		if err != nil {
			return nil, err
		}
		mounts = slices.DeleteFunc(mounts, func(earlier specs.Mount) bool {
			return earlier.Destination == mount.Destination
		})
		mounts = append(mounts, mount)
	}
	return mounts, nil
}

// imageMount is a volume that shows an image. The kubelet knows its errors by their first word.
func (b *builder) imageMount(field string, i int, m *runtime.Mount) (specs.Mount, error) {
	extra, err := checkImageMount(field, m)
	mount, ok := b.in.Host.Volumes[i]
	if err == nil && !ok {
		err = invalid(field+".image.image", m.GetImage().GetImage(), "an image that is in the store")
	}
	if err != nil {
		return specs.Mount{}, fmt.Errorf("%w: %w", crierrors.ErrImageVolumeMountFailed, err)
	}
	mapped, err := b.mapsOwners(field, m)
	if err != nil {
		return specs.Mount{}, fmt.Errorf("%w: %w", crierrors.ErrImageVolumeMountFailed, err)
	}
	if mapped && mount.Type == "overlay" {
		extra = append(extra, idMapOverlayOption)
	} else if mapped {
		extra = append(extra, idMapBindOption)
	}
	mount.Destination = path.Clean(m.GetContainerPath())
	mount.Options = append(slices.DeleteFunc(slices.Clone(mount.Options), func(option string) bool {
		return optionGroup(option) != nil
	}), extra...)
	return mount, nil
}

// checkImageMount finds what is wrong with an image volume by itself, and returns the options that it asks for.
func checkImageMount(field string, m *runtime.Mount) (options []string, err error) {
	switch p := m.GetPropagation(); {
	case m.GetHostPath() != "":
		return nil, invalid(field+".host_path", m.GetHostPath(), "not both host_path and image")
	case m.GetImage().GetImage() == "":
		return nil, invalid(field+".image.image", "", "an image")
	case !m.GetReadonly():
		return nil, invalid(field+".readonly", false, "true for an image")
	case p != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return nil, invalid(field+".propagation", p.String(), "PROPAGATION_PRIVATE for an image")
	}
	if err := checkMount(field, m); err != nil {
		return nil, err
	}
	return mountOptions(field, m)
}

func (b *builder) bindMount(field string, _ int, m *runtime.Mount) (specs.Mount, error) {
	if m.GetHostPath() == "" {
		return specs.Mount{}, invalid(field+".host_path", "", "a path")
	}
	if err := checkMount(field, m); err != nil {
		return specs.Mount{}, err
	}
	source, ok := b.in.Host.Sources[m.GetHostPath()]
	if !ok {
		return specs.Mount{}, invalid(field+".host_path", m.GetHostPath(), "a path that exists")
	}
	propagation, err := b.propagation(field, m, source)
	if err != nil {
		return specs.Mount{}, err
	}
	extra, err := mountOptions(field, m)
	if err != nil {
		return specs.Mount{}, err
	}
	options := append([]string{bindOption, propagation}, extra...)
	if mapped, err := b.mapsOwners(field, m); err != nil {
		return specs.Mount{}, err
	} else if mapped {
		options = append(options, idMapBindOption)
	}
	return specs.Mount{
		Destination: path.Clean(m.GetContainerPath()), Type: "bind", Source: source, Options: options,
	}, nil
}

// checkMount finds what is wrong with a mount by itself.
func checkMount(field string, m *runtime.Mount) error {
	switch to := m.GetContainerPath(); {
	case !path.IsAbs(to) || path.Clean(to) == "/" || strings.IndexByte(to, 0) >= 0:
		return invalid(field+".container_path", to, "an absolute path below /")
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid(field+".recursive_read_only", true, "readonly with it")
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+".propagation", m.GetPropagation().String(), "PROPAGATION_PRIVATE with recursive_read_only")
	}
	return nil
}

// propagation returns the option, and raises the propagation of the root: what is to pass from or to the host must not
// stop there. Without it libcontainer's slave root would be right for neither.
func (b *builder) propagation(field string, m *runtime.Mount, source string) (option string, err error) {
	mode := m.GetPropagation()
	shared := b.in.Host.SharedSources[source]
	switch mode {
	case runtime.MountPropagation_PROPAGATION_PRIVATE:
		return privateOption, nil
	case runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if !shared && !b.in.Host.SlaveSources[source] {
			return "", invalid(field+".host_path", m.GetHostPath(), "a path on a shared or slave mount for "+mode.String())
		}
		if b.spec.Linux.RootfsPropagation == "" {
			b.spec.Linux.RootfsPropagation = "rslave"
		}
		return "rslave", nil
	case runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if !shared {
			return "", invalid(field+".host_path", m.GetHostPath(), "a path on a shared mount for "+mode.String())
		}
		b.spec.Linux.RootfsPropagation = "rshared"
		return "rshared", nil
	}
	return "", invalid(field+".propagation", mode.String(), "PRIVATE, HOST_TO_CONTAINER or BIDIRECTIONAL")
}

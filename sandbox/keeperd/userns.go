package keeperd

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper/idmap"
)

// idmapOption, among the options of an overlay mount of the spec, asks for mapped owners.
const idmapOption = "idmap"

// userNamespace is the user namespace that a container joins. Of a nil one nothing is mapped.
type userNamespace struct {
	file       *os.File
	uids, gids specs.LinuxIDMapping
}

// openUserNamespace opens what the spec names, or returns nil, and takes the mappings out of the spec: libcontainer
// reads them from the namespace.
func openUserNamespace(spec *specs.Spec) (*userNamespace, error) {
	i := slices.IndexFunc(spec.Linux.Namespaces,
		func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace })
	if i < 0 {
		return nil, nil
	}
	uids, gids := spec.Linux.UIDMappings, spec.Linux.GIDMappings
	if len(uids) != 1 || len(gids) != 1 {
		return nil, fmt.Errorf("user namespace: %d uid mappings and %d gid mappings, expected one each", len(uids), len(gids))
	}
	file, err := os.Open(spec.Linux.Namespaces[i].Path)
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = nil, nil
	return &userNamespace{file: file, uids: uids[0], gids: gids[0]}, nil
}

func (u *userNamespace) close() {
	if u != nil {
		_ = u.file.Close()
	}
}

// mapRootfs returns a mount of the root filesystem with mapped owners: of an overlay those of the lower directories
// are. They are mounted at target, which the mount itself then covers: overlay keeps what it needs of them.
func (u *userNamespace) mapRootfs(m specs.Mount, target string) (specs.Mount, error) {
	if u == nil {
		return m, nil
	}
	if m.Type != "overlay" {
		err := idmap.Mount(m.Source, target, int(u.file.Fd()))
		m.Source = target
		return m, err
	}
	var upper, work string
	for _, o := range m.Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
		if dir, ok := strings.CutPrefix(o, "workdir="); ok {
			work = dir
		}
	}
	if upper != "" {
		if err := u.adopt(upper, work); err != nil {
			return m, err
		}
	}
	var err error
	m.Options, err = idmap.Lowers(m.Options, target, int(u.file.Fd()))
	return m, err
}

// mapVolumes mounts those overlays of the spec that are to have mapped owners, and leaves bind mounts in their place: a
// process inside the namespace may not map owners. makeMountPoint makes a directory for each.
func (u *userNamespace) mapVolumes(spec *specs.Spec, makeMountPoint func() (string, error)) error {
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if m.Type != "overlay" || !slices.Contains(m.Options, idmapOption) {
			continue
		}
		if u == nil {
			return fmt.Errorf("mount %s: option %s without a user namespace", m.Destination, idmapOption)
		}
		target, err := makeMountPoint()
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == idmapOption })
		if label := spec.Linux.MountLabel; label != "" {
			options = append(options, fmt.Sprintf("context=%q", label)) // as libcontainer labels what it mounts
		}
		options, err = idmap.Lowers(options, target, int(u.file.Fd()))
		if err == nil {
			err = mountOne(specs.Mount{Type: m.Type, Source: m.Source, Options: options}, target)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		// The mount's own flags count for the bind mount too, which may not have less.
		options = slices.DeleteFunc(options, func(o string) bool { _, flag := mountFlags[o]; return !flag })
		*m = specs.Mount{Destination: m.Destination, Type: "bind", Source: target,
			Options: append(options, "bind", "rprivate")}
	}
	return nil
}

// adopt gives the tree at root, where no container has run yet, to the namespace: who owned it as 0 owns it as the
// namespace's root. The directory mark, which 0 owns at first, is changed last and tells that it is done; what an
// interrupted call has changed is no id inside any more, unless the mapping overlaps itself, and stays.
func (u *userNamespace) adopt(root, mark string) error {
	done, err := u.owns(mark)
	if err != nil || done {
		return err
	}
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path == mark {
			return nil
		}
		if err == nil {
			err = u.chown(path)
		}
		return err
	})
	if err == nil {
		err = u.chown(mark)
	}
	if err != nil {
		return fmt.Errorf("give writable layer to user namespace: %w", err)
	}
	return nil
}

func (u *userNamespace) owns(path string) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return false, fmt.Errorf("read owner: %w", err)
	}
	return info.Sys().(*syscall.Stat_t).Uid == u.uids.HostID, nil
}

// chown maps a file's owners. Its mode stays: a change of owner takes set-id bits away.
func (u *userNamespace) chown(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if err := os.Lchown(path, outside(st.Uid, u.uids), outside(st.Gid, u.gids)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return nil
	}
	if err := unix.Chmod(path, st.Mode&^unix.S_IFMT); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}

// outside is the host's id for one of the image; -1, which changes nothing, for one that the namespace does not have.
func outside(id uint32, m specs.LinuxIDMapping) int {
	if id >= m.Size {
		return -1
	}
	return int(m.HostID + id)
}

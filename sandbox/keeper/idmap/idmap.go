// Package idmap mounts directories with the owners of their files mapped by a user namespace (mount_setattr(2)): what
// the keeper makes root filesystems of, and what the daemon tries at its start. It does not make user namespaces.
package idmap

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount mounts the directory source, without what is mounted below it, at target, in the calling thread's mount
// namespace and private, with the owners of files as the user namespace that the descriptor userns is open on shows
// them.
func Mount(source, target string, userns int) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount of %s: %w", source, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(userns)}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("map owners of %s (its file system may not be able to): %w", source, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	return nil
}

// Lowers mounts the lower directories of an overlay at target, with mapped owners, and returns the options with the
// directories there: the kernel maps the owners of layers, not of an overlay. Options without lowerdir come back as
// they are, and nothing is mounted then.
func Lowers(options []string, target string, userns int) ([]string, error) {
	options = slices.Clone(options)
	for i, o := range options {
		value, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			continue
		}
		dirs, err := mountAll(split(value), target, userns)
		if err != nil {
			return nil, err
		}
		for j := range dirs {
			dirs[j] = escaper.Replace(dirs[j])
		}
		options[i] = "lowerdir=" + strings.Join(dirs, ":")
	}
	return options, nil
}

// mountAll mounts directories at target and returns where each is: with one mount, of what they have in common, where
// they lie on one, which is nearly always.
func mountAll(dirs []string, target string, userns int) ([]string, error) {
	mounted := make([]string, len(dirs))
	common := Common(dirs)
	together, err := onOneMount(append([]string{common}, dirs...))
	if err == nil && together {
		err = Mount(common, target, userns)
	} else if err == nil {
		err = unix.Mount("layers", target, "tmpfs", 0, "mode=755")
	}
	for i, dir := range dirs {
		if err == nil && together {
			var rel string
			rel, err = filepath.Rel(common, dir)
			mounted[i] = filepath.Join(target, rel)
		} else if err == nil {
			mounted[i] = filepath.Join(target, strconv.Itoa(i))
			if err = os.Mkdir(mounted[i], 0o755); err == nil {
				err = Mount(dir, mounted[i], userns)
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("mount lower directories: %w", err)
	}
	return mounted, nil
}

func onOneMount(dirs []string) (bool, error) {
	var first uint64
	for i, dir := range dirs {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &st); err != nil {
			return false, &os.PathError{Op: "statx", Path: dir, Err: err}
		}
		if i == 0 {
			first = st.Mnt_id
		}
		if st.Mnt_id != first {
			return false, nil
		}
	}
	return true, nil
}

// Common returns the deepest directory that is above all of paths.
func Common(paths []string) string {
	if len(paths) == 0 {
		return "/"
	}
	common := filepath.Dir(paths[0])
	for _, p := range paths[1:] {
		for common != "/" && !strings.HasPrefix(p, common+"/") {
			common = filepath.Dir(common)
		}
	}
	return common
}

// escaper writes a path so that overlay does not take a character for the end of it.
var escaper = strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`)

// split takes the value of lowerdir apart at the colons that are not escaped.
func split(value string) (dirs []string) {
	var dir strings.Builder
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '\\' && i+1 < len(value):
			i++
			dir.WriteByte(value[i])
		case c == ':':
			dirs = append(dirs, dir.String())
			dir.Reset()
		default:
			dir.WriteByte(c)
		}
	}
	return append(dirs, dir.String())
}

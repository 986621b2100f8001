package premount

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// bind binds a file or a directory of the same type, and tells whether it did. The keeper must not wait for the file
// system of the source, which may be a volume's and dead: init can be killed then, the keeper's thread cannot. So the
// source is resolved once, with what the kernel has in memory, and all options are set before the mount has a place.
func (t *taker) bind(m *configs.Mount, mode uint32) bool {
	const known = unix.MS_BIND | unix.MS_REC | unix.MS_RDONLY
	private := slices.Equal(m.PropagationFlags, []int{unix.MS_PRIVATE | unix.MS_REC})
	if m.Flags&^known != 0 || m.ClearedFlags != 0 || m.Data != "" || !private {
		return false
	}
	source, err := openCached(m.Source)
	if err != nil {
		return false
	}
	defer unix.Close(source)
	var s unix.Statx_t
	err = unix.Statx(source, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &s)
	if err != nil || uint32(s.Mode)&unix.S_IFMT != mode {
		return false
	}
	tree, err := cloneTree(source, m.Flags)
	if err != nil {
		return false
	}
	defer unix.Close(tree) // what has no place by then is gone
	target := t.root + m.Destination
	return offer(target, mode) && unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH) == nil
}

// resolveCached is RESOLVE_CACHED of openat2(2).
const resolveCached = 0x20

// openTries is how often a path is looked up: what others mount or rename meanwhile can make the kernel give up.
const openTries = 20

// openCached opens a path, but not what a link at its end leads to, without asking any file system. The error is EAGAIN
// when that cannot be done, EINVAL or ENOSYS when the kernel cannot do it at all (before 5.12).
func openCached(path string) (fd int, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: resolveCached}
	for range openTries {
		if fd, err = unix.Openat2(unix.AT_FDCWD, path, &how); err != unix.EAGAIN {
			break
		}
	}
	return fd, err
}

// cloneTree makes a private bind mount that has no place yet.
func cloneTree(source, flags int) (tree int, err error) {
	clone := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if flags&unix.MS_REC != 0 {
		clone |= unix.AT_RECURSIVE
	}
	if tree, err = unix.OpenTree(source, "", clone); err != nil {
		return -1, err
	}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	if err == nil && flags&unix.MS_RDONLY != 0 {
		// As by a remount with this flag only: the others that the source has are taken away, but for those of atime.
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
			Attr_set: unix.MOUNT_ATTR_RDONLY,
			Attr_clr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW,
		})
	}
	if err != nil {
		_ = unix.Close(tree)
	}
	return tree, err
}

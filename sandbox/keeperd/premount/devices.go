package premount

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups/devices/config"
	"golang.org/x/sys/unix"
)

// makeDevices makes the nodes of the configuration in /dev, where there is no file yet, and returns those that are left
// for libcontainer: elsewhere, of another kind, or refused. So are those in /dev/shm: other containers of the pod, or all
// users of the host, change it meanwhile, and a link of theirs would lead out of the root filesystem.
func (t *taker) makeDevices() (left []*config.Device) {
	old := unix.Umask(0) // of this thread: modes are as they are given
	defer unix.Umask(old)
	for _, d := range t.config.Devices {
		if !t.makeDevice(d) {
			left = append(left, d)
		}
	}
	return left
}

func (t *taker) makeDevice(d *config.Device) bool {
	kind := map[config.Type]uint32{config.BlockDevice: unix.S_IFBLK, config.CharDevice: unix.S_IFCHR}[d.Type]
	if kind == 0 || !strings.HasPrefix(d.Path, "/dev/") || filepath.Clean(d.Path) != d.Path || d.Path == "/dev/ptmx" ||
		below(d.Path, "/dev/shm") || !t.reaches(d.Path) {
		return false
	}
	number, err := d.Mkdev()
	if err != nil {
		return false
	}
	path := t.root + d.Path
	if dir := filepath.Dir(d.Path); dir != "/dev" && os.MkdirAll(t.root+dir, 0o755) != nil {
		return false
	}
	if unix.Mknod(path, kind|uint32(d.FileMode), int(number)) != nil {
		return false
	}
	if d.Uid != 0 || d.Gid != 0 {
		if unix.Lchown(path, int(d.Uid), int(d.Gid)) != nil {
			_ = unix.Unlink(path)
			return false
		}
	}
	return true
}

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// gatherDevices finds the device nodes at the host_path of each device.
func gatherDevices(ctx context.Context, host *spec.Host, devices []*runtime.Device) error {
	host.Devices = make(map[string][]specs.LinuxDevice)
	for i, d := range devices {
		hostPath := d.GetHostPath()
		found, err := lookup(ctx, &lookups, "device "+hostPath, func() ([]specs.LinuxDevice, error) {
			return devicesAt(hostPath)
		})
		if err != nil {
			return hostPathError(fmt.Sprintf("devices[%d].host_path", i), hostPath, err)
		}
		host.Devices[hostPath] = found
	}
	return nil
}

// devicesAt returns the device at a path, or those of a directory, as spec.Host.Devices wants them.
func devicesAt(hostPath string) ([]specs.LinuxDevice, error) {
	if !filepath.IsAbs(hostPath) {
		return nil, errNotAbsolute
	}
	path, err := filepath.EvalSymlinks(hostPath)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.IsDir() {
		devices, err := devicesBelow(path, nil)
		for i := range devices {
			below, _ := filepath.Rel(path, devices[i].Path) // Both are absolute.
			devices[i].Path = filepath.Join(hostPath, below)
		}
		if err == nil && len(devices) == 0 {
			err = errNoDevice
		}
		return devices, err
	}
	device, ok, err := deviceAt(path)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errNoDevice
	}
	device.Path = hostPath
	return []specs.LinuxDevice{device}, nil
}

// allDevices returns the devices of dev for a privileged container: without what a container has of its own, and
// without console, which is the host's terminal.
func allDevices(dev string) ([]specs.LinuxDevice, error) {
	return devicesBelow(dev, []string{
		filepath.Join(dev, "console"), filepath.Join(dev, "fd"), filepath.Join(dev, "mqueue"),
		filepath.Join(dev, "pts"), filepath.Join(dev, "shm"),
	})
}

// devicesBelow returns the device nodes below a directory, in the order of their names. What vanishes meanwhile is left
// out: devices come and go.
func devicesBelow(dir string, leaveOut []string) ([]specs.LinuxDevice, error) {
	var devices []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist) && path != dir:
			return nil
		case err != nil:
			return err
		case slices.Contains(leaveOut, path) && entry.IsDir():
			return fs.SkipDir
		case slices.Contains(leaveOut, path) || entry.Type()&fs.ModeDevice == 0:
			return nil
		}
		device, ok, err := deviceAt(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if ok {
			devices = append(devices, device)
		}
		return err
	})
	return devices, err
}

// deviceAt returns the device node at a path; ok is false when it is something else.
func deviceAt(path string) (device specs.LinuxDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return device, false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	kinds := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}
	kind, ok := kinds[st.Mode&unix.S_IFMT]
	mode := os.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Path:     path,
		Type:     kind,
		Major:    int64(unix.Major(st.Rdev)),
		Minor:    int64(unix.Minor(st.Rdev)),
		FileMode: &mode,
		UID:      &st.Uid,
		GID:      &st.Gid,
	}, ok, nil
}

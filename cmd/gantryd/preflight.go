package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/util"
	"github.com/moby/sys/mountinfo"
)

// keeperName is the file name of the keeper's binary.
const keeperName = "gantry-keeper"

// preflight checks what the daemon cannot do without, so that it refuses to start and not every pod. It returns the
// path of the keeper's binary.
func preflight(config *Config) (keeper string, err error) {
	if uid := os.Geteuid(); uid != 0 {
		return "", fmt.Errorf("user id is %d, expected 0: gantryd must run as root", uid)
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own binary: %w", err)
	}
	if keeper, err = findKeeper(config.Keeper, filepath.Dir(self)); err != nil {
		return "", err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return "", fmt.Errorf("read mounts: %w", err)
	}
	return keeper, checkCgroups(mounts)
}

// findKeeper returns the configured binary, or the one in dir, or the one in PATH.
func findKeeper(configured, dir string) (string, error) {
	if configured != "" {
		if err := executable(configured); err != nil {
			return "", fmt.Errorf("keeper: value %q, expected an executable file: %w", configured, err)
		}
		return configured, nil
	}
	beside := filepath.Join(dir, keeperName)
	if executable(beside) == nil {
		return beside, nil
	}
	if path, err := exec.LookPath(keeperName); err == nil {
		return filepath.Abs(path)
	}
	return "", fmt.Errorf("find keeper: neither an executable %s nor a %s in PATH: install it there or set `keeper`",
		beside, keeperName)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not an executable file", path)
	}
	return nil
}

// checkCgroups looks for the unified hierarchy, or for the v1 controllers without which limits mean nothing.
func checkCgroups(mounts []*mountinfo.Info) error {
	var controllers []string
	for _, m := range mounts {
		if m.FSType == "cgroup2" && m.Mountpoint == "/sys/fs/cgroup" {
			return nil
		}
		if m.FSType == "cgroup" {
			controllers = append(controllers, strings.Split(m.VFSOptions, ",")...)
		}
	}
	var missing []string
	for _, want := range []string{"memory", "cpu", "cpuset", "pids", "devices", "freezer"} {
		if !slices.Contains(controllers, want) {
			missing = append(missing, want)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("find cgroups: neither cgroup2 on /sys/fs/cgroup nor the cgroup v1 controllers %s are mounted",
			strings.Join(missing, ", "))
	}
	return nil
}

// cgroupDriver resolves "auto": systemd's own cgroups are systemd's to make.
func cgroupDriver(configured string) string {
	if configured != cgroupDriverAuto {
		return configured
	}
	if util.IsRunningSystemd() {
		return cgroupDriverSystemd
	}
	return cgroupDriverCgroupfs
}
